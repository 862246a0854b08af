"""Run the code cells of a notebook in order, in one namespace, and store what they print and show.

    python tools/run_notebook.py docs/notebook.ipynb

Jupyter is not needed: cells are plain Python without magics. An exception in a cell ends the program, and the file
stays as it was.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

Cell = dict[str, Any]


def run_cells(notebook: Cell) -> None:
    """Run the code cells of a notebook, and replace their outputs."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        cell["outputs"] = run_cell("".join(cell["source"]), namespace, number)
        cell["execution_count"] = number


def run_cell(source: str, namespace: dict[str, Any], number: int) -> list[Cell]:
    """Run one cell, and return its outputs: the lines that it prints, and the value of its last expression."""
    statements = ast.parse(source).body
    last = statements.pop() if statements and isinstance(statements[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    name = f"<cell {number}>"
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(statements, []), name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    outputs: list[Cell] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    if value is not None:
        outputs.append(
            {"data": shown(value), "execution_count": number, "metadata": {}, "output_type": "execute_result"}
        )
    return outputs


def shown(value: object) -> dict[str, Any]:
    """Return a value as a notebook shows it: an image as PNG, anything else by its repr."""
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(file, "PNG", optimize=True)
        text = f"<image of {value.width} x {value.height} pixels>"
        return {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": [text]}
    return {"text/plain": repr(value).splitlines(keepends=True)}


def main(arguments: list[str]) -> int:
    """Run a notebook and write it back."""
    (path,) = map(Path, arguments)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    run_cells(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
