"""Tables of results: their cells as text, and the forms in which they are written.

A grid is a table of text, headings first. Markdown, LaTeX, the HTML page and, with fewer columns, the terminal show the
same grid; CSV and JSON hold records of numbers instead.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text
from tabulate import tabulate

from cskt.errors import CsktError
from cskt.report.numbers import METRIC_NAMES, UNKNOWN, difference_text, parameter_text, percent
from cskt.utils.console import console, literal
from cskt.utils.csv_cells import csv_text
from cskt.utils.terminal import json_text, printable

Grid = Sequence[Sequence[str]]

TEXT_COLUMNS = ("Method", "Trained on", "Note", "Setting")
"""Headings of columns that are aligned left; all others are numbers."""
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}
"""Suffix of a file -> format of its table."""
FORMATS = ("terminal", *SUFFIXES.values())
ROUNDING = 1e-9
"""Largest difference of two equal metrics."""

MARKDOWN_SPECIAL = re.compile(r"[\\`*_\[\]<|~$]|&(?=[#A-Za-z])")
"""Characters with a meaning in Markdown; `&` only where an entity may follow."""
LATEX_MATH = str.maketrans({
    "–": "--", "−": "$-$", "±": r"$\pm$", "Δ": r"$\Delta$", "|": r"\textbar{}",
    "[": "{[}", "*": "{*}",  # after a line break they would be its argument
})  # fmt: skip
"""Characters that LaTeX does not typeset as they are and tabulate leaves unchanged."""


class Standing(enum.Enum):
    """R1 of a model against R1 of zero-shot CLIP on the same queries. The value is a word of the page and its style."""

    ABOVE = "above"
    BELOW = "below"
    UNCLEAR = "unclear"
    """The 95 % interval includes zero-shot CLIP, or both are equal."""
    UNKNOWN = ""


@dataclass(frozen=True)
class ResultRow:
    """One row of a table of results."""

    label: str
    """Name of the model: `CLIP zero-shot`, `cskt (best epoch)`."""
    metrics: Mapping[str, float]
    """`RetrievalMetrics.summary()`, fractions in [0, 1]; unknown ones may be left out."""
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    note: str = ""
    """A condition that the reader must know, such as `selected on test`."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Key of a metric -> ends of its 95 % interval, as fractions."""
    deviations: Mapping[str, float] = field(default_factory=dict)
    """Key of a metric -> standard deviation over seeds, as a fraction, of a row that is a mean over seeds."""
    zero_shot_r1: float | None = None
    """R1 of zero-shot CLIP on the same queries, a fraction; None if unknown, and for zero-shot CLIP itself."""

    def __post_init__(self) -> None:
        for key in METRIC_NAMES.keys() & self.metrics.keys():
            if not 0 <= self.metrics[key] <= 1:
                raise CsktError(f"row '{self.label}': {key} is {self.metrics[key]}; expected a fraction in [0, 1]")

    @property
    def standing(self) -> Standing:
        """Compare the 95 % interval of R1 with zero-shot CLIP; without an interval, R1 itself."""
        r1, reference = self.metrics.get("r1"), self.zero_shot_r1
        if r1 is None or reference is None:
            return Standing.UNKNOWN
        low, high = self.intervals.get("r1", (r1, r1))
        if low > reference + ROUNDING:
            return Standing.ABOVE
        return Standing.BELOW if high < reference - ROUNDING else Standing.UNCLEAR

    @property
    def against_zero_shot(self) -> str:
        """Difference of R1 from zero-shot CLIP in percentage points, with its sign."""
        if self.standing is Standing.UNKNOWN or self.zero_shot_r1 is None:
            return UNKNOWN
        return difference_text(self.metrics["r1"] - self.zero_shot_r1)


def note_text(row: ResultRow) -> str:
    """Return the row's note and the number of queries without a right image, which the means leave out."""
    unmatched = int(row.metrics.get("num_unmatched_queries", 0))
    parts = [row.note] if row.note else []
    if unmatched:
        parts.append(f"{unmatched:,} of {int(row.metrics['num_queries']):,} queries have no match")
    return "; ".join(parts)


