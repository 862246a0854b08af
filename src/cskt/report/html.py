"""HTML pages from the templates in `report/templates`, each one file.

A page needs nothing beside itself: pictures are data URIs, the style sheet (`assets/report.css`) is copied in, there is
no script, and its content security policy forbids every network request. Jinja2 escapes every value.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cskt.report.pictures import load_crop
from cskt.report.style import svg
from cskt.report.tables import METRIC_NAMES, ResultRow, is_number_column, note_text, parameter_text, percent

MAX_PAGE_BYTES = 10_000_000
"""Largest page that is written; browsers get slow beyond."""


def render(template: str, **values: Any) -> bytes:
    """Return a page as UTF-8.

    Args:
        template: file name in `report/templates`.
        values: names that the template uses; text is escaped.
    """
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
        "yaml": lambda config: yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
    }
    return environment


def data_uri(content: bytes, media_type: str) -> str:
    """Return bytes as a `data:` address that an HTML page can hold."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def crop_uri(path: str | Path, height_pixels: int) -> str | None:
    """Return an image file as a JPEG data URI, at most so high and so wide; None if it cannot be read."""
    crop = load_crop(path)
    if crop is None:
        return None
    crop.thumbnail((height_pixels, height_pixels))
    file = io.BytesIO()
    crop.save(file, "JPEG", quality=85, optimize=True)
    return data_uri(file.getvalue(), "image/jpeg")


def _figures(row: ResultRow) -> list[tuple[str, str]]:
    return [(name, percent(row.metrics[key])) for key, name in METRIC_NAMES.items() if key in row.metrics]


def _conditions(row: ResultRow) -> str:
    """Return the conditions under which the figures of a row were reached."""
    parts = []
    if "num_queries" in row.metrics and "num_gallery" in row.metrics:
        parts.append(f"{int(row.metrics['num_queries']):,} queries against {int(row.metrics['num_gallery']):,} images")
    if row.trainable_parameters is not None:
        parts.append(f"{parameter_text(row.trainable_parameters, row.total_parameters)} parameters trained")
    return " · ".join(parts)
