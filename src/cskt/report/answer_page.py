"""Answers of a gallery as one HTML file: sentence, crops with score and metadata, heat maps where asked for.

Like a report (see `page`), the file needs nothing beside itself, has no script, and its content security policy forbids
every network request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from cskt.report.page import HEAD, MAX_PAGE_BYTES
from cskt.report.sections import data_uri
from cskt.types import Hit

STYLE = """
.query::before, .query::after { content: none; }
.crops { display: grid; gap: 20px 14px; margin-top: 14px; }
.crops { grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); }
.crops.explained { grid-template-columns: minmax(0, 1fr); }
.crop { min-width: 0; }
.crop img { display: block; border-radius: 8px; background: var(--line); }
.crop > img { width: 100%; aspect-ratio: 5 / 8; object-fit: contain; }
.crop figcaption { display: block; font-size: 0.82rem; line-height: 1.45; overflow-wrap: anywhere; }
.crop figcaption b { margin-right: 6px; }
.crop p, .crop dl { color: var(--muted); }
.crop div { display: flex; gap: 5px; }
.crop dt { flex: none; }
.crop dt::after { content: ":"; }
.maps { display: flex; flex-wrap: wrap; gap: 12px; list-style: none; margin: 0; padding: 0; }
.maps li { width: 124px; font-size: 0.82rem; color: var(--muted); text-align: center; }
.maps img { width: 100%; height: 200px; object-fit: contain; }
"""


@dataclass(frozen=True)
class PicturedHit:
    """A hit with its pictures."""

    hit: Hit
    picture: bytes
    """The crop as JPEG."""
    heat_maps: Sequence[tuple[str, bytes]] = ()
    """(what the map is of: the sentence, or a word; the crop under the map as JPEG)."""


@dataclass(frozen=True)
class PicturedAnswer:
    """What a gallery answered to one query."""

    query: str
    """As the page is to call it."""
    hits: Sequence[PicturedHit]
    note: str = ""
    """Why there are none, for instance."""


def write_answer_page(path: Path, title: str, answers: Sequence[PicturedAnswer]) -> None:
    """Write the page.

    Args:
        path: the HTML file; its folder is made when missing.
        title: heading of the page.
        answers: in the order to show.

    Raises:
        ValueError: it would exceed 10 MB.
    """
    style = resources.files("cskt").joinpath("assets", "report.css").read_text(encoding="utf-8") + STYLE
    articles = "\n".join(_article(answer) for answer in answers)
    legend = '<p class="muted">Below each crop its rank, its cosine similarity, and what is known of it.'
    if any(pictured.heat_maps for answer in answers for pictured in answer.hits):
        legend += " Beside it a heat map: where the model sees the sentence, and each of its words."
    page = (
        f"{HEAD.format(title=escape(title), style=style)}<body>\n<main>\n<header><h1>{escape(title)}</h1></header>\n"
        f'<section aria-label="Answers">{legend}</p>\n{articles}\n</section>\n</main>\n</body>\n</html>\n'
    ).encode()
    if len(page) > MAX_PAGE_BYTES:
        raise ValueError(
            f"{path}: the page would take {len(page) / 1e6:.0f} MB; show fewer crops (-k) or fewer sentences"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)


def _article(answer: PicturedAnswer) -> str:
    figures = "".join(_figure(pictured) for pictured in answer.hits)
    explained = " explained" if any(pictured.heat_maps for pictured in answer.hits) else ""
    crops = f'<div class="crops{explained}">{figures}</div>' if figures else ""
    note = f'<p class="muted">{escape(answer.note)}</p>' if answer.note else ""
    return f'<article class="card"><h3 class="query">{escape(answer.query)}</h3>{note}{crops}</article>'


def _figure(pictured: PicturedHit) -> str:
    hit = pictured.hit
    name = escape(hit.image_id)
    width, height = (hit.metadata.get(side) for side in ("width", "height"))
    facts = {key: value for key, value in hit.metadata.items() if key not in ("width", "height")}
    if hit.group_size > 1:
        facts["same group"] = f"{hit.group_size - 1} more"
    if width and height:
        facts["pixels"] = f"{width} × {height}"
    lines = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items())
    picture = f'<img src="{data_uri("image/jpeg", pictured.picture)}" alt="Rank {hit.rank}: {name}">'
    if pictured.heat_maps:
        maps = "".join(
            f'<li><img src="{data_uri("image/jpeg", jpeg)}" alt="Heat map of {escape(label)}">{escape(label)}</li>'
            for label, jpeg in pictured.heat_maps
        )
        picture = f'<ul class="maps"><li>{picture}</li>{maps}</ul>'
    return (
        f'<figure class="crop">{picture}<figcaption><b>{hit.rank}</b>{hit.score:.3f}<p>{name}</p>'
        f"<dl>{lines}</dl></figcaption></figure>\n"
    )
