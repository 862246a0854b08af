"""Models trained on one data set and tested on others: one row per model, one column per data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from cskt.evaluation.results import Result
from cskt.evaluation.statistics import MeanAndDeviation, mean_and_deviation
from cskt.report.numbers import percent
from cskt.report.tables import bare_table, table_text
from cskt.utils.console import literal

IN_DOMAIN = "*"
LEGEND = f"R1 of text to image in percent; {IN_DOMAIN} in domain: tested on the data set that it was trained on"


@dataclass(frozen=True)
class CrossDomainCell:
    """One model on one data set, over one or several seeds; fractions."""

    r1: MeanAndDeviation
    mean_ap: MeanAndDeviation
    in_domain: bool


@dataclass(frozen=True)
class CrossDomainRow:
    """One model, of one or several seeds."""

    label: str
    trained_on: str
    """Name of a data set; empty if nothing was trained."""
    cells: Sequence[CrossDomainCell]
    """One per data set, in the order of the columns."""
    note: str = ""


def cross_domain_row(results: Sequence[Sequence[Result]], trained_on: str, in_domain: Sequence[bool]) -> CrossDomainRow:
    """Return the row of a model from its results by seed and data set; `in_domain` marks that of its training."""
    cells = []
    for seeds, is_own in zip(zip(*results, strict=True), in_domain, strict=True):
        metrics = [result.metrics["t2i"] for result in seeds]
        r1, mean_ap = (mean_and_deviation([one[name] for one in metrics]) for name in ("r1", "mean_ap"))
        cells.append(CrossDomainCell(r1, mean_ap, is_own))
    first = results[0][0]
    return CrossDomainRow(first.label, trained_on, cells, first.note)


def cross_domain_text(rows: Sequence[CrossDomainRow], datasets: Sequence[str], split: str, form: str) -> str:
    """Return the table in one of `tables.FORMATS`, ending in a newline."""
    records = cross_domain_records(rows, datasets)
    return table_text(
        form,
        grid=cross_domain_grid(rows, datasets),
        records=records,
        content={"split": split, "cells": records},
        terminal=lambda _: cross_domain_table(rows, datasets, f"trained on x tested on, split {split}"),
        lines=[LEGEND],
    )


def cross_domain_grid(rows: Sequence[CrossDomainRow], datasets: Sequence[str]) -> list[list[str]]:
    """Return R1 in percent as text, headings first; without notes if there are none."""
    grid = [["Method", "Trained on", *datasets, "Note"]]
    for row in rows:
        cells = [percent(cell.r1.mean) + _deviation(cell, " ") + _mark(cell) for cell in row.cells]
        grid.append([row.label, row.trained_on or "nothing", *cells, row.note])
    return grid if any(row.note for row in rows) else [line[:-1] for line in grid]


def cross_domain_records(rows: Sequence[CrossDomainRow], datasets: Sequence[str]) -> list[dict[str, object]]:
    """Return one flat record of fractions for each model and data set, all with the same keys."""
    return [
        {
            "label": row.label,
            "trained_on": row.trained_on or None,
            "tested_on": dataset,
            "in_domain": cell.in_domain,
            "r1": cell.r1.mean,
            "r1_deviation": cell.r1.deviation,
            "mean_ap": cell.mean_ap.mean,
            "note": row.note,
        }
        for row in rows
        for dataset, cell in zip(datasets, row.cells, strict=True)
    ]


def cross_domain_table(rows: Sequence[CrossDomainRow], datasets: Sequence[str], title: str) -> Table:
    """Return the table for a terminal, notes below it; names fold, numbers do not."""
    table = bare_table(title, LEGEND, [(row.label, row.note) for row in rows])
    table.add_column("Method", overflow="fold")
    table.add_column("Trained on", overflow="fold")
    texts = [[percent(cell.r1.mean) + _mark(cell) + _deviation(cell, "\n") for cell in row.cells] for row in rows]
    for dataset, *column in zip(datasets, *texts, strict=True):
        widest = max(len(line) for text in column for line in text.splitlines())
        table.add_column(literal(dataset), justify="right", min_width=widest, overflow="fold")
    for row, row_texts in zip(rows, texts, strict=True):
        cells = [Text(text, "bold" if cell.in_domain else "") for text, cell in zip(row_texts, row.cells, strict=True)]
        table.add_row(literal(row.label), literal(row.trained_on or "nothing"), *cells)
    return table


def _mark(cell: CrossDomainCell) -> str:
    return f" {IN_DOMAIN}" if cell.in_domain else ""


def _deviation(cell: CrossDomainCell, separator: str) -> str:
    return "" if cell.r1.deviation is None else f"{separator}± {100 * cell.r1.deviation:.2f}"
