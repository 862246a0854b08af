"""A page of the site: the notebook, as Markdown, with the pictures that it shows."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown_text import block

PATH = "notebook.md"


def pages(source: Path) -> dict[str, str | bytes]:
    """Return path -> Markdown or picture, of the cells of a notebook."""
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    made: dict[str, str | bytes] = {}
    parts = []
    for number, cell in enumerate(cells):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(f"{text}\n")
            continue
        parts.append(f"```python\n{text}\n```\n")
        for path, shown in _outputs(cell, number):
            made |= {path: shown} if isinstance(shown, bytes) else {}
            parts.append(f"![Output of the cell above]({path})\n" if isinstance(shown, bytes) else block(shown))
    note = f"[Download the notebook]({source.name}).\n"
    return {PATH: "\n".join([parts[0], note, *parts[1:]])} | made


def _outputs(cell: dict[str, Any], number: int) -> Iterator[tuple[str, str | bytes]]:
    for place, output in enumerate(cell["outputs"]):
        data = output.get("data", {})
        if "image/png" in data:
            yield f"images/notebook-{number}-{place}.png", base64.b64decode("".join(data["image/png"]))
        elif text := "".join(data.get("text/plain", output.get("text", ""))):
            yield "", text
