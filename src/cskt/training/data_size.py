"""Settings of a training that follow from the amount of its data: batch size, epochs, warm-up, selection.

Recipes are written for data sets of thousands of people. Values that nobody gave are fitted to smaller ones, and one
line says so; a value that was given stays, and is refused where nothing can be trained with it.
"""

from __future__ import annotations

import logging
from typing import Any

from cskt.config import DataConfig, RunConfig, changes_text, load_config, value_of
from cskt.data.mixing import TrainingData, read_training_data
from cskt.data.records import Split

logger = logging.getLogger(__name__)

MIN_STEPS_PER_EPOCH = 4
"""Fewest batches that an epoch should have, unless they would have fewer pairs than `MIN_BATCH_PAIRS`."""
MIN_BATCH_PAIRS = 16
"""Fewest pairs of a batch: a contrastive loss learns from the other pairs of a batch."""
MIN_STEPS = 60
"""Steps that a training should have."""
WARMUP_SHARE = 0.2
"""Share of the epochs to which a warm-up is reduced that takes more than half of them."""
MIN_HELD_OUT_PEOPLE = 5
"""Fewest people of a held-out split whose R1 is meaningful; with two, it is 50 % by chance."""
MAX_HOLDOUT_FRACTION = 0.25
"""Share of the people beyond which none are held out, because too few would be left to train on."""


def read_fitted_data(config: RunConfig, *, refuse_overlaps: bool = True) -> tuple[RunConfig, TrainingData]:
    """Read the training data of a config, and fit to it the values that nobody gave (`RunConfig.adaptable`).

    Returns:
        The config that is trained, in which nothing is left to fit, and its data; for errors see `read_training_data`.
    """
    data = read_training_data(config.data, config.seed, refuse_overlaps=refuse_overlaps)
    changes = _selection(config, data)
    if changes:
        selected = load_config(config, changes, fit=False)
        data = read_training_data(selected.data, config.seed, refuse_overlaps=refuse_overlaps)
    if config.is_trainable:
        changes |= _amounts(config, data)
        if changes.get("data.select_on") == "train" and _keeps_last(config):
            changes["loop.eval_period_epochs"] = changes.get("loop.num_epochs", config.loop.num_epochs)
    if changes:
        people, pairs = data.train.num_ids, len(data.train.captions)
        logger.info(
            "fitted to %d training pairs of %d people: %s; a flag overrides each",
            pairs, people, changes_text(config, changes),
        )  # fmt: skip
    fitted = load_config(config, changes, fit=False)
    for split in data.selection:
        if _is_held_out(fitted, split):
            logger.info(
                "%s has no val split: %d training identities held out to select the best epoch (seed %d)",
                split.dataset, split.num_ids, fitted.data.holdout_seed,
            )  # fmt: skip
    return fitted, data


def _is_held_out(config: RunConfig, selection: Split) -> bool:
    return config.data.select_on == "val" and selection.records[0].split == "train"


def _selection(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    """Return how the best epoch is selected if the people that a data set without val holds out would be too few."""
    selection = data.selection[0]
    if not _is_held_out(config, selection) or selection.num_ids >= MIN_HELD_OUT_PEOPLE:
        return {}
    if "data.holdout_fraction" not in config.adaptable:
        return {}
    num_people = selection.num_ids + data.train.num_ids  # of the first data set, or of all of a mix
    if (
        not config.data.mix
        and MAX_HOLDOUT_FRACTION * num_people >= MIN_HELD_OUT_PEOPLE
        and config.data.train_fraction == 1
    ):
        return {"data.holdout_fraction": round(MIN_HELD_OUT_PEOPLE / num_people, 4)}
    return {"data.select_on": "train"} if "data.select_on" in config.adaptable else {}


def _keeps_last(config: RunConfig) -> bool:
    """Return whether a run that selects on train keeps its last epoch: R1 there prefers the first that is perfect."""
    return "loop.eval_period_epochs" in config.adaptable and config.loop.patience_epochs is None


def _amounts(config: RunConfig, data: TrainingData) -> dict[str, Any]:
    """Return batch size, epochs and warm-up where those of the recipe are for more pairs."""
    fitted: dict[str, Any] = {}
    pairs = _num_pairs(config.data, data)
    size, epochs, warmup = config.data.batch_size, config.loop.num_epochs, config.optim.warmup_epochs
    if "data.batch_size" in config.adaptable and size * MIN_STEPS_PER_EPOCH > pairs:
        size = min(size, _fitting_size(config.data, pairs, data.train.num_ids))
        fitted["data.batch_size"] = size
    steps = -(-pairs // size)
    is_new = config.init_from is None  # a model that is trained already needs few steps, and forgets in many
    if is_new and "loop.num_epochs" in config.adaptable and epochs * steps < MIN_STEPS:
        epochs = -(-MIN_STEPS // steps)
        fitted["loop.num_epochs"] = epochs
    if "optim.warmup_epochs" in config.adaptable and 2 * warmup > epochs:
        fitted["optim.warmup_epochs"] = int(WARMUP_SHARE * epochs)
    return {key: value for key, value in fitted.items() if value != value_of(config, key)}


def _num_pairs(config: DataConfig, data: TrainingData) -> int:
    """Return the pairs that batches are drawn from: of an epoch, or of the smallest data set if a batch has one."""
    if not data.mix_parts:
        return len(data.train.captions)
    counts, first = [], 0
    for part in data.mix_parts:
        images = data.train.records[first : first + part.num_images]
        counts.append(max(1, round(part.weight * sum(len(record.captions) for record in images))))
        first += part.num_images
    return min(counts) if config.mix_batches == "one" else sum(counts)


def _fitting_size(config: DataConfig, pairs: int, people: int) -> int:
    """Return the largest batch size that leaves enough steps and that the sampler can fill."""
    size = max(pairs // MIN_STEPS_PER_EPOCH, min(pairs, MIN_BATCH_PAIRS))
    unit = config.captions_per_image
    if config.sampler != "random":
        unit, size = config.instances, min(size, people * config.instances)
    return max(size // unit * unit, unit)
