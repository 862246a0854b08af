"""Retrieval metrics: R1, R5, R10 (CMC), mAP and mINP, exact and in bounded memory.

CMC, mAP: Zheng et al., "Scalable Person Re-identification", ICCV 2015; mINP: Ye et al., "Deep Learning for Person
Re-identification: A Survey and Outlook", TPAMI 2021. Only the ranks of the right images are needed, and a rank is one
more than the number of gallery images with a higher similarity. Counting them takes two passes over a row for each of
its few right images, less than sorting the row.

**Ties.** Of two gallery images with the same similarity the one with the smaller gallery index ranks first, as in a
stable descending sort. `top_k` uses the same order.

**Inputs.** Every argument can be a PyTorch tensor on any device, a NumPy array of any number type, or a list; the
result is the same. Features in a list become float32, as in `torch.tensor`. Identities are integers or booleans.

Example:
    >>> result = from_similarity([[0.9, 0.1, 0.3], [0.2, 0.8, 0.7]], query_ids=[7, 9], gallery_ids=[7, 8, 9])
    >>> result.r1, result.r5, result.mean_ap
    (0.5, 1.0, 0.75)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cskt.errors import CsktError
from cskt.types import PerQuery, RetrievalMetrics
from cskt.utils.arrays import Numbers, is_plain_list, tensor_of

SIMILARITIES_AT_ONCE = 2**24
"""Entries of one chunk of similarities when the caller names no chunk size: 64 MiB of float32."""
COMPARISONS_AT_ONCE = 2**21
"""Entries of one comparison of similarities with the scores of right images: 8 MiB, which stay in the cache."""


@dataclass(frozen=True)
class Ranking:
    """Gallery images with the highest similarity for each query, best first."""

    indices: Tensor
    """[Q, k] int64, positions in the gallery."""
    scores: Tensor
    """[Q, k] similarities, descending."""


def from_similarity(similarity: Numbers, query_ids: Numbers, gallery_ids: Numbers) -> RetrievalMetrics:
    """Compute the metrics of a similarity matrix.

    Args:
        similarity: [Q, G], higher is better; any sign and scale.
        query_ids: [Q] identities, integers or booleans.
        gallery_ids: [G] identities, likewise; a gallery image is right if it has the query's.

    Returns:
        Fractions in [0, 1], averaged over the queries that have a right image; 0 if no query has one.

    Raises:
        CsktError: an empty side, shapes that disagree, identities that are not integers, or a similarity that is not
            a number.

    Example:
        >>> from_similarity([[0.9, 0.1], [0.8, 0.2]], query_ids=[1, 2], gallery_ids=[1, 2]).r1
        0.5
    """
    scores = tensor_of(similarity, "similarity")
    if scores.ndim != 2:
        raise CsktError(f"similarity has shape {list(scores.shape)}; expected [queries, gallery images]")
    query_pids, gallery_pids = _ids_of(query_ids, gallery_ids, scores.shape[0], scores.shape[1])
    if scores.amax().isnan():  # also in rows of queries without a right image
        raise CsktError("similarity holds NaN; look for zero or non-finite features")
    return from_chunks(lambda rows: scores[rows.to(scores.device)], query_pids, gallery_pids)


def from_features(
    query_features: Numbers,
    gallery_features: Numbers,
    query_ids: Numbers,
    gallery_ids: Numbers,
    *,
    chunk_size: int | None = None,
) -> RetrievalMetrics:
    """Compute the metrics of inner products in chunks, without the whole [Q, G] similarities.

    Args:
        query_features: [Q, D], multiplied as they are: give unit norm for cosines.
        gallery_features: [G, D], likewise; computed with on the device of the queries.
        query_ids: [Q] identities, integers or booleans.
        gallery_ids: [G] identities, likewise; a gallery image is right if it has the query's.
        chunk_size: queries scored at once; by default as many as give 16 million similarities (64 MiB).

    Returns:
        The same as `from_similarity` on the products.

    Raises:
        CsktError: an empty side, shapes that disagree, identities that are not integers, features that are not
            finite, or a chunk size below 1.

    Example:
        >>> from_features([[1.0, 0.0]], [[0.0, 1.0], [0.6, 0.8]], query_ids=[3], gallery_ids=[4, 3]).mean_ap
        1.0
    """
    queries, gallery = _features_of(query_features, gallery_features)
    query_pids, gallery_pids = _ids_of(query_ids, gallery_ids, len(queries), len(gallery))

    def similarity_of(rows: Tensor) -> Tensor:
        return queries[rows.to(queries.device)] @ gallery.T

    return from_chunks(similarity_of, query_pids, gallery_pids, chunk_size=chunk_size)


@torch.no_grad()
def from_chunks(
    similarity_of: Callable[[Tensor], Numbers],
    query_ids: Numbers,
    gallery_ids: Numbers,
    *,
    chunk_size: int | None = None,
) -> RetrievalMetrics:
    """Compute the metrics of similarities that a function makes a few queries at a time.

    Args:
        similarity_of: returns the similarities [rows, G], higher is better, of the queries at `rows` (int64 positions,
            on the CPU); called once for each query whose identity is in the gallery.
        query_ids: [Q] identities, integers or booleans.
        gallery_ids: [G] identities, likewise; a gallery image is right if it has the query's.
        chunk_size: queries per call; by default as many as give 16 million similarities (64 MiB).

    Returns:
        The same as `from_similarity` on all the similarities.

    Raises:
        CsktError: an empty side, identities that are no list of integers, a chunk of another shape, a similarity that
            is not a number, or a chunk size below 1.

    Example:
        >>> gallery = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
        >>> queries = torch.tensor([[1.0, 0.0]])
        >>> from_chunks(lambda rows: queries[rows] @ gallery.T, query_ids=[3], gallery_ids=[4, 3]).r1
        1.0
    """
    query_pids, gallery_pids = _ids_of(query_ids, gallery_ids)
    num_queries, num_gallery = len(query_pids), len(gallery_pids)
    columns_by_id = dict(_runs(gallery_pids))

    first = torch.zeros(num_queries, dtype=torch.int64)
    precision = torch.zeros(num_queries, dtype=torch.float64)
    penalty = torch.zeros(num_queries, dtype=torch.float64)
    matched = torch.isin(query_pids, gallery_pids)
    # Queries of one identity have the same right columns and are counted together.
    by_identity = query_pids.argsort(stable=True)
    by_identity = by_identity[matched[by_identity]]
    step = _rows_at_once(num_gallery, chunk_size)
    for start in range(0, len(by_identity), step):
        rows = by_identity[start : start + step]
        similarity = tensor_of(similarity_of(rows), "similarity_of")
        if similarity.shape != (len(rows), num_gallery):
            raise CsktError(
                f"similarity_of gave shape {list(similarity.shape)}; expected {[len(rows), num_gallery]}, as asked for"
            )
        if similarity.amax().isnan():  # cheaper than a mask of the whole chunk
            raise CsktError("similarity holds NaN; look for zero or non-finite features")
        ranks, num_right = _ranks_of_right(similarity, query_pids[rows], columns_by_id)
        nth = torch.arange(1, ranks.shape[1] + 1)
        first[rows] = ranks[:, 0]
        precision[rows] = torch.where(nth <= num_right[:, None], nth / ranks.double(), 0.0).sum(dim=1) / num_right
        penalty[rows] = num_right / ranks.gather(1, num_right[:, None] - 1).squeeze(1).double()

    num_matched = max(int(matched.sum()), 1)
    found = first[matched]
    return RetrievalMetrics(
        r1=int((found <= 1).sum()) / num_matched,
        r5=int((found <= 5).sum()) / num_matched,
        r10=int((found <= 10).sum()) / num_matched,
        mean_ap=float(precision.sum()) / num_matched,
        mean_inp=float(penalty.sum()) / num_matched,
        num_queries=num_queries,
        num_gallery=num_gallery,
        num_unmatched_queries=int((~matched).sum()),
        per_query=PerQuery(first, precision, penalty, query_pids),
    )


@torch.no_grad()
def top_k(query_features: Numbers, gallery_features: Numbers, k: int, *, chunk_size: int | None = None) -> Ranking:
    """Return the k gallery images most similar to each query; equal similarities in gallery order.

    Args:
        query_features: [Q, D], multiplied as they are: give unit norm for cosines.
        gallery_features: [G, D], likewise; computed with on the device of the queries.
        k: from 1 to G.
        chunk_size: queries scored at once; see `from_features`.

    Raises:
        CsktError: k out of range, an empty side, shapes that disagree, or features that are not finite.

    Example:
        >>> top_k([[1.0, 0.0]], [[0.0, 1.0], [0.6, 0.8], [0.8, 0.6]], k=2).indices
        tensor([[2, 1]])
    """
    queries, gallery = _features_of(query_features, gallery_features)
    num_gallery = len(gallery)
    num_hits = _whole(k, "k")
    if not 1 <= num_hits <= num_gallery:
        raise CsktError(f"k is {k}; the gallery has {num_gallery} images, so give 1 to {num_gallery}")
    chunks = torch.split(queries, _rows_at_once(num_gallery, chunk_size))
    indices, scores = zip(*(_top_k(rows @ gallery.T, num_hits) for rows in chunks), strict=True)
    return Ranking(torch.cat(indices), torch.cat(scores))


def _top_k(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    # torch.topk guarantees no order among equals, neither within its answer nor at the end.
    scores, indices = similarity.topk(k, dim=1)
    indices, by_index = indices.sort(dim=1)
    scores, by_score = scores.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    indices = indices.gather(1, by_score)
    cut_in_a_tie = (similarity >= scores[:, -1:]).sum(dim=1) > k
    if cut_in_a_tie.any():
        indices[cut_in_a_tie] = similarity[cut_in_a_tie].argsort(dim=1, descending=True, stable=True)[:, :k]
    return indices, scores


def _ranks_of_right(similarity: Tensor, query_ids: Tensor, columns_by_id: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Ranks [q, R] int64, ascending, of each query's right images, and their number [q]; `query_ids` are sorted.

    Rows with fewer than R right images are filled with the rank G + 1.
    """
    runs = [(rows, columns_by_id[pid]) for pid, rows in _runs(query_ids)]
    num_gallery = similarity.shape[1]
    num_right = torch.cat([torch.full((len(rows),), len(columns)) for rows, columns in runs])
    ranks = similarity.new_full((len(query_ids), int(num_right.max())), num_gallery + 1, dtype=torch.int64)
    # A reused float buffer keeps the comparisons at the speed of the memory; float32 counts exactly up to 2 ** 24.
    # Many columns are compared at once, because the threads of short comparisons wait for each other.
    dtype = torch.float32 if num_gallery < 2**24 else torch.float64
    most_rows = max(len(rows) for rows, _ in runs)
    buffer = similarity.new_empty(max(COMPARISONS_AT_ONCE, most_rows * num_gallery), dtype=dtype)
    for rows, columns in runs:
        block = similarity[rows[0] : rows[-1] + 1]
        some_columns = torch.split(columns, max(1, COMPARISONS_AT_ONCE // block.numel()))
        found = torch.cat([_ranks_of_columns(block, some, buffer) for some in some_columns])
        ranks[rows[0] : rows[-1] + 1, : len(columns)] = found.T
    return ranks.cpu().sort(dim=1).values, num_right


def _ranks_of_columns(block: Tensor, columns: Tensor, buffer: Tensor) -> Tensor:
    """Ranks [c, n] int64 of the gallery images `columns` [c] in n rows of similarities [n, G].

    `buffer`, of c * n * G numbers or more, is overwritten.
    """
    scores = block[:, columns].T[..., None]
    beats = buffer[: len(columns) * block.numel()].view(len(columns), *block.shape)
    above = torch.gt(block, scores, out=beats).sum(dim=2).long()
    not_below = torch.ge(block, scores, out=beats).sum(dim=2).long()
    tied = (not_below > above + 1).any(dim=1)
    for place in tied.nonzero().flatten().tolist():  # an equal image before it ranks first
        above[place] += (block[:, : columns[place]] == scores[place]).sum(dim=1)
    return above + 1


def _runs(ids: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Distinct identities, ascending, each with its positions [n], ascending."""
    order = ids.argsort(stable=True)
    distinct, counts = torch.unique_consecutive(ids[order], return_counts=True)
    return zip(distinct.tolist(), torch.split(order, counts.tolist()), strict=True)


def _rows_at_once(num_gallery: int, chunk_size: int | None) -> int:
    if chunk_size is None:
        return max(1, SIMILARITIES_AT_ONCE // num_gallery)
    num_rows = _whole(chunk_size, "chunk_size")
    if num_rows < 1:
        raise CsktError(f"chunk_size is {chunk_size}; give at least 1")
    return num_rows


def _whole(number: Any, name: str) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise CsktError(f"{name} is {number!r}; give an integer") from None


def _features_of(query_features: Numbers, gallery_features: Numbers) -> tuple[Tensor, Tensor]:
    """Both sides as float32 or float64, on the device of the queries; checked."""
    queries, gallery = (
        # as torch.tensor reads a list of Python's doubles
        tensor.float() if tensor.dtype == torch.float64 and is_plain_list(features) else tensor
        for features, tensor in (
            (query_features, tensor_of(query_features, "query_features")),
            (gallery_features, tensor_of(gallery_features, "gallery_features")),
        )
    )
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        shapes = f"{list(queries.shape)} and {list(gallery.shape)}"
        raise CsktError(f"features have shapes {shapes}; expected [queries, D] and [gallery images, D]")
    if not len(queries) or not len(gallery):
        raise CsktError(f"{len(queries)} queries and {len(gallery)} gallery images; give at least one")
    for side, features in (("query", queries), ("gallery", gallery)):
        if not features.isfinite().all():
            raise CsktError(f"{side} features hold NaN or infinity; look for a diverged model or zero-length features")
    dtype = torch.float64 if torch.float64 in (queries.dtype, gallery.dtype) else torch.float32
    return queries.to(dtype), gallery.to(queries.device, dtype)


def _ids_of(
    query_ids: Numbers, gallery_ids: Numbers, num_queries: int | None = None, num_gallery: int | None = None
) -> tuple[Tensor, Tensor]:
    """Identities of both sides as int64 on the CPU; checked against the counts if given."""
    queries, gallery = (
        tensor_of(ids, f"{side}_ids").cpu() for side, ids in (("query", query_ids), ("gallery", gallery_ids))
    )
    counts = tuple(
        ids.numel() if count is None else count for ids, count in ((queries, num_queries), (gallery, num_gallery))
    )
    if 0 in counts:
        raise CsktError(f"{counts[0]} queries and {counts[1]} gallery images; give at least one of each")
    for side, ids, count in (("query", queries, counts[0]), ("gallery", gallery, counts[1])):
        if ids.shape != (count,) or ids.is_floating_point():
            raise CsktError(f"{side}_ids are {ids.dtype} {list(ids.shape)}; expected {count} integers")
    return queries.long(), gallery.long()
