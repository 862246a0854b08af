"""Pure functions on the hits of a store: grouping, and the histogram of scores."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from cskt.gallery.columns import Value
from cskt.types import Hit

HISTOGRAM_STEP = 0.005
HISTOGRAM_EDGES = [round(step * HISTOGRAM_STEP - 1, 3) for step in range(int(2 / HISTOGRAM_STEP) + 1)]
"""From -1 to 1, finer than any histogram that is shown."""


class Histogram(NamedTuple):
    """How the scores of all crops are spread."""

    edges: list[float]
    """n + 1 rising scores."""
    counts: list[int]
    """n numbers of crops between neighbouring edges."""


def grouped(search: Callable[[int], Sequence[Hit]], wanted: int, column: str, most: int) -> list[Hit]:
    """Return the best hit of each group, best group first, with the group's size and a rank of its own.

    Args:
        search: number of crops -> that many best ones, fewer if there are no more.
        wanted: maximum number of groups.
        column: crops with one value in this metadata column are a group; a crop without a value is one by itself.
        most: deepest search. A group's size counts the crops that were found down to the last group's depth.
    """
    depth = min(most, 4 * wanted)
    while True:
        found = search(depth)
        groups: dict[object, list[Hit]] = {}
        for hit in found:
            key = (True, _in_nfc(hit.metadata[column])) if column in hit.metadata else (False, hit.image_id)
            groups.setdefault(key, []).append(hit)
        if len(groups) >= wanted or len(found) < depth or depth == most:
            best = list(groups.values())[:wanted]
            return [replace(hits[0], rank=rank, group_size=len(hits)) for rank, hits in enumerate(best, start=1)]
        depth = min(most, 4 * depth)


def _in_nfc(value: Value) -> Value:
    """Return a value in NFC, in which values compare; older galleries may hold text in other forms."""
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


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
