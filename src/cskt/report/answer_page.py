"""Answers of a gallery as one HTML file: sentence, crops with score and metadata, heat maps where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cskt.errors import CsktError
from cskt.report.html import MAX_PAGE_BYTES, render
from cskt.types import Hit


@dataclass(frozen=True)
class PicturedHit:
    """A hit with its pictures."""

    hit: Hit
    picture: bytes
    """The crop as JPEG."""
    heat_maps: Sequence[tuple[str, bytes]] = ()
    """(the sentence or the word that the map belongs to, the crop under the map as JPEG)."""

    @property
    def facts(self) -> Mapping[str, object]:
        """Metadata, group and size, by the names that the page shows."""
        hit = self.hit
        facts = {key: value for key, value in hit.metadata.items() if key not in ("width", "height")}
        if hit.group_size > 1:
            facts["same group"] = f"{hit.group_size - 1} more"
        width, height = (hit.metadata.get(side) for side in ("width", "height"))
        if width and height:
            facts["pixels"] = f"{width} × {height}"
        return facts


@dataclass(frozen=True)
class PicturedAnswer:
    """The answer of a gallery to one query."""

    query: str
    """Its heading on the page."""
    hits: Sequence[PicturedHit]
    note: str = ""
    """For instance why there are no hits."""

    @property
    def is_explained(self) -> bool:
        """True if any hit has heat maps."""
        return any(hit.heat_maps for hit in self.hits)


def write_answer_page(path: Path, title: str, answers: Sequence[PicturedAnswer]) -> None:
    """Write the page.

    Args:
        path: the HTML file; its folder is made when missing.
        title: heading of the page.
        answers: in the order to show.

    Raises:
        CsktError: it would exceed 10 MB.
    """
    page = render("answers.html.j2", title=title, answers=answers)
    if len(page) > MAX_PAGE_BYTES:
        raise CsktError(
            f"{path}: the page would take {len(page) / 1e6:.0f} MB; show fewer crops (-k) or fewer sentences"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
