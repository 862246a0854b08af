"""Training data of a config: the splits of one data set, or of several that one training mixes (`data.mix`)."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

from cskt.config import DataConfig, MixedDataset
from cskt.data.noise import with_noise
from cskt.data.overlaps import file_keys, overlaps, read_separate_splits
from cskt.data.records import Record, Split, select_splits
from cskt.errors import CsktError

logger = logging.getLogger(__name__)


class MixPart(NamedTuple):
    """Consecutive images of a training split that come from one data set."""

    num_images: int
    weight: float
    """Times that each pair is in an epoch."""


class TrainingData(NamedTuple):
    """Splits that a training reads."""

    train: Split
    """All training pairs, one data set after the other."""
    mix_parts: tuple[MixPart, ...]
    """The data sets in it; empty if it is one alone."""
    selection: tuple[Split, ...]
    """Selection split of each data set; the first one picks the best epoch."""


def sources_of(data: DataConfig) -> list[MixedDataset]:
    """Return the data sets of a config, that of `data.root` first, each with its name."""
    first = MixedDataset(data.root, data.dataset)
    return [first, *(dataclasses.replace(other, dataset=other.dataset or data.dataset) for other in data.mix)]


def read_training_data(data: DataConfig, seed: int = 0, *, refuse_overlaps: bool = True) -> TrainingData:
    """Read the data sets of a training, and choose from each what is trained on and what selects.

    Identities of a mix are kept apart by the number of their data set: 7 of the second one is `2/7`. `seed` decides
    which captions `data.noise_rate` replaces.

    Raises:
        CsktError: a data set cannot be read, lacks a split, or shares an image with another one; for `refuse_overlaps`
            see `read_separate_splits`, for noise `noise_index`.
    """
    sources = sources_of(data)
    datasets = [read_separate_splits(str(one.dataset), Path(one.root), refuse=refuse_overlaps) for one in sources]
    read = [select_splits(dataset, data) for dataset in datasets]
    selection = tuple(split for _, split in read)
    if not data.mix:
        return TrainingData(with_noise(read[0][0], datasets[0]["train"], data, seed), (), selection)
    train, val = (_joined([pair[place] for pair in read]) for place in (0, 1))
    both = {"train": train, val.name: val}
    if found := overlaps(both, file_keys(both)):
        message = f"data.mix: {found[0]}; the data sets of a mix must not share images"
        if refuse_overlaps:
            raise CsktError(message)
        logger.warning("%s", message)
    for (split, _), source in zip(read, sources, strict=True):
        logger.info(
            "mix: %s in %s, %d pairs, each %g times in an epoch",
            split.dataset, source.root, len(split.captions), source.weight,
        )  # fmt: skip
    parts = tuple(MixPart(len(split.records), source.weight) for (split, _), source in zip(read, sources, strict=True))
    return TrainingData(train, parts, selection)


def _joined(splits: list[Split]) -> Split:
    def apart(number: int, record: Record) -> Record:
        return dataclasses.replace(record, pid=f"{number}/{record.pid}")

    records = tuple(apart(number, record) for number, split in enumerate(splits, start=1) for record in split.records)
    return Split(" + ".join(split.dataset for split in splits), splits[0].name, records)
