"""Evidence behind the means of a split: queries that fail, similarities, attributes that wrong answers confuse.

Pure functions of features, identities and values; none holds the [Q, G] similarities at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.evaluation.results import Floats, Integers
from cskt.types import PerQuery

NUM_BINS = 2000
"""Bins of a histogram of cosines over [-1, 1]; a drawing joins them."""
SIMILARITIES_AT_ONCE = 2**22
"""Entries of one chunk of similarities: 16 MiB of float32, and twice as much for their bins."""


@dataclass(frozen=True)
class Similarities:
    """Cosines of a split, as histograms of N = `NUM_BINS` equal bins from -1 to 1, and each query's best images."""

    right: Integers
    """[N] pairs of a query and an image of its person."""
    wrong: Integers
    """[N] pairs of a query and an image of somebody else."""
    best_wrong: Integers
    """[N] queries by their most similar image of somebody else."""
    margin: Floats
    """[Q] cosine of the most similar right image minus that of the most similar wrong one; NaN if one is missing."""
    first_answer: Integers
    """[Q] position of the most similar image, the first in the gallery among equals."""


@dataclass(frozen=True)
class AttributeErrors:
    """Attributes in which the person of a wrong first answer differs from the person sought."""

    names: tuple[str, ...]
    differs: NDArray[np.bool_]
    """[W, A], one row per query whose first answer is wrong."""
    chance: Floats
    """[A] share that would differ if the same queries were answered with any image of anybody else."""
    queries: Integers
    """[W] positions of these queries."""


def rank_hits(first_right_rank: Tensor, max_rank: int) -> Floats:
    """Return [Q', K] of 0 and 1: a matched query has a right image among the first 1, ..., K; the means are the CMC."""
    found = first_right_rank[first_right_rank > 0].numpy()
    return (found[:, None] <= np.arange(1, max_rank + 1)).astype(np.float64)


