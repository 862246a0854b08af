"""Evaluation of a model on a split: metrics in both directions, per-query results, and answers to sentences."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cskt import metrics
from cskt.config import RunConfig
from cskt.data.datasets import dataset_key
from cskt.data.mixing import sources_of
from cskt.data.overlaps import read_separate_splits
from cskt.data.records import Split, UnknownSplitError, find_split, select_splits
from cskt.data.tokenizer import log_caption_warnings
from cskt.embed import Encoder, load
from cskt.embed.model_paths import check_exists, run_config
from cskt.errors import SMALLER_BATCHES, CsktError, file_system_errors, out_of_memory_errors
from cskt.evaluation.rerank import RankingOptions, expand_queries, rerank_similarity
from cskt.evaluation.results import Result, ResultInfo
from cskt.plugins import load_plugins
from cskt.types import Hit, RetrievalMetrics
from cskt.utils.arguments import expect, listed

logger = logging.getLogger(__name__)


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
    image_seconds: float = float("nan")
    """Duration of encoding the images."""
    text_seconds: float = float("nan")
    """Duration of encoding the captions."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one split."""

    dataset: str
    split: str
    t2i: RetrievalMetrics
    """Text to image, the task: captions are the queries."""
    i2t: RetrievalMetrics
    """Image to text: images are the queries."""

    def summary(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        directions = {"t2i": self.t2i.summary(), "i2t": self.i2t.summary()}
        return {"dataset": self.dataset, "split": self.split, **directions}


@dataclass(frozen=True)
class ModelDescription:
    """Name of a model in tables, and what a result records of it."""

    label: str
    seed: int | None = None
    """Seed of its training."""
    note: str = ""
    """A condition that a reader must know, such as `selected on test`."""
    facts: ResultInfo = field(default_factory=ResultInfo)


@out_of_memory_errors(SMALLER_BATCHES)
def encode_split(encoder: Encoder, split: Split) -> SplitFeatures:
    """Encode every image and every caption of a split once."""
    log_caption_warnings(f"{split.dataset} {split.name}", encoder.text_warnings(split.captions))
    begin = time.perf_counter()
    image_features = encoder.encode_image(split.image_paths)
    between = time.perf_counter()
    text_features = encoder.encode_text(split.captions)
    seconds = between - begin, time.perf_counter() - between
    pids = torch.tensor(split.image_pids), torch.tensor(split.caption_pids)
    return SplitFeatures(image_features, text_features, *pids, *seconds)


@out_of_memory_errors(SMALLER_BATCHES)
def evaluate(
    model: Encoder | str | Path,
    split: Split | str = "test",
    features: SplitFeatures | None = None,
    options: RankingOptions | None = None,
    *,
    dataset: str | None = None,
    root: str | None = None,
    plugins: str | Path | Iterable[str | Path] = (),
) -> Evaluation:
    """Compute retrieval metrics of a model on a split, in both directions.

    Metrics are exact: R1, R5, R10 (CMC), mAP and mINP of `cskt.metrics`; equal similarities rank in the split's order.

    Args:
        model: an encoder, or what `cskt.load` takes: a run folder, weights, a published name.
        split: a split, or the name of one: train, val or test. Its images are the gallery of text to image and the
            queries of image to text.
        features: of this split, to encode nothing.
        options: test-time options of text to image; image to text always ranks by the cosine.
        dataset, root: data set of a split given by name; by default those that the model was trained on.
        plugins: Python files or modules with the data set and the method parts of the model; their code is run.

    Returns:
        Metrics as fractions in [0, 1], text to image in `t2i` and image to text in `i2t`.

    Raises:
        CsktError: model, data set or an image cannot be read, or an option does not fit the split.

    Example:
        >>> evaluation = cskt.evaluate("clip-tiny", "test", dataset="cuhk-pedes", root="data")
        >>> 0 <= evaluation.t2i.r1 <= evaluation.t2i.r5 <= 1
        True
    """
    if features is None:
        expect(model, (Encoder, str, Path), "model")
    expect(split, (Split, str), "split")
    load_plugins(plugins)
    if isinstance(split, str):
        path = model if isinstance(model, str | Path) else model.source and model.source.path
        if path is None:
            raise CsktError(f"split '{split}': the encoder has no source that names its data; give a Split")
        split = split_of(str(path), dataset, root, split)
    options = options or RankingOptions()
    options.check(len(split.captions), len(split.records))
    if features is None:
        features = encode_split(load(model) if isinstance(model, str | Path) else model, split)
    return Evaluation(
        dataset=split.dataset,
        split=split.name,
        t2i=_rank_images(features, options),
        i2t=metrics.from_features(
            features.image_features, features.text_features, features.image_pids, features.caption_pids
        ),
    )


def split_of(model: str, dataset: str | None, root: str | None, split: str, *, refuse_overlaps: bool = True) -> Split:
    """Read a split; the data set and its root are those of the model's run where they are not given.

    If the run's own data set has no val split (ICFG-PEDES), `val` are the identities that the run held out to select
    its best epoch, and `train` the others. For `refuse_overlaps` see `read_separate_splits`.
    """
    check_exists(model)
    own = run_config(Path(model))
    if own and not root:
        _check_not_moved(model, [own.data.root])
    name, place = dataset or (own.data.dataset if own else None), root or (own.data.root if own else None)
    if not name or not place:
        missing = [flag for flag, known in (("--dataset rstpreid", name), ("--root DIR", place)) if not known]
        raise CsktError(f"{model} is no run that names its data; say which to use: {' '.join(missing)}")
    held_out_by = own if own and is_own_dataset(own, dataset) else None
    return _split_in(name, place, split, held_out_by, refuse_overlaps=refuse_overlaps)


def splits_of(model: str, dataset: str | None, roots: Sequence[str], split: str) -> list[tuple[str, Split]]:
    """Read a split of each of several data sets, with its root; see `split_of`.

    Without a data set and roots these are all that the model's run was trained on (`data.mix`); as many roots as these
    are their new places, in the same order. Of these, all but the first may lack the split: they are left out.
    """
    check_exists(model)
    own = run_config(Path(model))
    sources = sources_of(own.data) if own and dataset is None else []
    if own and len(sources) > 1 and len(roots) in (0, len(sources)):
        places = roots or [source.root for source in sources]
        if not roots:
            _check_not_moved(model, places)
        found = []
        for source, place in zip(sources, places, strict=True):
            try:
                found.append((place, _split_in(str(source.dataset), place, split, own)))
            except UnknownSplitError as error:  # pairs for pre-training may have no test split
                if source is sources[0]:
                    raise
                logger.warning("%s: %s; it is left out", place, error)
        return found
    if len(roots) > 1:
        return [(root, split_of(model, dataset, root, split)) for root in roots]
    root = roots[0] if roots else None
    return [(root or (own.data.root if own else ""), split_of(model, dataset, root, split))]


def _check_not_moved(model: str, roots: Sequence[str]) -> None:
    for root in roots:
        with file_system_errors(root):
            has_moved = not Path(root).is_dir()
        if has_moved:
            order = (
                f" for each of its {len(roots)} data sets, in the order {', '.join(roots)}" if len(roots) > 1 else ""
            )
            raise CsktError(
                f"{root}: no such folder from here, though {model} had its data there; say where: --root DIR{order}"
            )


def _split_in(
    name: str, root: str, split: str, held_out_by: RunConfig | None, *, refuse_overlaps: bool = True
) -> Split:
    """Read a split; one that a run held out itself, if the data set does not have it."""
    splits = read_separate_splits(name, Path(root), refuse=refuse_overlaps)
    if held_out_by and held_out_by.data.select_on == "val" and "val" not in splits:
        train, val = select_splits(splits, held_out_by.data)
        splits = splits | {"train": train, "val": val}
    return find_split(splits, split)


def is_own_dataset(own: RunConfig, dataset: str | None) -> bool:
    """Return whether a data set, named by the user or not, is the one of a run's training, wherever it is now."""
    # Two data sets named `jsonl` may be different ones.
    return dataset is None or dataset_key(dataset) == own.data.dataset != "jsonl"


def _rank_images(features: SplitFeatures, options: RankingOptions) -> RetrievalMetrics:
    """Metrics of text to image with test-time options."""
    queries = features.text_features
    if options.query_expansion:
        queries = expand_queries(queries, options.query_expansion)
    if not options.rerank:
        return metrics.from_features(queries, features.image_features, features.caption_pids, features.image_pids)
    similarity_of = rerank_similarity(queries, features.image_features, options)
    return metrics.from_chunks(similarity_of, features.caption_pids, features.image_pids)


@out_of_memory_errors(SMALLER_BATCHES)
def result_of(encoder: Encoder, split: Split, model: ModelDescription, options: RankingOptions | None = None) -> Result:
    """Evaluate a split with its encoding timed after a first batch of each kind, and record every query.

    The facts of `model` are completed by rates, device, precision and, if unknown, size.
    """
    options = options or RankingOptions()
    options.check(len(split.captions), len(split.records))
    _warm_up(encoder, split)
    features = encode_split(encoder, split)
    timed = replace(
        model.facts,
        images_per_second=len(split.records) / features.image_seconds,
        captions_per_second=len(split.captions) / features.text_seconds,
    )
    evaluation = evaluate(encoder, split, features, options)
    return as_result(evaluation, encoder, split, replace(model, facts=timed), options)


def _warm_up(encoder: Encoder, split: Split) -> None:
    """Encode a batch of each kind: the first waits seconds for kernels on CUDA, which would spoil the rates."""
    shown, encoder.show_progress = encoder.show_progress, False
    try:
        encoder.encode_image(split.image_paths[: encoder.batch_size])
        encoder.encode_text(["a person"] * encoder.batch_size)
    finally:
        encoder.show_progress = shown


def as_result(
    evaluation: Evaluation,
    encoder: Encoder,
    split: Split,
    model: ModelDescription,
    options: RankingOptions | None = None,
) -> Result:
    """Return an evaluation of `encoder` on `split` as a result that can be stored; see `result_of`."""
    options = options or RankingOptions()
    per_query = evaluation.t2i.per_query
    one_identity = ["one identity: every answer is right, whatever the model"] if split.num_ids == 1 else []
    return Result(
        dataset=split.dataset,
        split=split.name,
        split_sha256=split.sha256,
        label=model.label,
        metrics={"t2i": evaluation.t2i.summary(), "i2t": evaluation.i2t.summary()},
        query_pids=np.array([split.pids[pid] for pid in per_query.query_ids.tolist()]),
        first_right_rank=per_query.first_right_rank.numpy(),
        average_precision=per_query.average_precision.numpy(),
        inverse_negative_penalty=per_query.inverse_negative_penalty.numpy(),
        seed=model.seed,
        options=options.slug(),
        note="; ".join([*filter(None, (model.note, encoder.note)), *one_identity, *options.notes()]),
        facts=replace(
            model.facts,
            total_parameters=model.facts.total_parameters or encoder.model.num_parameters(),
            device=str(encoder.device),
            precision=encoder.precision,
        ),
    )


@out_of_memory_errors(SMALLER_BATCHES)
def search_split(
    encoder: Encoder, split: Split, queries: str | Sequence[str], k: int, features: SplitFeatures | None = None
) -> list[list[Hit]]:
    """Return the k best images of a split for each sentence; `metadata` has the `pid` and `attributes` of an image.

    `features` are those of this split, to encode no image.
    """
    gallery = features.image_features if features else encoder.encode_image(split.image_paths)
    ranking = metrics.top_k(encoder.encode_text(listed(queries, str, "queries")), gallery, k)
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
