"""Records of images and captions, splits of them, and the selection of the splits that a training uses."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from cskt.config import DataConfig
from cskt.errors import CsktError

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "val", "test")
Pid: TypeAlias = int | str
"""An identity as the annotation file writes it."""


class SplitCounts(NamedTuple):
    """Size of a split."""

    num_ids: int
    num_images: int
    num_captions: int


@dataclass(frozen=True)
class Record:
    """One image of one person, with its captions."""

    pid: Pid
    """The identity, as the annotation file writes it: a number or a name."""
    image_path: Path
    captions: tuple[str, ...]
    """At least one."""
    split: str
    """train, val or test."""
    attributes: Mapping[str, Any] | None = field(default=None, hash=False)
    back_translations: tuple[str, ...] | None = None
    """Each caption, translated to another language and back; empty where a caption has none."""
    replaced: tuple[bool, ...] | None = None
    """True for each caption that is of another image (`data.noise_rate`, `data.noise_file`); None: no caption is."""


@dataclass(frozen=True)
class Split:
    """The records of one split, in the order of the file, with flat views of images and captions."""

    dataset: str
    name: str
    records: tuple[Record, ...]
    numbers: Mapping[Pid, int] | None = field(default=None, compare=False, repr=False)
    """`number_pids` of the whole data set; of this split alone if None."""

    @cached_property
    def image_paths(self) -> list[Path]:
        """Path of each image."""
        return [record.image_path for record in self.records]

    @cached_property
    def image_pids(self) -> list[int]:
        """Identity of each image as an integer: the file's own number, or that of a name by `number_pids`."""
        numbers = number_pids(record.pid for record in self.records) if self.numbers is None else self.numbers
        return [numbers[record.pid] for record in self.records]

    @cached_property
    def captions(self) -> list[str]:
        """All captions, image by image."""
        return [caption for record in self.records for caption in record.captions]

    @cached_property
    def back_translations(self) -> list[str]:
        """Back-translation of each caption; empty where there is none."""
        return [text for record in self.records for text in record.back_translations or [""] * len(record.captions)]

    @cached_property
    def is_replaced(self) -> list[bool]:
        """True for each caption that is of another image; see `Record.replaced`."""
        return [flag for record in self.records for flag in record.replaced or [False] * len(record.captions)]

    @cached_property
    def caption_image_ids(self) -> list[int]:
        """Index of the image that each caption describes."""
        return [image_id for image_id, record in enumerate(self.records) for _ in record.captions]

    @cached_property
    def caption_pids(self) -> list[int]:
        """Identity that each caption describes, an integer as in `image_pids`."""
        return [self.image_pids[image_id] for image_id in self.caption_image_ids]

    @cached_property
    def pids(self) -> dict[int, Pid]:
        """Integer of each identity -> the identity as the annotation file writes it."""
        return {number: record.pid for number, record in zip(self.image_pids, self.records, strict=True)}

    @property
    def num_ids(self) -> int:
        """Number of distinct identities."""
        return len(self.pids)

    @cached_property
    def sha256(self) -> str:
        """Digest of identities, image file names and captions, in order, without the folder of the data set."""
        digest = hashlib.sha256()
        for record in self.records:
            line = json.dumps([record.pid, record.image_path.name, *record.captions])
            digest.update(f"{line}\n".encode())
        return digest.hexdigest()

    def of_people(self, pids: Collection[Pid], name: str | None = None) -> Split:
        """Return the images of some identities, as a split of this name or of the same one."""
        members = tuple(record for record in self.records if record.pid in pids)
        return Split(self.dataset, name or self.name, members, self.numbers)

    @property
    def counts(self) -> SplitCounts:
        """Identities, images and captions."""
        return SplitCounts(self.num_ids, len(self.records), len(self.captions))


def number_pids(pids: Iterable[Pid]) -> dict[Pid, int]:
    """Return the integer that stands for each identity in tensors.

    Where all identities are integers, each stands for itself. Otherwise they are numbered from 0, in the order of
    `sorted_pids`.

    Raises:
        CsktError: an identity is written both as a number and as a string, such as 7 and "7".

    Example:
        >>> number_pids([7, 3]), number_pids(["ben", "anna", "ben"])
        ({7: 7, 3: 3}, {'anna': 0, 'ben': 1})
    """
    distinct = dict.fromkeys(pids)
    if all(isinstance(pid, int) for pid in distinct):
        return {pid: int(pid) for pid in distinct}
    for pid in distinct:
        if isinstance(pid, int) and str(pid) in distinct:
            raise CsktError(f"the identity {pid} is also written as '{pid}'; write one person in one way")
    return {pid: number for number, pid in enumerate(sorted_pids(distinct))}


def sorted_pids(pids: Iterable[Pid]) -> list[Pid]:
    """Return identities in order: integers, then strings."""
    return sorted(pids, key=lambda pid: (isinstance(pid, str), pid))


class UnknownSplitError(CsktError):
    """A data set has no split of that name."""


def find_split(dataset: Mapping[str, Split], name: str) -> Split:
    """Return the split of that name, or raise an UnknownSplitError that lists the splits of the data set."""
    if name not in dataset:
        raise UnknownSplitError(f"the data set has no split '{name}'; it has {', '.join(dataset) or 'none'}")
    return dataset[name]


def select_splits(dataset: Mapping[str, Split], data: DataConfig) -> tuple[Split, Split]:
    """Return the split to train on and the one that selects the best epoch.

    With `select_on` val and no val split (ICFG-PEDES), `holdout_fraction` of the training identities are held out
    as val. `train_fraction` then keeps that share of the remaining identities. Both choices depend only on
    `holdout_seed` and the identities, and are nested: a larger fraction keeps what a smaller one kept.
    """
    train = find_split(dataset, "train")
    if data.select_on != "val" or "val" in dataset:
        selection = find_split(dataset, data.select_on)
    else:
        ordered = shuffled_pids(train.pids.values(), f"holdout {data.holdout_seed}")
        num_held_out = max(1, round(data.holdout_fraction * len(ordered)))
        if num_held_out >= len(ordered):
            raise CsktError(
                f"{train.dataset} has no val split and only {len(ordered)} training identity to hold out from; "
                "add a val split or set data.select_on to train or test"
            )
        selection = train.of_people(set(ordered[:num_held_out]), name="val")
        train = train.of_people(set(ordered[num_held_out:]))
    if data.train_fraction < 1:
        ordered = shuffled_pids(train.pids.values(), f"fraction {data.holdout_seed}")
        num_kept = max(1, round(data.train_fraction * len(ordered)))
        train = train.of_people(set(ordered[:num_kept]))
        logger.info("%s: training on %d of %d identities", train.dataset, num_kept, len(ordered))
    return train, selection


def shuffled_pids(pids: Iterable[Pid], salt: str) -> list[Pid]:
    """Return distinct identities in an order that depends only on `salt` and on each identity."""
    # A hash per identity, rather than a random generator: the same on every platform and library version, and a
    # changed data set moves only the identities that changed.
    return sorted(pids, key=lambda pid: hashlib.sha256(f"{salt} {pid}".encode()).digest())
