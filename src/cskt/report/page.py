"""One HTML file that shows a run, or several: results, sections of evidence, facts, configuration, what to do next.

The file needs nothing beside itself: pictures are data URIs, the style sheet (`assets/report.css`) is copied in, there
is no script, and its content security policy forbids every network request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from cskt.report.sections import Section, cell_class, number_class, section_html
from cskt.report.tables import METRIC_NAMES, ResultRow, note_text, parameter_text, percent, table_grid

MAX_PAGE_BYTES = 10_000_000
CROP_HEIGHTS_PIXELS = (288, 176, 112)
"""Tried in this order until the page is small enough; the first is sharp on a screen of double density."""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
"""


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
    """Write a report; parts that are empty are left out.

    Args:
        path: the HTML file; its folder is made when missing.
        title: heading of the page.
        rows: the table of results, in the order to show.
        sections: tables, charts, sentences and answers, in the order to show; the image files of answers are read
            now and copied in, reduced.
        configs: what each is called -> plain values as in `config.yaml`.
        facts: name -> text, such as time, machine, data set, seed and command.
        next_commands: commands that the reader may want to run next.
        headline: the row that the page is about, shown large above the table.

    Raises:
        ValueError: the answers hold so many images that the page would exceed 10 MB.
    """
    for crop_height in CROP_HEIGHTS_PIXELS:
        parts = [
            headline_section(headline) if headline else "",
            results_section(rows) if rows else "",
            *(section_html(section, f"part-{number}", crop_height) for number, section in enumerate(sections, start=1)),
            facts_section(facts) if facts else "",
            next_section(next_commands) if next_commands else "",
            config_section(configs) if configs else "",
        ]
        page = page_frame(title, parts).encode()
        if len(page) <= MAX_PAGE_BYTES:
            break
    else:
        raise ValueError(f"{path}: the report would take {len(page) / 1e6:.0f} MB; show fewer answers")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)


def page_frame(title: str, sections: Sequence[str]) -> str:
    """A whole HTML document around sections that are HTML already."""
    style = resources.files("cskt").joinpath("assets", "report.css").read_text(encoding="utf-8")
    head = HEAD.format(title=escape(title), style=style)
    body = "\n".join(section for section in sections if section)
    return f"{head}<body>\n<main>\n<header><h1>{escape(title)}</h1></header>\n{body}\n</main>\n</body>\n</html>\n"


def headline_section(row: ResultRow) -> str:
    """The figures of one row, large, with the conditions under which they were reached."""
    tiles = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{percent(row.metrics.get(key))}<small> %</small></dd></div>'
        for key, name in METRIC_NAMES.items()
        if key in row.metrics
    )
    conditions = []
    if "num_queries" in row.metrics and "num_gallery" in row.metrics:
        counts = int(row.metrics["num_queries"]), int(row.metrics["num_gallery"])
        conditions.append("{:,} queries against {:,} images".format(*counts))
    if row.trainable_parameters is not None:
        conditions.append(f"{parameter_text(row.trainable_parameters, row.total_parameters)} parameters trained")
    text = escape(" · ".join(conditions))
    note = f'<span class="note">{escape(note_text(row))}</span>' if note_text(row) else ""
    return (
        f'<section class="headline" aria-label="Headline"><p class="method">{escape(row.label)} {note}</p>\n'
        f'<dl class="tiles">{tiles}</dl>\n<p class="muted">{text}</p></section>'
    )


def results_section(rows: Sequence[ResultRow]) -> str:
    """The table of results, with a thin bar under each percentage."""
    headings, *body = table_grid(rows)
    head = "".join(f'<th scope="col"{number_class(name)}>{name}</th>' for name in headings)
    lines = []
    for row, (label, *cells) in zip(rows, body, strict=True):
        metrics = {name: row.metrics.get(key) for key, name in METRIC_NAMES.items()}
        intervals = {METRIC_NAMES[key]: ends for key, ends in row.intervals.items()}
        line = f'<th scope="row">{escape(label)}</th>'
        for heading, cell in zip(headings[1:], cells, strict=True):
            fraction = metrics.get(heading)
            bar = "" if fraction is None else f'<i class="bar" style="--share:{100 * fraction:.1f}%"></i>'
            ends = intervals.get(heading)
            bar += "" if ends is None else f"<small>{100 * ends[0]:.1f} – {100 * ends[1]:.1f}</small>"
            line += f"<td{cell_class(heading)}>{escape(cell)}{bar}</td>"
        lines.append(f"<tr>{line}</tr>")
    small = " Small: 95&nbsp;% intervals, over people." if any(row.intervals for row in rows) else ""
    return (
        '<section aria-labelledby="results"><h2 id="results">Results</h2>\n'
        '<div class="card scroll" tabindex="0" role="region" aria-labelledby="results"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>\n"
        '<p class="muted">All figures in percent, higher is better. R1, R5, R10: queries with a right image among the '
        f"first 1, 5, 10. mAP: mean average precision. mINP: how early the last right image comes.{small}</p></section>"
    )


def facts_section(facts: Mapping[str, str]) -> str:
    """When, where and with what the results were made."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>\n" for name, text in facts.items())
    return (
        '<section class="half" aria-labelledby="facts"><h2 id="facts">How it was made</h2>\n'
        f'<dl class="card facts">\n{items}</dl></section>'
    )


def next_section(commands: Sequence[str]) -> str:
    """Commands to run next; one click selects a whole command."""
    items = "".join(f"<li><pre><code>{escape(command)}</code></pre></li>\n" for command in commands)
    return f'<section aria-labelledby="next"><h2 id="next">Next</h2>\n<ul class="commands">\n{items}</ul></section>'


def config_section(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """Whole configurations as YAML, folded away."""
    folded = []
    for name, config in configs.items():
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        folded.append(f'<details class="card"><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>\n')
    return f'<section aria-labelledby="config"><h2 id="config">Configuration</h2>\n{"".join(folded)}</section>'
