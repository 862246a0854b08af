"""Identities and images that two splits or two people share, which makes training or its figures wrong."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations
from pathlib import Path

from cskt.data.annotations import PUBLISHED_COUNTS, read_dataset
from cskt.data.records import Record, Split
from cskt.errors import CsktError

logger = logging.getLogger(__name__)

NUM_NAMED = 3
"""Files or identities that a message names before it only counts."""
NUM_THREADS = 8
"""Threads that ask the file system about files, which takes long over a network."""


def read_separate_splits(name: str, root: Path, *, refuse: bool = True) -> dict[str, Split]:
    """Read a data set and check that its splits share no identity and no file, and its people no file.

    Files are compared by path, and those of a data set of the user's also by what the file system says of them, so that
    links and names that differ in case are seen through. Their content is not read; `check_dataset` reads it.

    Args:
        name, root: as for `read_dataset`.
        refuse: raise instead of logging a warning once. The three published data sets are never refused: what their
            authors released counts as it is.

    Raises:
        CsktError: the annotation cannot be read, or `refuse` and something is shared; one line.
    """
    dataset = read_dataset(name, root)
    published = any(split.dataset in PUBLISHED_COUNTS for split in dataset.values())
    found = overlaps(dataset, path_keys(dataset) if published else file_keys(dataset))
    if not found:
        return dataset
    more = f" (and {len(found) - 1} more findings)" if len(found) > 1 else ""
    command = f"cskt data check {shlex.quote(str(root))}"
    message = f"{root}: {found[0]}{more}; '{command}' lists all"
    if refuse and not published:
        raise CsktError(message)
    _warn_once(message)
    return dataset


@cache
def _warn_once(message: str) -> None:
    logger.warning("%s. Figures on this data set may be too high", message)


def path_keys(dataset: Mapping[str, Split]) -> dict[Path, Hashable]:
    """Image path -> the same for every spelling of the path that needs no look at the file system."""
    return {path: _spelled(path) for split in dataset.values() for path in split.image_paths}


def file_keys(dataset: Mapping[str, Split]) -> dict[Path, Hashable]:
    """Image path -> the same for every path of the same file, links followed; the path where there is no file."""
    paths = list({path for split in dataset.values() for path in split.image_paths})
    parts = [paths[start::NUM_THREADS] for start in range(NUM_THREADS)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        keys = pool.map(lambda part: [_file_key(path) for path in part], parts)
        return {
            path: key
            for part, of_part in zip(parts, keys, strict=True)
            for path, key in zip(part, of_part, strict=True)
        }


def _file_key(path: Path) -> Hashable:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return _spelled(path)
    # Some network file systems know no inode numbers. The size tells apart what others number alike.
    return (state.st_dev, state.st_ino, state.st_size) if state.st_ino else _spelled(path)


def _spelled(path: Path) -> str:
    return os.path.normcase(os.path.normpath(path.absolute()))


def overlaps(dataset: Mapping[str, Split], keys: Mapping[Path, Hashable]) -> list[str]:
    """Sentences on what is shared, with the remedy; empty if nothing is.

    Args:
        dataset: splits by name.
        keys: image path -> equal for two paths exactly if they are to count as the same image.
    """
    errors = []
    for one, other in combinations(dataset.values(), 2):
        shared = sorted(set(one.image_pids) & set(other.image_pids))
        if shared:
            errors.append(
                f"identities in both {one.name} and {other.name}: {len(shared)} ({some(shared)}); "
                "number people apart and keep each in one split"
            )
    groups = same_images(dataset, keys)
    for one, other in combinations(dataset.values(), 2):
        shared_images = [group for group in groups if {one.name, other.name} <= {record.split for record in group}]
        if shared_images:
            named = [_named(group, lambda record: record.split, (one.name, other.name)) for group in shared_images]
            errors.append(
                f"images in both {one.name} and {other.name}: {len(named)} ({some(named)}); keep each in one split"
            )
    of_two = [group for group in groups if len({record.pid for record in group}) > 1]
    if of_two:
        pids = [sorted({record.pid for record in group})[:2] for group in of_two]
        named = [
            f"{_named(group, lambda record: record.pid, two)} of {two[0]} and {two[1]}"
            for group, two in zip(of_two, pids, strict=True)
        ]
        errors.append(
            f"images under more than one identity: {len(named)} ({some(named)}); keep the record of the right person"
        )
    return errors


def same_images(dataset: Mapping[str, Split], keys: Mapping[Path, Hashable]) -> list[list[Record]]:
    """The records of each image that has more than one, in the order of the data set."""
    groups: dict[Hashable, list[Record]] = {}
    for split in dataset.values():
        for record in split.records:
            groups.setdefault(keys[record.image_path], []).append(record)
    return [group for group in groups.values() if len(group) > 1]


def names_of(records: Sequence[Record]) -> str:
    """`a.jpg`, or `a.jpg = b.jpg` where the same image has two paths."""
    paths = list(dict.fromkeys(record.image_path for record in records))
    return " = ".join(str(path) for path in paths[:2])


def some(items: Sequence[object]) -> str:
    """The first few items, and how many more there are."""
    named = ", ".join(str(item) for item in items[:NUM_NAMED])
    return named if len(items) <= NUM_NAMED else f"{named} and {len(items) - NUM_NAMED} more"


def _named(group: Sequence[Record], of: Callable[[Record], object], values: Sequence[object]) -> str:
    """The names of the first record of each value."""
    return names_of([next(record for record in group if of(record) == value) for value in values])
