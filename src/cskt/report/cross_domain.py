"""Trained on one data set, tested on others: a table with the runs as lines and the data sets as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from cskt.report.tables import bare_table, percent
from cskt.utils.console import literal
from cskt.utils.terminal import printable

IN_DOMAIN = "*"
LEGEND = f"R1 of text to image in percent; {IN_DOMAIN} in domain: tested on the data set that it was trained on"


@dataclass(frozen=True)
class MatrixCell:
    """One run, or several seeds of it, on one data set; fractions."""

    r1: float
    mean_ap: float
    in_domain: bool
    r1_deviation: float | None = None
    """Standard deviation over seeds."""


@dataclass(frozen=True)
class MatrixRow:
    """One run, or several seeds of it."""

    label: str
    trained_on: str
    """Empty where nothing was trained."""
    cells: Sequence[MatrixCell]
    """One per data set, in the order of the columns."""
    note: str = ""


def matrix_grid(rows: Sequence[MatrixRow], datasets: Sequence[str]) -> list[list[str]]:
    """R1 in percent as text, headings first; the notes are left out where there are none."""
    grid = [["Method", "Trained on", *datasets, "Note"]]
    grid += [[row.label, row.trained_on or "nothing", *map(_cell, row.cells), row.note] for row in rows]
    return grid if any(row.note for row in rows) else [line[:-1] for line in grid]


def matrix_records(rows: Sequence[MatrixRow], datasets: Sequence[str]) -> list[dict[str, object]]:
    """One flat record of fractions for each run and data set, all with the same keys."""
    return [
        {
            "label": row.label,
            "trained_on": row.trained_on or None,
            "tested_on": dataset,
            "in_domain": cell.in_domain,
            "r1": cell.r1,
            "r1_deviation": cell.r1_deviation,
            "mean_ap": cell.mean_ap,
            "note": row.note,
        }
        for row in rows
        for dataset, cell in zip(datasets, row.cells, strict=True)
    ]


def matrix_table(rows: Sequence[MatrixRow], datasets: Sequence[str], title: str) -> Table:
    """The table for a terminal, with notes below; names fold, figures never."""
    caption = Text(LEGEND, style="dim")
    for row in rows:
        if row.note:
            caption.append("\n" + printable(f"{row.label}: {row.note}"), style="not dim yellow")
    table = bare_table(title, caption)
    table.add_column("Method", overflow="fold")
    table.add_column("Trained on", overflow="fold")
    for place, dataset in enumerate(datasets):
        widest = max(len(line) for row in rows for line in _terminal_cell(row.cells[place]).plain.splitlines())
        # a heading may fold, a figure may not
        table.add_column(literal(dataset), justify="right", min_width=widest, overflow="fold")
    for row in rows:
        table.add_row(literal(row.label), literal(row.trained_on or "nothing"), *map(_terminal_cell, row.cells))
    return table


def _cell(cell: MatrixCell) -> str:
    return " ".join([percent(cell.r1), *_deviation(cell), *([IN_DOMAIN] if cell.in_domain else [])])


def _terminal_cell(cell: MatrixCell) -> Text:
    """The deviation stands below, for several data sets to have room."""
    text = Text(percent(cell.r1), style="bold" if cell.in_domain else "")
    return text.append(f" {IN_DOMAIN}" if cell.in_domain else "").append(
        "".join(f"\n{part}" for part in _deviation(cell))
    )


def _deviation(cell: MatrixCell) -> list[str]:
    return [] if cell.r1_deviation is None else [f"± {100 * cell.r1_deviation:.2f}"]
