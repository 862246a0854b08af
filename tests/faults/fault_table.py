"""The table of docs/reliability.md from what the tests have noted: python fault_table.py FILE"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def table(lines: list[str]) -> str:
    """Markdown, a row to a fault; tries and losses of a fault that was noted several times are added up."""
    rows: dict[tuple[str, str], tuple[int, int]] = {}
    for line in lines:
        noted = json.loads(line)
        key = noted["fault"], noted["test"]
        tried, lost = rows.get(key, (0, 0))
        rows[key] = tried + noted["tries"], lost + noted["lost"]
    head = ["| fault | tries | lost | test |", "|---|---|---|---|"]
    return "\n".join(
        head + [f"| {fault} | {tried} | {lost} | `{test}` |" for (fault, test), (tried, lost) in rows.items()]
    )


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
