"""Tables of text, headings first, as Markdown, LaTeX or CSV, with every cell escaped for its format."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cskt.utils.csv_cells import csv_text
from cskt.utils.terminal import printable

Grid = Sequence[Sequence[str]]

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "Δ": r"$\Delta$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "*": "{*}",  # behind a line break they would be an argument of it
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip
MARKDOWN_SPECIAL = re.compile(r"[\\`*_\[\]<|~$]|&(?=[#A-Za-z])")
"""Characters with a meaning in Markdown; `&` only where an entity may follow."""


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
        *(f"% {printable(line)}" for line in caption.splitlines()),
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
        r"\end{tabular}", "",
    ])  # fmt: skip


def csv_of(records: Sequence[dict[str, object]]) -> str:
    """Return records with the same keys as CSV, the keys first; what is not known is an empty cell."""
    return csv_text([list(records[0]), *(list(record.values()) for record in records)])


def markdown_cell(text: str) -> str:
    """Return text on one line that Markdown shows as it is."""
    line = printable(" ".join(text.split()))
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", line)


def latex_cell(text: str) -> str:
    """Return text on one line that LaTeX sets as it is."""
    line = printable(" ".join(text.split()))
    return "".join(LATEX_SPECIAL.get(character, character) for character in line)