@torch.no_grad()
def compare_pairs(
    query_features: Tensor,
    gallery_features: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    chunk_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Similarities:
    """Return histograms of all cosines of a split and each query's best images, exact, in chunks.

    Features are of unit norm, and a pair is right if its identities are equal. `on_progress` is called with the number
    of queries done and of all queries. By default a chunk has 4 million similarities.
    """
    counts = torch.zeros(3, NUM_BINS, dtype=torch.int64)
    margins, first_answers = [], []
    step = chunk_size or max(1, SIMILARITIES_AT_ONCE // len(gallery_features))
    for start in range(0, len(query_features), step):
        similarity = query_features[start : start + step] @ gallery_features.T
        right = query_ids[start : start + step, None] == gallery_ids
        best_right = similarity.masked_fill(~right, -torch.inf).amax(dim=1)
        best_wrong = similarity.masked_fill(right, -torch.inf).amax(dim=1)
        for row, values in enumerate((similarity[right], similarity[~right], best_wrong[best_wrong.isfinite()])):
            # rounding may carry a cosine a little beyond 1, and 1 itself belongs to the last bin
            bins = ((values + 1) * (NUM_BINS / 2)).long().clamp_(0, NUM_BINS - 1)
            counts[row] += torch.bincount(bins, minlength=NUM_BINS)
        margin = (best_right - best_wrong).double()
        margins.append(margin.where(margin.isfinite(), torch.nan))
        first_answers.append(similarity.argmax(dim=1))
        if on_progress is not None:
            on_progress(min(start + step, len(query_features)), len(query_features))
    right_counts, wrong_counts, best_wrong_counts = counts.numpy()
    return Similarities(
        right_counts, wrong_counts, best_wrong_counts, torch.cat(margins).numpy(), torch.cat(first_answers).numpy()
    )


def separation(similarities: Similarities) -> float:
    """Return the probability that a right pair is more similar than a wrong one (area under the ROC curve).

    Exact but for pairs that share a bin, which count half, as ties. NaN without right or without wrong pairs.
    """
    right, wrong = similarities.right.astype(np.float64), similarities.wrong.astype(np.float64)
    if not right.sum() or not wrong.sum():
        return float("nan")
    below = np.cumsum(wrong) - wrong
    return float((right * (below + wrong / 2)).sum() / (right.sum() * wrong.sum()))


def hardest_queries(per_query: PerQuery, query_ids: Sequence[int], count: int) -> list[int]:
    """Return the queries whose first right image ranks last, at most one per identity.

    Equal ranks are ordered by average precision, then by position. Queries without a right image are left out.
    """
    rank, precision = per_query.first_right_rank.numpy(), per_query.average_precision.numpy()
    order = np.lexsort((np.arange(len(rank)), precision, -rank))
    return _one_per_identity((int(query) for query in order if rank[query] > 0), query_ids, count)


def clearest_queries(margin: Floats, query_ids: Sequence[int], count: int) -> list[int]:
    """Return the queries with the largest `Similarities.margin` above 0, at most one per identity."""
    order = np.argsort(-margin, kind="stable")
    return _one_per_identity((int(query) for query in order if margin[query] > 0), query_ids, count)


def _one_per_identity(ordered: Iterable[int], query_ids: Sequence[int], count: int) -> list[int]:
    first_by_identity: dict[int, int] = {}
    for query in ordered:
        first_by_identity.setdefault(query_ids[query], query)
    return list(first_by_identity.values())[:count]


@torch.no_grad()
def ranked_positions(similarity: Tensor, right: Tensor, k: int) -> list[tuple[int, int]]:
    """Return (rank, position) of the k best images of one query; if none is right, the first right one is the last.

    `similarity` [G] and `right` [G] are those of the gallery, in whose order equals rank.
    """
    order = similarity.argsort(descending=True, stable=True)
    places = list(range(k))
    places_of_right = right[order].nonzero()[:, 0].tolist()
    if places_of_right and places_of_right[0] >= k:
        places[-1] = places_of_right[0]
    return [(place + 1, int(order[place])) for place in places]


def attribute_errors(
    values: Mapping[str, Sequence[str]], image_ids: Sequence[int], sought: Sequence[int], found: Sequence[int]
) -> AttributeErrors:
    """Return how the people of wrong first answers differ from the people sought.

    Args:
        values: attribute -> [G] its value for each gallery image.
        image_ids: [G] identity of each gallery image.
        sought, found: [Q] position of the image that a query describes, and of its first answer.
    """
    pids, sought_Q, found_Q = np.asarray(image_ids), np.asarray(sought), np.asarray(found)
    queries = np.flatnonzero(pids[sought_Q] != pids[found_Q])
    wanted, given = sought_Q[queries], found_Q[queries]
    identity, num_same_person = _codes_and_counts(pids)
    num_others = len(pids) - num_same_person
    differs, chance = np.zeros((len(queries), len(values)), dtype=bool), np.full(len(values), np.nan)
    for column, name in enumerate(values):
        code, num_same_value = _codes_and_counts(np.asarray(values[name]))
        _, num_same_both = _codes_and_counts(identity * (code.max() + 1) + code)
        differs[:, column] = code[wanted] != code[given]
        if len(queries):
            num_others_alike = num_same_value - num_same_both
            chance[column] = (1 - num_others_alike[wanted] / num_others[wanted]).mean()
    return AttributeErrors(tuple(values), differs, chance, queries)


def _codes_and_counts(values: NDArray[np.generic]) -> tuple[Integers, Integers]:
    """Values as numbers from 0 [G], and the number of images that share each image's value [G]."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    return codes, counts[codes]


def confusion(sought: Sequence[str], found: Sequence[str]) -> tuple[list[str], Integers]:
    """Return the C values, most often sought first, and counts [C, C] of values sought by row, found by column."""
    counts, by_sought = Counter(zip(sought, found, strict=True)), Counter(sought)
    labels = sorted({*sought, *found}, key=lambda label: (-by_sought[label], label))
    table = [[counts[row, column] for column in labels] for row in labels]
    return labels, np.array(table, dtype=np.int64).reshape(len(labels), len(labels))
