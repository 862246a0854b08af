"""HTML pages from the templates in `report/templates`, each one file: a report, and the answers of a gallery.

A page needs no other file: pictures are data URIs, the style sheet (`assets/report.css`) is copied in, there is no
script, and its content security policy forbids every network request. Jinja2 escapes every value.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cskt.errors import CsktError, file_system_errors
from cskt.report.numbers import METRIC_NAMES, parameter_text, percent
from cskt.report.people import ShownPerson
from cskt.report.pictured_results import PicturedResult, load_crop
from cskt.report.style import svg
from cskt.report.tables import Grid, ResultRow, Standing, is_number_column, note_text, table_grid

MAX_PAGE_BYTES = 10_000_000
"""Largest page that is written; browsers get slow beyond."""
CROP_HEIGHTS_PIXELS = (288, 176, 112)
"""Tried in this order until the page is small enough; the first is sharp on a screen of double density."""
MIN_PIXELS_PER_INCH = 69
"""A narrow screen scrolls a chart rather than showing it smaller, so that its words stay readable."""

AGAINST_ZERO_SHOT = "R1 vs zero-shot"
"""Heading of the column that compares with zero-shot CLIP."""


@dataclass(frozen=True)
class Chart:
    """A figure and its texts."""

    name: str
    """Stem of the file that it is also written to: `cmc`."""
    figure: Figure
    alt: str
    """Alternative text for readers who do not see the figure."""
    title: str = ""
    """Above the figure, in a section with several."""

    @property
    def least_width_pixels(self) -> int:
        """Width below which a narrow screen scrolls."""
        return round(MIN_PIXELS_PER_INCH * self.figure.get_figwidth())


@dataclass(frozen=True)
class Section:
    """One part of a report; empty fields are left out."""

    heading: str
    note: str = ""
    """Content of the section, how to read it, and how it was chosen."""
    charts: Sequence[Chart] = ()
    sentences: Sequence[tuple[str, str]] = ()
    """Captions, each with a remark on it."""
    warnings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Label of a run -> its warnings; the label is empty on the page of a single run."""
    commands: Sequence[str] = ()
    """Commands that add what is missing, below the table."""
    answers: Sequence[PicturedResult] = ()
    half: bool = False
    """True: beside the next part on a wide screen."""
    table: Grid = ()
    """Rows of text: headings first, the name of a row in front."""


class Cell(NamedTuple):
    """A cell of the table of results."""

    text: str
    share: float | None = None
    """Fraction that a bar below the text shows."""
    small: str = ""
    """Second line: the 95 % interval of a metric, the note of a model."""
    standing: str = ""
    """A word of `Standing`; that of the first cell is the style of the whole row."""

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
    """Write a report as one HTML file, whose folder is created if missing; empty parts are left out.

    Args:
        path, title, rows: the file, its heading, and the table of results.
        sections: parts below the table; image files of answers are read now and copied in, reduced.
        configs: name -> plain values as in `config.yaml`.
        facts: name -> text, such as time, machine, data set, seed and command.
        next_commands: commands that the reader may want to run next.
        headline: the row that is shown large above the table.
    """
    for crop_height in CROP_HEIGHTS_PIXELS:
        page = _render(
            "report.html.j2",
            title=title,
            headline=headline,
            results=result_cells(rows) if rows else None,
            has_intervals=any(row.intervals for row in rows),
            all_have_intervals=all(row.intervals for row in rows),
            has_standings=any(row.standing is not Standing.UNKNOWN for row in rows),
            sections=sections,
            facts=facts,
            next_commands=next_commands,
            configs=configs,
            crop_height=crop_height,
        )
        if len(page) <= MAX_PAGE_BYTES:
            break
    _write(path, page, "the report", "show fewer answers")


def write_answer_page(path: Path, title: str, answers: Sequence[PicturedResult]) -> None:
    """Write the answers of a gallery, whose pictures are JPEG, as one HTML file."""
    page = _render("answers.html.j2", title=title, answers=answers)
    _write(path, page, "the page", "show fewer crops (-k) or fewer sentences")


def write_people_page(path: Path, title: str, people: Sequence[ShownPerson]) -> None:
    """Write people with their images and captions as one HTML file; images are read now and copied in, reduced."""
    for crop_height in CROP_HEIGHTS_PIXELS:
        page = _render("people.html.j2", title=title, people=people, crop_height=crop_height)
        if len(page) <= MAX_PAGE_BYTES:
            break
    _write(path, page, "the page", "show fewer people or images")


