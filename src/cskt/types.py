"""Values that packages exchange, and the legend of their dimensions.

    B  images or captions in a batch        L  token positions of a caption
    D  width of the shared embedding        N  tokens of an image (class token first)
    Q  queries                              G  gallery images
    H  image height in pixels               W  image width in pixels
    P  prompt tokens                        C  identities known to a classifier

A shape is written `[B, D]` in docstrings, or at the end of a name (`similarity_QG`).
Similarity is the cosine and higher is better. Metrics are fractions in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One training batch of B pairs on the host; pixels are decoded but neither augmented nor normalised.

    An image has k = `data.captions_per_image` captions: those of image i are rows k * i to k * i + k - 1.

    If several processes train together, each has the pixels of its own share, and all other fields of the whole batch.
    """

    images: Tensor
    """[b, 3, H, W] uint8, RGB: b = B / k, or this process's share of them."""
    caption_ids: Tensor
    """[B, L] int64, start and end tokens included, zeros after the end; L is the longest caption of the batch."""
    pids: Tensor
    """[B] int64, one per caption; identities numbered from 0 without gaps over the training split."""
    image_ids: Tensor
    """[B / k] int64, index of the image within its split."""
    first_image: int = 0
    """Row of `images[0]` in the whole batch."""
    pair_ids: Tensor | None = None
    """[B] int64, index of each pair in the training split: of its caption in `Split.captions`."""


@dataclass(frozen=True)
class PerQuery:
    """Results of each query; zeros for a query without a relevant image."""

    first_right_rank: Tensor
    """[Q] int64, rank (from 1) of the first relevant gallery image; 0 if there is none."""
    average_precision: Tensor
    """[Q] float64 in [0, 1]."""
    inverse_negative_penalty: Tensor
    """[Q] float64 in [0, 1]: number relevant / rank of the last relevant image."""
    query_ids: Tensor
    """[Q] whole numbers, the identity of each query."""


@dataclass(frozen=True)
class RetrievalMetrics:
    """Ranking quality over all queries that have a relevant image, as fractions in [0, 1]."""

    r1: float
    r5: float
    r10: float
    mean_ap: float
    mean_inp: float
    num_queries: int
    num_gallery: int
    num_unmatched_queries: int
    """Queries whose identity is absent from the gallery; they are left out of the means."""
    per_query: PerQuery = field(repr=False, compare=False)

    def summary(self) -> dict[str, float | int]:
        """Return the scalar figures by name, ready for JSON."""
        return {figure.name: getattr(self, figure.name) for figure in fields(self) if figure.name != "per_query"}


@dataclass(frozen=True)
class Hit:
    """One gallery image in the answer to a query."""

    image_id: str
    """Path of the image as its data set or gallery names it."""
    score: float
    """Cosine similarity in [-1, 1]."""
    rank: int
    """From 1."""
    metadata: dict[str, Any] = field(default_factory=dict)
    group_size: int = 1
    """Crops of the group that were found, this one and those below the threshold included; 1 if not grouped."""
