"""Identities and images that two splits or two people share, which makes training or its figures wrong."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations
from pathlib import Path

from cskt.data.datasets import DATASETS, dataset_key, read_dataset
from cskt.data.records import Record, Split, sorted_pids
from cskt.errors import CsktError

logger = logging.getLogger(__name__)

NUM_NAMED = 3
"""Files or identities that a message names before it only counts."""
NUM_THREADS = 8
"""Threads that look up files, which takes long over a network."""


def read_separate_splits(name: str, root: Path, *, refuse: bool = True) -> dict[str, Split]:
    """Read a data set and check that its splits share no identity and no file, and its people no file.

    Files are compared by path, and those of a data set of the user's own also by device and inode, so that links and
    names that differ in case are recognised. Their content is not read; `check_dataset` reads it.

    Args:
        refuse: raise instead of logging a warning once. A published data set never raises: it is used as its authors
            released it.
    """
    dataset = read_dataset(name, root)
    is_published = bool(DATASETS[dataset_key(name)].published_counts)
    found = overlaps(dataset, path_keys(dataset) if is_published else file_keys(dataset))
    if not found:
        return dataset
    more = f" (and {len(found) - 1} more findings)" if len(found) > 1 else ""
    message = f"{root}: {found[0]}{more}; 'cskt data check {shlex.quote(str(root))}' lists all"
    if refuse and not is_published:
        raise CsktError(message)
    _warn_once(message)
    return dataset


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s. Figures on this data set may be too high", message)


def path_keys(dataset: Mapping[str, Split]) -> dict[Path, Hashable]:
    """Return a key for each image path, equal for two spellings of a path; the file system is not read."""
    return {path: _spelled(path) for split in dataset.values() for path in split.image_paths}


def file_keys(dataset: Mapping[str, Split]) -> dict[Path, Hashable]:
    """Return a key for each image path, equal for two paths of the same file; that of the path if there is no file."""
    paths = list(path_keys(dataset))
    parts = [paths[start::NUM_THREADS] for start in range(NUM_THREADS)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        keys = pool.map(lambda part: {path: _file_key(path) for path in part}, parts)
        return {path: key for part in keys for path, key in part.items()}


def _file_key(path: Path) -> Hashable:
    try:
        state = path.stat()
    except (OSError, ValueError):  # no such file; a name that no file can have
        return _spelled(path)
    # Some network file systems have no inode numbers, or give several files the same one of the same size.
    return (state.st_dev, state.st_ino, state.st_size) if state.st_ino else _spelled(path)


def _spelled(path: Path) -> str:
    return os.path.normcase(os.path.normpath(path.absolute()))


def overlaps(dataset: Mapping[str, Split], keys: Mapping[Path, Hashable]) -> list[str]:
    """Return a sentence, with the remedy, on each kind of thing that is shared.

    The keys of two image paths are equal exactly if they are to count as the same image.
    """
    return [*_shared_identities(dataset), *_shared_images(dataset, same_images(dataset, keys))]


def _shared_identities(dataset: Mapping[str, Split]) -> Iterator[str]:
    for one, other in combinations(dataset.values(), 2):
        if shared := sorted_pids(set(one.pids.values()) & set(other.pids.values())):
            yield (
                f"identities in both {one.name} and {other.name}: {len(shared)} ({some(shared)}); "
                "number people apart and keep each in one split"
            )


def _shared_images(dataset: Mapping[str, Split], groups: Sequence[Sequence[Record]]) -> Iterator[str]:
    for one, other in combinations(dataset, 2):
        firsts = [{record.split: record for record in reversed(group)} for group in groups]
        named = [names_of([first[one], first[other]]) for first in firsts if {one, other} <= first.keys()]
        if named:
            yield f"images in both {one} and {other}: {len(named)} ({some(named)}); keep each in one split"
    named = []
    for group in groups:
        first_of = {record.pid: record for record in reversed(group)}
        if len(first_of) > 1:
            one_pid, other_pid = sorted_pids(first_of)[:2]
            named.append(f"{names_of([first_of[one_pid], first_of[other_pid]])} of {one_pid} and {other_pid}")
    if named:
        yield f"images under more than one identity: {len(named)} ({some(named)}); keep the record of the right person"


def same_images(dataset: Mapping[str, Split], keys: Mapping[Path, Hashable]) -> list[list[Record]]:
    """Return the records of each image that has more than one, in the order of the data set."""
    groups: dict[Hashable, list[Record]] = {}
    for split in dataset.values():
        for record in split.records:
            groups.setdefault(keys[record.image_path], []).append(record)
    return [group for group in groups.values() if len(group) > 1]


def names_of(records: Sequence[Record]) -> str:
    """Return `a.jpg`, or `a.jpg = b.jpg` where the same image has two paths."""
    return " = ".join(list(dict.fromkeys(str(record.image_path) for record in records))[:2])


def some(items: Sequence[object]) -> str:
    """Return the first few items, and how many more there are."""
    named = ", ".join(str(item) for item in items[:NUM_NAMED])
    return named if len(items) <= NUM_NAMED else f"{named} and {len(items) - NUM_NAMED} more"