def _write(path: Path, page: bytes, name: str, remedy: str) -> None:
    if len(page) > MAX_PAGE_BYTES:
        raise CsktError(f"{path}: {name} would take {len(page) / 1e6:.0f} MB; {remedy}")
    with file_system_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)


def _render(template: str, **values: Any) -> bytes:
    style = resources.files("cskt").joinpath("assets", "report.css").read_text(encoding="utf-8")
    return _environment().get_template(template).render(style=Markup(style), **values).encode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cskt.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["number_column"] = is_number_column
    environment.filters |= {
        "chart_uri": lambda chart: data_uri(svg(chart.figure), "image/svg+xml"),
        "conditions": _conditions,
        "crop_uri": crop_uri,
        "data_uri": data_uri,
        "figures": _figures,
        "note": note_text,
        "standing_sentence": standing_sentence,
        "yaml": lambda config: yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
    }
    return environment


def data_uri(content: bytes, media_type: str) -> str:
    """Return bytes as a `data:` address that an HTML page can contain."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def crop_uri(image: Path | bytes, height_pixels: int) -> str | None:
    """Return an image as a JPEG data URI, at most so high and so wide; None if it cannot be read."""
    crop = load_crop(image)
    if crop is None:
        return None
    crop.thumbnail((height_pixels, height_pixels))
    file = io.BytesIO()
    crop.save(file, "JPEG", quality=85, optimize=True)
    return data_uri(file.getvalue(), "image/jpeg")


def _figures(row: ResultRow) -> list[tuple[str, str]]:
    return [(name, percent(row.metrics[key])) for key, name in METRIC_NAMES.items() if key in row.metrics]


def _conditions(row: ResultRow) -> str:
    """Return the conditions under which the metrics of a row were measured."""
    parts = []
    if "num_queries" in row.metrics and "num_gallery" in row.metrics:
        parts.append(f"{int(row.metrics['num_queries']):,} queries against {int(row.metrics['num_gallery']):,} images")
    if row.trainable_parameters is not None:
        parts.append(f"{parameter_text(row.trainable_parameters, row.total_parameters)} parameters trained")
    return " · ".join(parts)


def standing_sentence(row: ResultRow) -> str:
    """Return the comparison of R1 with zero-shot CLIP as a sentence; empty if unknown."""
    if row.standing is Standing.UNKNOWN:
        return ""
    start = f"R1 {row.against_zero_shot} points against zero-shot CLIP ({percent(row.zero_shot_r1)})"
    if "r1" not in row.intervals:
        return f"{start}: {'equal' if row.standing is Standing.UNCLEAR else row.standing.value}"
    interval = f"95 % interval of R1, {_interval_text(row.intervals['r1'])},"
    return {
        Standing.ABOVE: f"{start}: above, for the whole {interval} is above it",
        Standing.BELOW: f"{start}: below, for the whole {interval} is below it",
        Standing.UNCLEAR: f"{start}: no clear difference, for the {interval} includes it",
    }[row.standing]


def result_cells(rows: Sequence[ResultRow]) -> list[list[str | Cell]]:
    """Return the table of results, headings first: metrics with a bar and an interval, notes below the labels.

    The column against zero-shot CLIP is left out if it is unknown for all rows.
    """
    headings, *body = table_grid(rows, with_notes=False)
    keys = {name: key for key, name in METRIC_NAMES.items()}
    table: list[list[str | Cell]] = [[*headings]]
    for row, (label, *texts) in zip(rows, body, strict=True):
        cells: list[str | Cell] = [Cell(label, small=note_text(row), standing=row.standing.value)]
        for heading, text in zip(headings[1:], texts, strict=True):
            key = keys.get(heading, "")
            interval = row.intervals.get(key)
            cells.append(Cell(text, row.metrics.get(key), _interval_text(interval) if interval else ""))
        table.append(cells)
    if any(row.standing is not Standing.UNKNOWN for row in rows):
        table[0].insert(2, AGAINST_ZERO_SHOT)
        for cells, row in zip(table[1:], rows, strict=True):
            cells.insert(2, Cell(row.against_zero_shot, small=row.standing.value, standing=row.standing.value))
    return table


def _interval_text(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * low:.1f} – {100 * high:.1f}"
