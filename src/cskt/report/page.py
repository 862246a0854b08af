"""The report: one HTML file with results, sections of evidence, facts, configuration and next commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cskt.errors import CsktError
from cskt.report.html import MAX_PAGE_BYTES, render
from cskt.report.sections import Section
from cskt.report.tables import METRIC_NAMES, ResultRow, table_grid

CROP_HEIGHTS_PIXELS = (288, 176, 112)
"""Tried in this order until the page is small enough; the first is sharp on a screen of double density."""


class Cell(NamedTuple):
    """A figure of the table of results."""

    text: str
    share: float | None
    """Fraction that a bar below the figure shows."""
    interval: tuple[float, float] | None
    """Ends of the 95 % interval, as fractions."""

    def __str__(self) -> str:
        return self.text


def write_report(
    path: Path,
    *,
    title: str,
    rows: Sequence[ResultRow],
    sections: Sequence[Section] = (),
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    facts: Mapping[str, str] | None = None,
    next_commands: Sequence[str] = (),
    headline: ResultRow | None = None,
) -> None:
    """Write a report; empty parts are left out.

    Args:
        path: the HTML file; its folder is made when missing.
        title: heading of the page.
        rows: the table of results, in the order to show.
        sections: tables, charts, sentences and answers, in the order to show; the image files of answers are read
            now and copied in, reduced.
        configs: name -> plain values as in `config.yaml`.
        facts: name -> text, such as time, machine, data set, seed and command.
        next_commands: commands that the reader may want to run next.
        headline: the row that is shown large above the table.

    Raises:
        CsktError: the answers hold so many images that the page would exceed 10 MB.
    """
    for crop_height in CROP_HEIGHTS_PIXELS:
        page = render(
            "report.html.j2",
            title=title,
            headline=headline,
            results=result_cells(rows) if rows else None,
            has_intervals=any(row.intervals for row in rows),
            sections=sections,
            facts=facts,
            next_commands=next_commands,
            configs=configs,
            crop_height=crop_height,
        )
        if len(page) <= MAX_PAGE_BYTES:
            break
    else:
        raise CsktError(f"{path}: the report would take {len(page) / 1e6:.0f} MB; show fewer answers")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)


def result_cells(rows: Sequence[ResultRow]) -> list[list[str | Cell]]:
    """Return the table of results, headings first, with a bar and an interval for each metric."""
    headings, *body = table_grid(rows)
    keys = {name: key for key, name in METRIC_NAMES.items()}
    table: list[list[str | Cell]] = [[*headings]]
    for row, texts in zip(rows, body, strict=True):
        cells = [
            Cell(text, row.metrics.get(keys.get(heading, "")), row.intervals.get(keys.get(heading, "")))
            for heading, text in zip(headings, texts, strict=True)
        ]
        table.append([texts[0], *cells[1:]])
    return table