def table_grid(rows: Sequence[ResultRow], *, with_notes: bool = True) -> list[list[str]]:
    """Return a table of results as text, headings first, without the optional columns that are empty in all rows."""
    columns = [["Method", *(row.label for row in rows)]]
    columns += [[name, *(percent(row.metrics.get(key)) for row in rows)] for key, name in METRIC_NAMES.items()]
    optional = [
        ["Trained", *(parameter_text(row.trainable_parameters, row.total_parameters) for row in rows)],
        ["Note", *(note_text(row) for row in rows)],
    ]
    columns += [column for column in optional[: 1 + with_notes] if set(column[1:]) - {"", UNKNOWN}]
    return [list(line) for line in zip(*columns, strict=True)]


def is_number_column(heading: str) -> bool:
    """Return whether the column under a heading holds numbers, which are aligned right."""
    return heading not in TEXT_COLUMNS


def bare_table(title: str, explanation: str, notes: Sequence[tuple[str, str]] = ()) -> Table:
    """Return a table for the terminal without columns: title above, explanation and labelled notes below, literally."""
    caption = Text(printable(explanation, keep="\n"), style="dim")
    for label, note in notes:
        if note:
            caption.append("\n" + printable(f"{label}: {note}"), style="not dim yellow")
    return Table(
        title=Text(printable(title), style="bold"), title_justify="left", caption=caption, caption_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_style="", caption_style="",
    )  # fmt: skip


def result_table(rows: Sequence[ResultRow], title: str) -> Table:
    """Return a table of results in percent for a terminal of 80 columns or more, notes below it."""
    headings, *body = table_grid(rows, with_notes=False)
    table = bare_table(title, "percent, higher is better", [(row.label, note_text(row)) for row in rows])
    for heading in headings:
        is_number = is_number_column(heading)
        # a narrow terminal folds labels, never a number
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row, cells in zip(rows, body, strict=True):
        table.add_row(*map(literal, cells))
        if row.deviations:
            table.add_row("± (standard deviation)", *(percent(row.deviations.get(key)) for key in METRIC_NAMES))
    return table


def table_text(
    form: str,
    *,
    grid: Grid,
    records: Sequence[Mapping[str, Any]],
    content: object,
    terminal: Callable[[int], Table],
    title: str = "",
    lines: Sequence[str] = (),
) -> str:
    """Return a table in one of `FORMATS`, ending in a newline.

    Args:
        grid: cells of Markdown and LaTeX, between the title and the lines of an explanation.
        records: rows of CSV, all with the same keys.
        content: value of JSON.
        terminal: makes the table for a terminal of so many columns.
    """
    if form == "json":
        return json_text(content, indent=1) + "\n"
    if form == "csv":
        return csv_text([list(records[0]), *(list(record.values()) for record in records)])
    if form == "markdown":
        heading = [markdown_cell(title), ""] if title else []
        return "\n".join([*heading, markdown(grid), *map(markdown_cell, lines), ""])
    if form == "latex":
        return latex(grid, [title, *lines] if title else lines)
    screen = console()
    with screen.capture() as capture:
        screen.print(terminal(screen.width))
    return capture.get()


def markdown(grid: Grid) -> str:
    """Return a grid as a GitHub Markdown table that ends in a newline; cells are escaped."""
    return _tabulated([[markdown_cell(cell) for cell in row] for row in grid], "pipe")


def latex(grid: Grid, comments: Sequence[str] = ()) -> str:
    """Return a grid as a LaTeX table for the package booktabs, below comments; cells are escaped."""
    # tabulate escapes the characters of LaTeX's own syntax
    table = _tabulated([[_one_line(cell) for cell in row] for row in grid], "latex_booktabs").translate(LATEX_MATH)
    return "".join(f"% {printable(line)}\n" for line in [*comments, r"\usepackage{booktabs}"]) + table


def markdown_cell(text: str) -> str:
    """Return text on one line, escaped for Markdown."""
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", _one_line(text))


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _tabulated(grid: Grid, table_format: str) -> str:
    headings, *body = grid
    alignment = ["right" if is_number_column(heading) else "left" for heading in headings]
    return tabulate(body, headings, table_format, colalign=alignment, disable_numparse=True) + "\n"
