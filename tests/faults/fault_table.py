"""The table of docs/reliability.md from what the tests have noted: python fault_table.py FILE"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def table(lines: list[str]) -> str:
    """Markdown, a row to a fault, its tries added up; then the tests that failed, if any did.

    A test notes its fault when it has come to its end and nothing was lost, so every row says so.
    """
    rows: dict[tuple[str, str], int] = {}
    failed = []
    for noted in map(json.loads, lines):
        if "failed" in noted:
            failed.append(f"FAILED: {noted['failed']}")
        else:
            key = noted["fault"], noted["test"]
            rows[key] = rows.get(key, 0) + noted["tries"]
    head = ["| fault | tries | lost | test |", "|---|---|---|---|"]
    return "\n".join(head + [f"| {fault} | {tried} | 0 | `{test}` |" for (fault, test), tried in rows.items()] + failed)


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
