"""Ranking of a store's hits: one per group, then those above the threshold; and the histogram of scores."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from torch import Tensor

from cskt.errors import CsktError
from cskt.gallery.conditions import Condition
from cskt.gallery.options import EVERY_SCORE, MAX_RESULTS, SearchOptions
from cskt.gallery.stores.base import VectorStore
from cskt.types import Hit
from cskt.utils.arguments import expect

HISTOGRAM_STEP = 0.005
HISTOGRAM_EDGES = [round(step * HISTOGRAM_STEP - 1, 3) for step in range(int(2 / HISTOGRAM_STEP) + 1)]
"""From -1 to 1, finer than any histogram that is shown."""


class Histogram(NamedTuple):
    """Distribution of the scores of all crops."""

    edges: list[float]
    """n + 1 ascending scores."""
    counts: list[int]
    """n numbers of crops between neighbouring edges."""


def check_vectors(vectors: Tensor, shape: Sequence[int | str], name: str) -> None:
    """Check that vectors are finite and have a shape, in which a letter stands for any number."""
    expect(vectors, Tensor, name, "torch.from_numpy makes one of an array")
    sizes = zip(vectors.shape, shape, strict=False)
    if vectors.ndim != len(shape) or any(wanted not in (size, "Q") for size, wanted in sizes):
        raise CsktError(f"{name} have shape {list(vectors.shape)}; expected [{', '.join(map(str, shape))}]")
    if not vectors.isfinite().all():
        raise CsktError(f"{name} hold NaN or infinity; look for features of length zero")


def ranked_hits(store: VectorStore, vectors: Tensor, options: SearchOptions, *, once: bool = False) -> list[list[Hit]]:
    """Search a store for vectors [Q, D], with options of `GalleryState.checked`.

    Groups are formed first and the threshold is applied last, so `Hit.group_size` also counts crops below it. With
    `once`, a single vector is searched by `VectorStore.search_once`.
    """
    where, column, num_ranked = cast("Condition | None", options.where), options.group_by, options.k + options.offset

    def search(rows: Tensor, depth: int) -> list[list[Hit]]:
        if once and len(vectors) == 1:
            return [store.search_once(rows[0], depth, where)]
        return store.search(rows, depth, where)

    if column is None:
        answers = search(vectors, num_ranked)
    else:
        answers = [
            grouped(lambda depth, row=row: search(row, depth)[0], num_ranked, column)  # type: ignore[misc]
            for row in vectors[:, None]
        ]
    min_score = EVERY_SCORE if options.min_score is None else options.min_score
    return [[hit for hit in hits if hit.score >= min_score][options.offset :] for hits in answers]


def grouped(search: Callable[[int], Sequence[Hit]], num_groups: int, column: str) -> list[Hit]:
    """Return the best hit of each group, best group first, with the group's size and a rank of its own.

    Args:
        search: returns at most so many best hits.
        num_groups: most groups to return.
        column: hits with one value in this metadata column are a group; a hit without a value is one by itself. The
            size of a group counts the hits down to the depth of the last group.
    """
    depth = min(MAX_RESULTS, 4 * num_groups)
    while True:
        found = search(depth)
        groups: dict[object, list[Hit]] = {}
        for hit in found:
            value = hit.metadata.get(column)
            if isinstance(value, str):  # older galleries may contain text in other forms
                value = unicodedata.normalize("NFC", value)
            groups.setdefault((value, hit.image_id if value is None else None), []).append(hit)
        if len(groups) >= num_groups or len(found) < depth or depth == MAX_RESULTS:
            best = list(groups.values())[:num_groups]
            return [replace(hits[0], rank=rank, group_size=len(hits)) for rank, hits in enumerate(best, start=1)]
        depth = min(MAX_RESULTS, 4 * depth)


def merged(counts: Sequence[int], num_bins: int) -> Histogram:
    """Return a histogram over `HISTOGRAM_EDGES` without its empty ends, in at most `num_bins` equal intervals."""
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return Histogram([-1.0, 1.0], [0])
    first, last = filled[0], filled[-1] + 1
    width = -(-(last - first) // num_bins)
    starts = range(first, last, width)
    edges = [HISTOGRAM_EDGES[min(start, len(counts))] for start in (*starts, starts[-1] + width)]
    return Histogram(edges, [sum(counts[start : start + width]) for start in starts])
