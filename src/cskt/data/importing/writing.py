"""Import of a data set into a folder of JSON lines and images."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from cskt.data.datasets import read_dataset
from cskt.data.importing.items import Item
from cskt.data.importing.sources import Columns, read_source
from cskt.data.records import SPLIT_NAMES, Pid, Split, shuffled_pids
from cskt.errors import CsktError, file_system_errors
from cskt.image_files.formats import decoder_errors, formats, suffixes
from cskt.utils.paths import check_path, file_name

logger = logging.getLogger(__name__)

IMAGES = "images"
VAL_FRACTION, TEST_FRACTION = 0.1, 0.2
"""Shares of the people that are drawn for val and test."""
MIN_TRAINING_IDS = 2
"""A single person gives a loss nothing to tell apart."""
SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "HEIF": ".heic"}
"""Format of Pillow -> suffix, where it is not the format's own name."""


@dataclass(frozen=True)
class ImportOptions:
    """Choices of an import."""

    link: bool = False
    """Symbolic links to the images instead of copies."""
    val_fraction: float | None = None
    """Share of the people who form the val split, where the source names no splits; None: 0.1."""
    test_fraction: float | None = None
    """Share of the people who form the test split, likewise; None: 0.2."""
    seed: int = 0
    """Decides who is in which split."""

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise CsktError(f"{name} is {getattr(self, name)}; give a fraction of at least 0 and below 1")


@dataclass
class _Entry:
    """An image of the new data set, with the captions of all its rows."""

    first: Item
    path: str
    """Relative to the data set's folder."""
    captions: dict[str, None]
    """Distinct, in the order of the source."""
    split: str | None

    @property
    def person(self) -> Pid:
        """The identity; of an image without one, its path."""
        return self.path if self.first.pid is None else self.first.pid


