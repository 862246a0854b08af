"""A model on a split: retrieval metrics in both directions, and the ranked answers to sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cskt import metrics
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.types import Hit, RetrievalMetrics


@dataclass(frozen=True)
class SplitFeatures:
    """Unit features of a split's images and captions with their identities."""

    image_features: Tensor
    """[G, D] float32."""
    text_features: Tensor
    """[Q, D] float32."""
    image_pids: Tensor
    """[G] int64."""
    caption_pids: Tensor
    """[Q] int64."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one split."""

    dataset: str
    split: str
    t2i: RetrievalMetrics
    """Captions search images: the task."""
    i2t: RetrievalMetrics
    """Images search captions."""

    def summary(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "t2i": self.t2i.summary(),
            "i2t": self.i2t.summary(),
        }


def encode_split(encoder: Encoder, split: Split) -> SplitFeatures:
    """Encode every image and every caption of a split once.

    Raises:
        ValueError: an image cannot be read.
    """
    return SplitFeatures(
        image_features=encoder.encode_image(split.image_paths),
        text_features=encoder.encode_text(split.captions),
        image_pids=torch.tensor(split.image_pids),
        caption_pids=torch.tensor(split.caption_pids),
    )


def evaluate(encoder: Encoder, split: Split, features: SplitFeatures | None = None) -> Evaluation:
    """Retrieval metrics of a split; exact, in chunks, ties ranked in the split's order.

    Args:
        encoder: the model.
        split: images are the gallery of t2i and the queries of i2t.
        features: of this split, if they are at hand already.
    """
    known = features or encode_split(encoder, split)
    return Evaluation(
        dataset=split.dataset,
        split=split.name,
        t2i=metrics.from_features(known.text_features, known.image_features, known.caption_pids, known.image_pids),
        i2t=metrics.from_features(known.image_features, known.text_features, known.image_pids, known.caption_pids),
    )


def answer(
    encoder: Encoder, split: Split, queries: Sequence[str], k: int, features: SplitFeatures | None = None
) -> list[list[Hit]]:
    """The k best images of a split for each sentence.

    Args:
        encoder: the model.
        split: its images are the gallery.
        queries: sentences.
        k: hits per sentence, at most the number of images.
        features: of this split, if they are at hand already.

    Returns:
        Per sentence the hits, best first; `metadata` holds the image's `pid`, and its `attributes` if it has any.

    Raises:
        ValueError: k is above the gallery.
    """
    gallery = features.image_features if features else encoder.encode_image(split.image_paths)
    ranking = metrics.top_k(encoder.encode_text(queries), gallery, k)
    return [
        [
            Hit(
                image_id=str(split.records[index].image_path),
                score=score,
                rank=rank,
                metadata={"pid": split.records[index].pid, "attributes": dict(split.records[index].attributes or {})},
            )
            for rank, (index, score) in enumerate(zip(indices, scores, strict=True), start=1)
        ]
        for indices, scores in zip(ranking.indices.tolist(), ranking.scores.tolist(), strict=True)
    ]
