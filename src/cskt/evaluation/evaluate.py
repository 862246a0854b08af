"""A model on a split: retrieval metrics in both directions, per-query results, and the ranked answers to sentences."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cskt import metrics
from cskt.data.records import Split
from cskt.data.tokenizer import log_caption_warnings
from cskt.embed import Encoder, load
from cskt.errors import SMALLER_BATCHES, CsktError, out_of_memory_errors
from cskt.evaluation.model_data import split_of
from cskt.evaluation.rerank import expand_queries, rerank_similarity
from cskt.evaluation.results import Facts, Result
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


@dataclass(frozen=True)
class RankingOptions:
    """How captions rank images at test time beyond the cosine; off by default, and noted in every result."""

    query_expansion: int = 0
    """Other captions that a query is averaged with; see `rerank.expand_queries`."""
    rerank: bool = False
    """k-reciprocal re-ranking; see `rerank.rerank_similarity`."""
    rerank_k1: int = 20
    """Neighbours of a caption or an image in re-ranking."""
    rerank_k2: int = 6
    """Vectors that re-ranking averages."""
    rerank_weight: float = 0.3
    """Share of the cosine in re-ranking, from 0 to 1."""

    def check(self, num_queries: int, num_gallery: int) -> None:
        """See that a split is large enough, before it is encoded.

        Raises:
            CsktError: it is not, or a number makes no sense.
        """
        if self.query_expansion and not 1 <= self.query_expansion < num_queries:
            raise CsktError(
                f"query expansion by {self.query_expansion} of {num_queries} captions; give 1 to {num_queries - 1}"
            )
        if self.rerank and not 1 <= self.rerank_k2 <= self.rerank_k1 <= num_gallery:
            raise CsktError(
                f"re-ranking with k1 {self.rerank_k1}, k2 {self.rerank_k2} of {num_gallery} images; give a k1 of 1 to"
                f" {num_gallery} and a k2 of 1 to k1"
            )
        if not 0 <= self.rerank_weight <= 1:
            raise CsktError(f"re-ranking with weight {self.rerank_weight}; give a fraction from 0 to 1")

    def words(self) -> list[str]:
        """The options that are on, each in the words of a note."""
        words = []
        if self.query_expansion:
            words.append(f"query expansion {self.query_expansion}: uses the other queries")
        if self.rerank:
            constants = f"k1 {self.rerank_k1}, k2 {self.rerank_k2}, weight {self.rerank_weight:g}"
            words.append(f"re-ranked ({constants}): uses the other images of the gallery")
        return words

    def slug(self) -> str:
        """The options that are on, in the words of a file name; empty if none is."""
        parts = [f"query-expansion-{self.query_expansion}"] if self.query_expansion else []
        if self.rerank:
            parts.append(f"rerank-{self.rerank_k1}-{self.rerank_k2}-{self.rerank_weight:g}")
        return "-".join(parts)


@out_of_memory_errors(SMALLER_BATCHES)
def encode_split(encoder: Encoder, split: Split) -> SplitFeatures:
    """Encode every image and every caption of a split once.

    Raises:
        CsktError: an image cannot be read.
    """
    return _timed_features(encoder, split).features


class _TimedFeatures(NamedTuple):
    features: SplitFeatures
    image_seconds: float
    text_seconds: float


def _timed_features(encoder: Encoder, split: Split) -> _TimedFeatures:
    log_caption_warnings(f"{split.dataset} {split.name}", encoder.text_warnings(split.captions))
    begin = time.perf_counter()
    image_features = encoder.encode_image(split.image_paths)
    between = time.perf_counter()
    text_features = encoder.encode_text(split.captions)
    end = time.perf_counter()
    pids = torch.tensor(split.image_pids), torch.tensor(split.caption_pids)
    return _TimedFeatures(SplitFeatures(image_features, text_features, *pids), between - begin, end - between)


def _warm_up(encoder: Encoder, split: Split) -> None:
    """Encode a batch of each kind: on CUDA the first waits seconds for kernels, which would stand in the rates."""
    shown, encoder.show_progress = encoder.show_progress, False
    try:
        encoder.encode_image(split.image_paths[: encoder.batch_size])
        encoder.encode_text(["a person"] * encoder.batch_size)
    finally:
        encoder.show_progress = shown


@out_of_memory_errors(SMALLER_BATCHES)
def evaluate(
    model: Encoder | str | Path,
    split: Split | str = "test",
    features: SplitFeatures | None = None,
    options: RankingOptions | None = None,
    *,
    dataset: str | None = None,
    root: str | None = None,
) -> Evaluation:
    """Compute retrieval metrics of a model on a split, in both directions.

    Metrics are exact: R1, R5, R10 (CMC), mAP and mINP of `cskt.metrics`; equal similarities rank in the split's order.

    Args:
        model: an encoder, or what `cskt.load` takes: a run folder, weights, a published name.
        split: a split, or with a run its name: train, val or test. Its images are the gallery of text to image and the
            queries of image to text.
        features: of this split, to encode nothing.
        options: of text to image; image to text always ranks by the cosine.
        dataset, root: data set of a split given by name; by default those of the run.

    Returns:
        Metrics as fractions in [0, 1], text to image in `t2i` and image to text in `i2t`.

    Raises:
        CsktError: model, data set or an image cannot be read, or an option does not fit the split.

    Example::

        evaluation = cskt.evaluate("logs/cuhk-pedes/run", "test")
        print(f"R1 {100 * evaluation.t2i.r1:.2f}")
    """
    if isinstance(split, str):
        if not isinstance(model, str | Path):
            raise CsktError(f"split '{split}' is a name, which only a run explains; give a Split of cskt.read_dataset")
        split = split_of(str(model), dataset, root, split)
    if features is None:
        features = encode_split(load(model) if isinstance(model, str | Path) else model, split)
    return Evaluation(
        dataset=split.dataset,
        split=split.name,
        t2i=rank_images(features, options or RankingOptions()),
        i2t=metrics.from_features(
            features.image_features, features.text_features, features.image_pids, features.caption_pids
        ),
    )


def rank_images(features: SplitFeatures, options: RankingOptions) -> RetrievalMetrics:
    """Text to image with test-time options.

    Raises:
        CsktError: an option out of the range that the split's size leaves it.
    """
    queries = features.text_features
    if options.query_expansion:
        queries = expand_queries(queries, options.query_expansion)
    if not options.rerank:
        return metrics.from_features(queries, features.image_features, features.caption_pids, features.image_pids)
    similarity_of = rerank_similarity(
        queries,
        features.image_features,
        k1=options.rerank_k1,
        k2=options.rerank_k2,
        weight=options.rerank_weight,
    )
    return metrics.from_chunks(similarity_of, features.caption_pids, features.image_pids)


@out_of_memory_errors(SMALLER_BATCHES)
def result_of(
    encoder: Encoder,
    split: Split,
    *,
    label: str,
    seed: int | None = None,
    note: str = "",
    facts: Facts | None = None,
    options: RankingOptions | None = None,
) -> Result:
    """Encode a split, timed after a first batch of each kind, and keep what became of each query.

    Args:
        encoder: the model.
        split: images are the gallery of text to image.
        label: what the model is called.
        seed: of its training.
        note: a condition that a reader must know, such as `selected on test`.
        facts: what is known of the model; rates, device and precision are filled in, and its size if it is not known.
        options: of text to image; image to text always ranks by the cosine.

    Raises:
        CsktError: an image cannot be read, or an option does not fit the split.
    """
    ranking, known = options or RankingOptions(), facts or Facts()
    ranking.check(len(split.captions), len(split.records))
    _warm_up(encoder, split)
    timed = _timed_features(encoder, split)
    found = evaluate(encoder, split, timed.features, ranking)
    rates = replace(
        known,
        images_per_second=len(split.records) / timed.image_seconds,
        captions_per_second=len(split.captions) / timed.text_seconds,
    )
    return as_result(found, encoder, split, label=label, seed=seed, note=note, facts=rates, options=ranking)


@out_of_memory_errors(SMALLER_BATCHES)
def as_result(
    evaluation: Evaluation,
    encoder: Encoder,
    split: Split,
    *,
    label: str,
    seed: int | None = None,
    note: str = "",
    facts: Facts,
    options: RankingOptions,
) -> Result:
    """An evaluation with what became of each query, to be kept; see `result_of`.

    Args:
        evaluation: of `encoder` on `split`, ranked by `options`.
        facts: device and precision are filled in, and the model's size if it is not known.
    """
    per_query = evaluation.t2i.per_query
    one_identity = ["one identity: every answer is right, whatever the model"] if split.num_ids == 1 else []
    return Result(
        dataset=split.dataset,
        split=split.name,
        split_sha256=split.sha256,
        label=label,
        metrics={"t2i": evaluation.t2i.summary(), "i2t": evaluation.i2t.summary()},
        query_pids=per_query.query_ids.numpy(),
        first_right_rank=per_query.first_right_rank.numpy(),
        average_precision=per_query.average_precision.numpy(),
        inverse_negative_penalty=per_query.inverse_negative_penalty.numpy(),
        seed=seed,
        options=options.slug(),
        note="; ".join([*([note] if note else []), *one_identity, *options.words()]),
        facts=replace(
            facts,
            total_parameters=facts.total_parameters or encoder.model.num_parameters(),
            device=str(encoder.device),
            precision=encoder.precision,
        ),
    )


@out_of_memory_errors(SMALLER_BATCHES)
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
        CsktError: k is above the gallery.
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
