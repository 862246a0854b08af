"""Test-time options of evaluation on unit features: average query expansion and k-reciprocal re-ranking.

Re-ranking (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017, section 3)
compares the neighbourhoods of a probe and of a gallery image instead of the two alone. The paper ranks images by images
and pools both sides. Here the probes are captions, which are closer to each other than to any image (the modality gap),
and so are images; a pooled neighbourhood would contain one modality only. Therefore:

- Every neighbour is a gallery image, of a caption as of an image; an image is the first of its own neighbours.
- Reciprocity is tested between images. A caption is in no image's neighbourhood, so that all of its nearest images
  enter its set.
- The distances of a row are scaled to [0, 1], from the row's nearest image to its farthest, so that the width of the
  gap, an offset of all distances of a caption, changes neither the kernel nor the meaning of `weight`.

The answer to a caption therefore does not depend on the other captions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from cskt.errors import CsktError

ENTRIES_AT_ONCE = 2**24
"""Entries of one chunk of similarities when the caller names no chunk size: 64 MiB of float32."""
UNIT_TOLERANCE = 1e-2
"""Largest deviation of a feature's length from 1: half precision keeps within it, raw features do not."""


@dataclass(frozen=True)
class RankingOptions:
    """Test-time options of text to image beyond the cosine; off by default, and recorded in every result."""

    query_expansion: int = 0
    """Number of other captions that a query is averaged with; see `expand_queries`."""
    rerank: bool = False
    """k-reciprocal re-ranking; see `rerank_similarity`."""
    rerank_k1: int = 20
    """Neighbours of a caption or an image in re-ranking."""
    rerank_k2: int = 6
    """Vectors that re-ranking averages."""
    rerank_weight: float = 0.3
    """Share of the cosine in re-ranking, from 0 to 1."""

    def check(self, num_queries: int, num_gallery: int) -> None:
        """Raise CsktError if the options do not fit the size of a split, before it is encoded."""
        if self.query_expansion and not 1 <= self.query_expansion < num_queries:
            raise CsktError(
                f"query expansion by {self.query_expansion} of {num_queries} captions; give 1 to {num_queries - 1}"
            )
        if self.rerank and not 1 <= self.rerank_k2 <= self.rerank_k1 <= num_gallery:
            raise CsktError(
                f"re-ranking with k1 {self.rerank_k1}, k2 {self.rerank_k2} of {num_gallery} images; give a k1 of 1 to"
                f" {num_gallery} and a k2 of 1 to k1"
            )
        if self.rerank and not 0 <= self.rerank_weight <= 1:
            raise CsktError(f"re-ranking with weight {self.rerank_weight}; give a fraction from 0 to 1")

    def notes(self) -> list[str]:
        """Return the options that are on, as notes of a result."""
        notes = []
        if self.query_expansion:
            notes.append(f"query expansion {self.query_expansion}: uses the other queries")
        if self.rerank:
            constants = f"k1 {self.rerank_k1}, k2 {self.rerank_k2}, weight {self.rerank_weight:g}"
            notes.append(f"re-ranked ({constants}): uses the other images of the gallery")
        return notes

    def slug(self) -> str:
        """Return the options that are on, as part of a file name; empty if none is."""
        parts = [f"query-expansion-{self.query_expansion}"] if self.query_expansion else []
        if self.rerank:
            parts.append(f"rerank-{self.rerank_k1}-{self.rerank_k2}-{self.rerank_weight:g}")
        return "-".join(parts)


@torch.no_grad()
def expand_queries(query_features: Tensor, k: int, *, chunk_size: int | None = None) -> Tensor:
    """Expand queries [Q, D]: each becomes the unit mean of itself and its k nearest other queries, k from 1 to Q - 1.

    Chum et al., "Total Recall", ICCV 2007, section 4, average a query with its verified results. Here it is averaged
    with the other captions of a data set, which are on the same side of the modality gap; the answer to a caption then
    depends on the other captions. A query whose sum is zero stays unchanged.
    """
    queries = _unit_features(query_features, "query")
    num_queries = len(queries)
    expanded = torch.empty_like(queries)
    for rows in _chunks(num_queries, chunk_size):
        similarity = queries[rows] @ queries.T
        similarity[torch.arange(len(rows)), rows] = -torch.inf
        others = similarity.topk(k, dim=1).indices
        total = queries[rows].clone()
        for place in range(k):  # adding column by column holds [rows, D], not [rows, k, D]
            total += queries[others[:, place]]
        length = total.norm(dim=1, keepdim=True)
        expanded[rows] = torch.where(length > 1e-6, total / length, queries[rows])
    return expanded


