"""Noisy correspondences: captions of training pairs that change places, as RDE's experiments replace them.

Source: RDE (Qin et al., CVPR 2024), section 4.1. Images and identities stay, and the captions of val and test too.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from cskt.config import DataConfig
from cskt.data.records import Split
from cskt.errors import CsktError, MissingFileError, file_system_errors

logger = logging.getLogger(__name__)

STREAM = 2
"""Spawn key of the generator of the noise. `default_rng([seed, STREAM])` would be the generator that draws the batches
of the epoch with index 2."""


def with_noise(train: Split, whole: Split, data: DataConfig, seed: int) -> Split:
    """Return a training split in which some captions, with their back-translations, are those of other images.

    A file numbers the captions of `whole`, and its noise is that of the people of `train`; a rate is a share of the
    captions of `train`, and these change places among themselves.

    Args:
        train: the people that are trained on.
        whole: these and the people that are held out or left out, as the annotation file lists them.
        data: says what is replaced.
        seed: of the draw by rate.

    Raises:
        CsktError: see `noise_index`.
    """
    split = train if data.noise_file is None else whole
    index = noise_index(data, len(split.captions), seed)
    if index is None:
        return train
    noisy = _replaced(split, index).of_people(set(train.pids.values()))
    num_replaced = sum(noisy.is_replaced)
    logger.info("noise: %d of %d training captions are those of other images", num_replaced, len(noisy.captions))
    return noisy


def _replaced(split: Split, index: NDArray[np.int64]) -> Split:
    replaced, reworded = ([texts[other] for other in index] for texts in (split.captions, split.back_translations))
    is_replaced = (index != np.arange(len(index))).tolist()
    has_translations = any(reworded)
    records, first = [], 0
    for record in split.records:
        own = slice(first, first + len(record.captions))
        # With its own back-translations, training would see a replaced caption in other words.
        translations = tuple(reworded[own]) if has_translations else record.back_translations
        moved = dataclasses.replace(
            record, captions=tuple(replaced[own]), back_translations=translations, replaced=tuple(is_replaced[own])
        )
        records.append(moved)
        first = own.stop
    return Split(split.dataset, split.name, tuple(records), split.numbers)


def noise_index(data: DataConfig, num_captions: int, seed: int) -> NDArray[np.int64] | None:
    """Return for each training caption the one in its place, [num_captions]; None without noise.

    It is read from `data.noise_file`, or the share `data.noise_rate` of the captions, drawn with the seed, changes
    places so that none of these stays.

    Raises:
        CsktError: the file cannot be read or does not fit the captions; a rate at which no captions change places.
    """
    if data.noise_file is not None:
        return read_noise_file(Path(data.noise_file), num_captions)
    if not data.noise_rate:
        return None
    index = np.arange(num_captions)
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAM,)))
    chosen = random.permutation(num_captions)[: round(data.noise_rate * num_captions)]
    if len(chosen) < 2:
        raise CsktError(
            f"data.noise_rate {data.noise_rate:g}: of {num_captions} training captions {len(chosen)} would change"
            " places, which takes two; give a higher rate or more captions"
        )
    index[chosen] = np.roll(chosen, 1)
    return index


def read_noise_file(path: Path, num_captions: int) -> NDArray[np.int64]:
    """Read the format of RDE: a NumPy array of integers, of which number i is the caption that replaces caption i.

    Captions are numbered from 0 as the annotation file lists those of the training split.

    Raises:
        CsktError: no such file, or it is no array of one number from 0 to `num_captions` - 1 for each caption.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; data.noise_file names a file that numpy.save has written")
    with file_system_errors(path):
        try:
            index = open_memmap(path, mode="r")  # mapped, a header cannot ask for memory
        except (ValueError, EOFError, OverflowError):
            raise CsktError(
                f"{path}: no NumPy array, an incomplete one, or one of Python objects; give a file of integers that"
                " numpy.save has written"
            ) from None
    if index.dtype.kind not in "iu" or index.ndim != 1:
        found = f"{index.dtype} {list(index.shape)}"
        raise CsktError(f"{path}: expected an array of integers, one for each training caption; found {found}")
    if len(index) != num_captions:
        raise CsktError(
            f"{path}: {len(index)} numbers, but the annotation has {num_captions} training captions; give the file of"
            " this data set"
        )
    if num_captions and (index.min() < 0 or index.max() >= num_captions):
        raise CsktError(f"{path}: holds {index.min()} to {index.max()}; captions are numbered 0 to {num_captions - 1}")
    return np.asarray(index, dtype=np.int64)
