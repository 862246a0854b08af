"""What a store found, as a user gets it: cut off, grouped, numbered. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cskt.gallery.columns import Value
from cskt.gallery.stores.base import Found
from cskt.types import Hit

HISTOGRAM_STEP = 0.005
HISTOGRAM_EDGES = [round(step * HISTOGRAM_STEP - 1, 3) for step in range(int(2 / HISTOGRAM_STEP) + 1)]
"""From -1 to 1, finer than any histogram that is shown."""


class Group(NamedTuple):
    """Crops that count as one in an answer."""

    best: Found
    size: int


class Histogram(NamedTuple):
    """How the scores of all crops are spread."""

    edges: list[float]
    """n + 1 rising scores."""
    counts: list[int]
    """n numbers of crops between neighbouring edges."""


def grouped(search: Callable[[int], Sequence[Found]], wanted: int, column: str, most: int) -> list[Group]:
    """The best crop of each group, best group first.

    Args:
        search: number of crops -> that many best ones, fewer where there are no more.
        wanted: most groups to return.
        column: crops with one value in this metadata column are a group; a crop without a value is one by itself.
        most: deepest search. A group's size counts the crops that were found down to the last group's depth.
    """
    depth = min(most, 4 * wanted)
    while True:
        found = search(depth)
        groups: dict[object, Group] = {}
        for crop in found:
            facts = crop.facts
            key = (True, _in_nfc(facts.metadata[column])) if column in facts.metadata else (False, facts.image_id)
            best, size = groups.get(key, Group(crop, 0))
            groups[key] = Group(best, size + 1)
        if len(groups) >= wanted or len(found) < depth or depth == most:
            return list(groups.values())[:wanted]
        depth = min(most, 4 * depth)


def _in_nfc(value: Value) -> Value:
    """Return a value in NFC, in which values compare; older galleries may hold text in other forms."""
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def hits_of(groups: Sequence[Group], lowest: float, offset: int) -> list[Hit]:
    """Those that score at least `lowest`, numbered from 1, without the first `offset`."""
    good = [group for group in groups if group.best.score >= lowest]
    return [
        Hit(
            image_id=best.facts.image_id,
            score=best.score,
            rank=rank,
            metadata={**best.facts.metadata, "width": best.facts.width, "height": best.facts.height},
            group_size=size,
        )
        for rank, (best, size) in enumerate(good[offset:], start=offset + 1)
    ]


def merged(counts: Sequence[int], num_bins: int) -> Histogram:
    """A histogram over `HISTOGRAM_EDGES` without its empty ends, in at most `num_bins` intervals of equal width."""
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return Histogram([-1.0, 1.0], [0])
    first, last = filled[0], filled[-1] + 1
    width = -(-(last - first) // num_bins)
    starts = range(first, last, width)
    edges = [HISTOGRAM_EDGES[min(start, len(counts))] for start in (*starts, starts[-1] + width)]
    return Histogram(edges, [sum(counts[start : start + width]) for start in starts])