@torch.no_grad()
def rerank_similarity(
    query_features: Tensor,
    gallery_features: Tensor,
    options: RankingOptions,
    *,
    chunk_size: int | None = None,
) -> Callable[[Tensor], Tensor]:
    """Re-rank images for captions by k-reciprocal neighbours; the module's docstring defines neighbourhoods.

    With N(x, k) the k images nearest to x, d the scaled distance, and g, h gallery images:

        R(g, k) = {h in N(g, k): g in N(h, k)}                          (equation 2; for a caption q, R(q, k) = N(q, k))
        R*(x) = R(x, k1) and R(h, k1 / 2) of every h in R(x, k1) with
            |R(x, k1) and R(h, k1 / 2)| >= 2/3 |R(h, k1 / 2)|           (equation 3)
        V_x[g] = exp(-d(x, g)) for g in R*(x), else 0; sum 1            (equation 7)
        V_x <- mean of V over N(x, k2), x itself as the first           (equation 11)
        J(q, g) = 1 - sum min(V_q, V_g) / sum max(V_q, V_g)             (equation 10)
        similarity = 1 - (1 - weight) J(q, g) - weight d(q, g)          (equation 12)

    The sum of 1 is the released code's and not the paper's, and keeps large sets from winning by size. k1 / 2 is
    rounded up. With k2 = 1 vectors are not averaged, with weight 1 the order stays as it was.

    Returns:
        `similarity_of(rows)`: the re-ranked similarities [rows, G] in [0, 1], float32 (float64 if the features are), of
        the queries at `rows` (int64 positions). Nothing of size [Q, G] or [G, G] is held.
    """
    queries, gallery = _unit_features(query_features, "query"), _unit_features(gallery_features, "gallery")
    num_gallery = len(gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise CsktError(f"query features are {queries.shape[1]} wide and gallery features {gallery.shape[1]}")
    k1, k2, weight = options.rerank_k1, options.rerank_k2, options.rerank_weight
    chunks = _chunks(num_gallery, chunk_size)
    nearest = torch.cat([_nearest_images(gallery, rows, k1) for rows in chunks])
    reciprocal, reciprocal_half = _reciprocal(nearest), _reciprocal(nearest[:, : (k1 + 1) // 2])
    encodings = sparse.vstack(
        [_encode(gallery[rows] @ gallery.T, _expand(reciprocal[rows.numpy()], reciprocal_half)) for rows in chunks],
        format="csr",
    )
    share = np.float32(1 / k2)  # a Python number would give float64
    gallery_vectors = (_members(nearest[:, :k2], num_gallery) @ encodings * share).tocsc()

    @torch.no_grad()
    def similarity_of(rows: Tensor) -> Tensor:
        similarity = queries[rows] @ gallery.T
        nearest = similarity.topk(k1, dim=1).indices
        own = _encode(similarity, _expand(_members(nearest, num_gallery), reciprocal_half))
        vectors = (own + _members(nearest[:, : k2 - 1], num_gallery) @ encodings) * share
        jaccard = torch.from_numpy(_jaccard_distance(vectors, gallery_vectors)).to(similarity)
        return 1 - (1 - weight) * jaccard - weight * _scaled_distance(similarity)

    return similarity_of


def _nearest_images(gallery: Tensor, rows: Tensor, k: int) -> Tensor:
    """Positions [rows, k] of the images nearest to those at `rows`; each image is its own first."""
    similarity = gallery[rows] @ gallery.T
    similarity[torch.arange(len(rows)), rows] = torch.inf  # also among duplicates
    return similarity.topk(k, dim=1).indices


def _members(neighbours: Tensor, num_gallery: int) -> sparse.csr_array:
    """Turn positions [rows, k] into rows of 0 and 1 [rows, G]."""
    num_rows, k = neighbours.shape
    ones = np.ones(num_rows * k, dtype=np.float32)
    starts = np.arange(num_rows + 1, dtype=np.int32) * k  # half of what scipy takes for int64
    return sparse.csr_array((ones, neighbours.int().cpu().numpy().ravel(), starts), shape=(num_rows, num_gallery))


def _reciprocal(nearest: Tensor) -> sparse.csr_array:
    """Return [G, G] with a 1 where two images are among each other's k nearest (equation 2)."""
    members = _members(nearest, len(nearest))
    return members.multiply(members.T).tocsr()


def _expand(sets: sparse.csr_array, reciprocal_half: sparse.csr_array) -> sparse.csr_array:
    """Add to sets [rows, G] the half-sized sets of their members that overlap by two thirds (equation 3)."""
    shared = (sets @ reciprocal_half.T).multiply(sets).tocoo()
    sizes = reciprocal_half.sum(axis=1)
    trusted = 3 * shared.data >= 2 * sizes[shared.col]
    rows, columns = shared.row[trusted], shared.col[trusted]
    added = sparse.csr_array((shared.data[trusted], (rows, columns)), shape=sets.shape) @ reciprocal_half
    return sets + added


def _encode(similarity: Tensor, sets: sparse.csr_array) -> sparse.csr_array:
    """Return kernels [rows, G] of the distances to the members of each row's set, sum 1 (equation 7)."""
    rows, columns = sets.nonzero()
    kernel = np.exp(-_scaled_distance(similarity)[rows, columns].float().cpu().numpy())
    total = np.bincount(rows, weights=kernel, minlength=len(similarity)).astype(np.float32)
    return sparse.csr_array((kernel / total[rows], (rows, columns)), shape=sets.shape)


def _scaled_distance(similarity: Tensor) -> Tensor:
    """Distances in [0, 1]: 0 for a row's largest similarity, 1 for its smallest; 0 where all are equal."""
    smallest, largest = similarity.aminmax(dim=1, keepdim=True)
    return (largest - similarity) / (largest - smallest).clamp_min(torch.finfo(similarity.dtype).tiny)


def _jaccard_distance(vectors: sparse.csr_array, gallery_vectors: sparse.csc_array) -> NDArray[np.float32]:
    """Return 1 - sum min / sum max [rows, G] (equation 10); the maxima sum to 2 minus the sum of the minima."""
    num_rows, num_gallery = vectors.shape
    distance = np.empty((num_rows, num_gallery), dtype=np.float32)
    for row, (start, end) in enumerate(itertools.pairwise(vectors.indptr)):
        # The minimum is 0 unless both vectors are positive: only the columns of this row's entries are read.
        met = gallery_vectors[:, vectors.indices[start:end]]
        own = np.repeat(vectors.data[start:end], np.diff(met.indptr))
        shared = np.bincount(met.indices, weights=np.minimum(met.data, own), minlength=num_gallery).clip(max=1)
        distance[row] = 1 - shared / (2 - shared)
    return distance


def _unit_features(features: Tensor, side: str) -> Tensor:
    """Return the features as float32 or float64, checked."""
    if features.ndim != 2 or not len(features):
        raise CsktError(f"{side} features have shape {list(features.shape)}; expected [{side} rows, D], at least one")
    features = features if features.dtype == torch.float64 else features.float()
    length = features.norm(dim=1)
    if not length.isfinite().all():
        raise CsktError(f"{side} features hold NaN or infinity; look for a diverged model or zero-length features")
    if (length - 1).abs().max() > UNIT_TOLERANCE:
        shortest, longest = (float(bound) for bound in length.aminmax())
        raise CsktError(f"{side} features have lengths from {shortest:.3g} to {longest:.3g}; divide each by its length")
    return features


def _chunks(count: int, chunk_size: int | None) -> tuple[Tensor, ...]:
    """Split positions 0 to count - 1 so that the similarities of a piece with all of them fit one chunk."""
    return torch.split(torch.arange(count), chunk_size or max(1, ENTRIES_AT_ONCE // count))
