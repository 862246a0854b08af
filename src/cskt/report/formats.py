"""A table of text, headings first, as Markdown, LaTeX or CSV; whatever a cell holds, it stays text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

Grid = Sequence[Sequence[str]]

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "Δ": r"$\Delta$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip
MARKDOWN_SPECIAL = "\\`*_[]<|~"


def markdown(grid: Grid, is_number: Callable[[str], bool]) -> str:
    """A table as GitHub Markdown, ending in a newline.

    Args:
        grid: lines of cells, the headings first.
        is_number: whether the column under a heading lines up on the right.
    """
    headings, *body = grid
    rule = ["---:" if is_number(heading) else "---" for heading in headings]
    lines = [[markdown_cell(cell) for cell in cells] for cells in (headings, *body)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (lines[0], rule, *lines[1:]))


def latex(grid: Grid, is_number: Callable[[str], bool], caption: str = "") -> str:
    """A table as LaTeX for the package booktabs, ending in a newline.

    Args:
        grid: lines of cells, the headings first.
        is_number: whether the column under a heading lines up on the right.
        caption: a comment above the table, for the reader of the source.
    """
    headings, *body = grid
    columns = "".join("r" if is_number(heading) else "l" for heading in headings)
    lines = [" & ".join(map(latex_cell, cells)) + r" \\" for cells in (headings, *body)]
    return "\n".join([
        *(f"% {line}" for line in caption.splitlines()),
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
        r"\end{tabular}", "",
    ])  # fmt: skip


def csv_text(records: Sequence[dict[str, object]]) -> str:
    """Records with the same keys as CSV, the keys first; what is not known is an empty cell."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def markdown_cell(text: str) -> str:
    """Text on one line that Markdown shows as it is."""
    return "".join(
        f"\\{character}" if character in MARKDOWN_SPECIAL else character for character in " ".join(text.split())
    )


def latex_cell(text: str) -> str:
    """Text on one line that LaTeX sets as it is."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in " ".join(text.split()))