def import_dataset(
    source: Path | str,
    output: Path | str,
    columns: Columns | None = None,
    *,
    images: Path | None = None,
    options: ImportOptions | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Split]:
    """Import a table or a folder per person as a JSON-lines data set: `train.jsonl`, ..., and `images/<person>/<name>`.

    Rows with the same image are one image with several captions. Identities that are all whole numbers become integers.
    Splits are those of the source; if it names none, people are drawn. The folder appears when it is complete.

    Args:
        source: table (`.csv`, `.tsv`, `.jsonl`, `.parquet`), folder of `save_to_disk` of Hugging Face `datasets`,
            folder of Parquet files of the Hub, or folder with a folder per person, which has the images and
            `captions.txt`.
        output: folder of the new data set; must not exist.
        columns: headings of a table.
        images: folder that the paths in a table are relative to; the table's own folder if None.
        options: links or copies, and the shares of splits.
        on_progress: called with the number of rows read so far.

    Returns:
        The splits of the new data set by name.

    Raises:
        CsktError: the source cannot be read, an image is missing or has two people, or there are too few people.
        FileSystemError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("anna", "ben", "cem", "dana"):
        ...     Image.new("RGB", (32, 64)).save(folder / f"{name}.png")
        ...     print(f"{name}.png,{name},A person in black", file=open(folder / "people.csv", "a"))
        >>> _ = (folder / "people.csv").write_text("image,person,caption\\n" + (folder / "people.csv").read_text())
        >>> {name: split.num_ids for name, split in import_dataset(folder / "people.csv", folder / "data").items()}
        {'train': 2, 'val': 1, 'test': 1}
    """
    options, output = options or ImportOptions(), Path(output)
    with _new_folder(output) as folder:
        entries = _collect(read_source(Path(source), columns, images), folder, options, on_progress)
        if not entries:
            raise CsktError(f"{source}: no image has a caption; write at least one sentence for each image")
        if all(entry.split is None for entry in entries):
            _draw_splits(entries, options)
        elif options.val_fraction is not None or options.test_fraction is not None:
            raise CsktError(
                f"{source}: names its splits itself; leave out --val and --test, or draw people anew with --split none"
            )
        else:
            _check_splits(entries)
        pid_of = _pids(entries)
        with file_system_errors(folder):
            for split in SPLIT_NAMES:
                lines = [_line(entry, pid_of) for entry in entries if entry.split == split]
                if lines:
                    (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return read_dataset("jsonl", output)


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Make a folder under another name, which gets its own when the block ends; delete it if the block fails."""
    check_path(output)
    with file_system_errors(output):
        if output.exists():
            raise CsktError(f"{output}: already exists; name a new folder")
        folder = output.with_name(f".{output.name}.{os.getpid()}.tmp")
        folder.mkdir(parents=True)
    try:
        yield folder
        with file_system_errors(output):
            folder.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _collect(
    items: Iterable[Item], folder: Path, options: ImportOptions, on_progress: Callable[[int], None] | None
) -> list[_Entry]:
    """Copy or link each image once, and return those that have captions."""
    entries: dict[str | bytes, _Entry] = {}
    taken: set[str] = set()
    missing: list[str] = []
    for number, item in enumerate(items, start=1):
        key = str(item.image) if isinstance(item.image, Path) else hashlib.sha256(item.image).digest()
        if isinstance(item.image, Path) and not item.image.is_file():
            missing.append(f"{item.where}: {item.image}")
        elif key not in entries:
            path = _free_name(item, taken)
            _place(item, folder / path, link=options.link)
            entries[key] = _Entry(item, path, dict.fromkeys(item.captions), item.split)
        else:
            _check_same(entries[key].first, item)
            entries[key].captions |= dict.fromkeys(item.captions)
        if on_progress is not None:
            on_progress(number)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CsktError(f"{missing[0]}: no such image{more}; correct the paths, or name their folder with --images DIR")
    without = [entry for entry in entries.values() if not entry.captions]
    for entry in without:
        (folder / entry.path).unlink()
    if without:
        logger.warning("%d images without a caption are left out (%s)", len(without), without[0].first.where)
    return [entry for entry in entries.values() if entry.captions]


def _free_name(item: Item, taken: set[str]) -> str:
    """Return `images/<person>/<name>` from safe characters, in a spelling that no other image has in any case."""
    name = PurePosixPath(item.name.replace("\\", "/"))
    person = "unknown" if item.pid is None else file_name(str(item.pid))
    stem, suffix = file_name(name.stem or "image"), name.suffix.lower()
    if isinstance(item.image, bytes):
        suffix = _suffix(item.image, item.where)
    elif suffix not in suffixes():
        raise CsktError(f"{item.where}: '{item.name}' is no image; known are {', '.join(sorted(suffixes()))}")
    else:
        with file_system_errors(item.image):
            _format_of(item.image, f"{item.where}: {item.image}")
    number = 1
    while (path := f"{IMAGES}/{person}/{stem}{'' if number == 1 else f'-{number}'}{suffix}").lower() in taken:
        number += 1
    taken.add(path.lower())
    return path


def _suffix(content: bytes, where: str) -> str:
    kind = _format_of(io.BytesIO(content), where)
    return SUFFIXES.get(kind, f".{kind.lower()}")


def _format_of(image: Path | io.BytesIO, where: str) -> str:
    """Return the format that the header of an image states; a text file named .jpg has none."""
    known = formats()
    try:
        with decoder_errors(), Image.open(image, formats=known) as opened:
            return str(opened.format)
    except CsktError as error:
        raise CsktError(f"{where}: {error}") from None


def _place(item: Item, path: Path, *, link: bool) -> None:
    with file_system_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(item.image, bytes):
            path.write_bytes(item.image)
        elif link:
            path.symlink_to(item.image.absolute())
        else:
            shutil.copyfile(item.image, path)


def _check_same(first: Item, other: Item) -> None:
    """Check that two rows of one image do not contradict each other."""
    for name, one, two in (("person", first.pid, other.pid), ("split", first.split, other.split)):
        if one != two:
            image = other.name or "this image"
            raise CsktError(
                f"{other.where}: the {name} of {image} is {two} here and {one} at {first.where}; correct one of them"
            )


def _check_splits(entries: list[_Entry]) -> None:
    """Check that the source has each person in one split: test people that were trained on make results too high."""
    splits: dict[Pid, set[str | None]] = {}
    for entry in entries:
        splits.setdefault(entry.person, set()).add(entry.split)
    if several := [pid for pid, names in splits.items() if len(names) > 1]:
        first, *others = several
        where = next(entry.first.where for entry in entries if entry.person == first)
        named = " and ".join(name for name in SPLIT_NAMES if name in splits[first])
        raise CsktError(
            f"{where}: the person {first} is in {named}" + (f", as are {len(others)} others" if others else "")
            + "; put each person into one split, or draw people anew with --split none"
        )  # fmt: skip


def _draw_splits(entries: list[_Entry], options: ImportOptions) -> None:
    """Draw the split of every person."""
    shares = [
        default if stated is None else stated
        for stated, default in ((options.val_fraction, VAL_FRACTION), (options.test_fraction, TEST_FRACTION))
    ]
    ordered = shuffled_pids({entry.person for entry in entries}, f"import {options.seed}")
    num_val, num_test = (max(1, round(share * len(ordered))) if share else 0 for share in shares)
    num_train = len(ordered) - num_val - num_test
    if num_train < MIN_TRAINING_IDS:
        lower = "lower --val and --test, or give 0 for no such split" if num_val + num_test else "add people"
        raise CsktError(
            f"{len(ordered)} people are too few for {num_val} in val, {num_test} in test and {MIN_TRAINING_IDS} to"
            f" train on; {lower}. If that is not how many there are, --person names the wrong column"
        )
    names = ["val"] * num_val + ["test"] * num_test + ["train"] * num_train
    drawn = dict(zip(ordered, names, strict=True))
    for entry in entries:
        entry.split = drawn[entry.person]


def _pids(entries: list[_Entry]) -> dict[Pid, Pid]:
    """Return the identities as they are written: text that is a whole number in each case becomes integers."""
    pids = {entry.first.pid for entry in entries if entry.first.pid is not None}
    if all(isinstance(pid, str) and pid.isdecimal() and str(int(pid)) == pid and int(pid) < 2**63 for pid in pids):
        return {pid: int(pid) for pid in pids}
    return {pid: pid for pid in pids}


def _line(entry: _Entry, pid_of: dict[Pid, Pid]) -> str:
    item = entry.first
    record: dict[str, Any] = {"image": entry.path}
    if item.pid is not None:
        record["pid"] = pid_of[item.pid]
    record["captions"] = list(entry.captions)
    if item.attributes:
        record["attributes"] = dict(item.attributes)
    try:
        return json.dumps(record, ensure_ascii=False) + "\n"
    except TypeError:
        raise CsktError(f"{item.where}: an attribute is no plain value of JSON: {item.attributes}") from None
