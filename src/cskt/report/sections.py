"""A section of the page: a heading, how to read it, and a table, charts, sentences or answers below."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from cskt.report.pictures import Answer, load_crop
from cskt.report.style import svg
from cskt.report.tables import is_number_column

LEAST_PIXELS_PER_INCH = 64
"""A narrow screen shows a drawing no smaller, so that its words stay readable: it scrolls."""


@dataclass(frozen=True)
class Chart:
    """A drawing with what it is called."""

    name: str
    """Stem of the file, where it is also written as a picture: `cmc`."""
    figure: Figure
    alt: str
    """What a reader who does not see the drawing is told."""
    title: str = ""
    """Shown above it where a section has several."""


@dataclass(frozen=True)
class Section:
    """One part of a report; what is empty is left out."""

    heading: str
    note: str = ""
    """What is seen, how to read it, and how the shown were chosen."""
    charts: Sequence[Chart] = ()
    sentences: Sequence[tuple[str, str]] = ()
    """Captions, each with a remark on it."""
    answers: Sequence[Answer] = ()
    half: bool = False
    """Beside the next part where the screen is wide."""
    table: Sequence[Sequence[str]] = ()
    """Rows of text, headings first, the name of a row in front."""


def section_html(section: Section, identifier: str, crop_height: int) -> str:
    """A section as HTML.

    Args:
        section: what it holds.
        identifier: of its heading, once on a page.
        crop_height: of the answers' pictures at most, in pixels.
    """
    parts = []
    if section.note:
        note = escape(section.note).replace(" %", "&nbsp;%")
        parts.append(f'<p class="muted">{note}</p>')
    if section.table:
        parts.append(_table_card(section.table, identifier))
    if section.charts:
        cards = "\n".join(_chart_card(chart) for chart in section.charts)
        parts.append(cards if len(section.charts) == 1 else f'<div class="charts">{cards}</div>')
    if section.sentences:
        items = "".join(
            f"<li><p>{escape(text)}</p><p>{escape(remark)}</p></li>\n" for text, remark in section.sentences
        )
        parts.append(f'<ol class="card sentences">\n{items}</ol>')
    if section.answers:
        parts.append(_answers_legend(section.answers))
        parts += [_answer_article(answer, crop_height) for answer in section.answers]
    half = ' class="half"' if section.half else ""
    heading = f'<h2 id="{identifier}">{escape(section.heading)}</h2>'
    return f'<section{half} aria-labelledby="{identifier}">{heading}\n' + "\n".join(parts) + "</section>"


def data_uri(media_type: str, content: bytes) -> str:
    """Bytes as a `data:` address that an HTML page can hold."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def crop_uri(path: str | Path, height_pixels: int) -> str | None:
    """An image file as a JPEG data URI of at most a height and as much width; none where it cannot be read."""
    crop = load_crop(path)
    if crop is None:
        return None
    crop.thumbnail((height_pixels, height_pixels))
    file = io.BytesIO()
    crop.save(file, "JPEG", quality=85, optimize=True)
    return data_uri("image/jpeg", file.getvalue())


def number_class(heading: str) -> str:
    """The attribute that lines a column of figures up on the right, as its cells and its heading carry it."""
    return ' class="number"' if is_number_column(heading) else ""


def cell_class(heading: str) -> str:
    """The attribute of the cells below a heading."""
    return ' class="note-cell"' if heading == "Note" else number_class(heading)


def _table_card(table: Sequence[Sequence[str]], identifier: str) -> str:
    headings, *rows = table
    head = "".join(f'<th scope="col"{number_class(name)}>{escape(name)}</th>' for name in headings)
    lines = []
    for label, *cells in rows:
        line = f'<th scope="row">{escape(label)}</th>'
        for heading, cell in zip(headings[1:], cells, strict=True):
            line += f"<td{cell_class(heading)}>{escape(cell)}</td>"
        lines.append(f"<tr>{line}</tr>\n")
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-labelledby="{identifier}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody></table></div>"
    )


def _chart_card(chart: Chart) -> str:
    source = data_uri("image/svg+xml", svg(chart.figure))
    title = f"<h3>{escape(chart.title)}</h3>" if chart.title else ""
    least = round(LEAST_PIXELS_PER_INCH * chart.figure.get_figwidth())
    image = f'<img class="chart" style="min-width:{least}px" src="{source}" alt="{escape(chart.alt)}">'
    return f'<div class="card chart-card">{title}{image}</div>'


def _answers_legend(answers: Sequence[Answer]) -> str:
    verdicts = ""
    if any(answer.right is not None for answer in answers):
        verdicts = (
            ' <span class="mark right">✓</span> the person sought <span class="mark wrong">✗</span> somebody else'
        )
    return f'<p class="muted">Below each image its rank and cosine similarity.{verdicts}</p>'


def _answer_article(answer: Answer, crop_height: int) -> str:
    figures = []
    for position, (hit, image_path) in enumerate(zip(answer.hits, answer.image_paths, strict=True)):
        verdict = {True: "right", False: "wrong", None: "unknown"}[answer.verdict(position)]
        mark = {"right": "✓", "wrong": "✗", "unknown": ""}[verdict]
        name = escape(hit.image_id)
        source = crop_uri(image_path, crop_height)
        if source is None:
            picture = f'<div class="missing" role="img" aria-label="{name}: image not found">no image</div>'
        else:
            spoken = "" if verdict == "unknown" else f", {verdict}"
            picture = f'<img src="{source}" alt="Rank {hit.rank}{spoken}: {name}" loading="lazy">'
        figures.append(
            f'<figure class="hit {verdict}" title="{name}">{picture}<figcaption><b>{hit.rank}</b> '
            f'<span>{hit.score:.3f}</span> <span class="mark {verdict}" aria-hidden="true">{mark}</span>'
            "</figcaption></figure>"
        )
    grid = f'<div class="hits">{"".join(figures)}</div>' if figures else '<p class="muted">No image found.</p>'
    return f'<article class="card"><h3 class="query">{escape(answer.query)}</h3>{_outcome(answer)}{grid}</article>'


def _outcome(answer: Answer) -> str:
    if answer.right is None or not answer.hits:
        return ""
    ranks = [hit.rank for hit, right in zip(answer.hits, answer.right, strict=True) if right]
    text = f"first right image at rank {min(ranks)}" if ranks else f"no right image among the first {len(answer.hits)}"
    return f'<p class="muted">{text}</p>'
