"""Sources of images, people and captions to import: tables, and a folder per person."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cskt.data.datasets.base import MAX_PID_CHARACTERS, is_name, is_number
from cskt.data.importing.items import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    PERSON_NAMES,
    SPLIT_NAMES,
    Item,
    captions_of,
    numbered_headings,
    split_name,
)
from cskt.data.importing.people_folders import people_in
from cskt.data.importing.tables import Table, is_saved_dataset, is_snapshot, plain_cell, read_tables
from cskt.data.records import Pid
from cskt.errors import CsktError, MissingFileError
from cskt.utils.paths import check_path

logger = logging.getLogger(__name__)

FOLDER, NONE = "folder", "none"
"""Values of `Columns.person`: the name of the image's folder; nobody, each image is a person of its own."""
CAPTION_TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json", "captions.parquet")
"""Tables in a folder of people with captions of images."""


@dataclass(frozen=True)
class Columns:
    """Headings of a table; those that are None or empty are found by their usual names."""

    image: str | None = None
    person: str | None = None
    """A heading, "folder" or "none"."""
    captions: tuple[str, ...] = ()
    split: str | None = None
    """A heading, or "none": the splits of the source are ignored."""
    attributes: tuple[str, ...] = ()
    """Columns that become attributes of the image."""

    def __str__(self) -> str:
        named = {"image": self.image, "person": self.person, "captions": ", ".join(self.captions), "split": self.split}
        return "; ".join(f"{name} = {heading}" for name, heading in named.items() if heading)


def read_source(source: Path, columns: Columns | None = None, images: Path | None = None) -> Iterator[Item]:
    """Yield the images of a source, an image with several rows several times.

    Args:
        source: a table (`.csv`, `.tsv`, `.jsonl`, `.parquet`), a folder of `save_to_disk` of Hugging Face `datasets`,
            a folder of Parquet files downloaded from the Hub, or a folder with a folder per person.
        columns: headings of the table.
        images: folder that the paths in a table are relative to and may not leave; the table's own if None.

    Raises:
        CsktError: the source is missing or corrupt, a column is missing, or a row has a wrong value.
    """
    check_path(source)
    columns = columns or Columns()
    if not source.exists():
        raise MissingFileError(f"{source}: no such file or folder; name a table, or a folder with a folder per person")
    if source.is_dir() and not is_saved_dataset(source):
        captions = next((source / name for name in CAPTION_TABLES if (source / name).is_file()), None)
        if captions is not None:
            source, columns = captions, replace(columns, person=columns.person or FOLDER)
        elif not is_snapshot(source):
            for item in people_in(source):
                yield replace(item, split=None) if columns.split == NONE else item
            return
    for table in read_tables(source):
        yield from _items(table, columns, images or (source if source.is_dir() else source.parent))


def resolved(columns: Columns, table: Table) -> Columns:
    """Return the columns with the headings as the table writes them.

    Raises:
        CsktError: a column that was asked for, or that is needed, is not in the table.
    """
    written = {heading.strip().lower(): heading for heading in reversed(table.headings)}
    missing: dict[str, str] = {}

    def find(flag: str, asked: str | None, usual: Sequence[str]) -> str:
        names = usual if asked is None else (asked,)
        found = next((written[name] for name in (name.strip().lower() for name in names) if name in written), None)
        if found is None:
            missing.setdefault(flag, " or ".join(f"'{name}'" for name in names[:3]))
        return found or ""

    person, split = columns.person, columns.split
    image = find("--image", columns.image, IMAGE_NAMES)
    if person not in (FOLDER, NONE):
        person = find("--person", person, PERSON_NAMES)
    captions = tuple(find("--caption", name, ()) for name in columns.captions)
    if not captions:
        numbered = (numbered_headings(stem, table.headings) for stem in CAPTION_NAMES)
        captions = next(filter(None, numbered), ()) or (find("--caption", None, CAPTION_NAMES),)
    if split == NONE:
        split = None
    elif split is not None or (table.split is None and set(SPLIT_NAMES) & written.keys()):
        split = find("--split", split, SPLIT_NAMES)
    attributes = tuple(find("--attribute", name, ()) for name in columns.attributes)
    if missing:
        tried = ", ".join(f"no column {names} ({flag})" for flag, names in missing.items())
        flags = " ".join(f"{flag} COLUMN" for flag in missing)
        no_person = f"; or --person {FOLDER} (the image's folder) or {NONE} (each image is a person of its own)"
        raise CsktError(
            f"{table.path}: {tried}; it has {', '.join(table.headings)[:300]}: name what you mean with {flags}"
            + (no_person if "--person" in missing else "")
        )
    return Columns(image, person, captions, split, attributes)


def _items(table: Table, asked: Columns, images: Path) -> Iterator[Item]:
    columns = resolved(asked, table)
    logger.info("columns of %s: %s", table.path, columns)
    assert columns.image is not None and columns.person is not None
    person = None if columns.person in (FOLDER, NONE) else columns.person
    names = [columns.image, person, *columns.captions, columns.split, *columns.attributes]
    needed = list(dict.fromkeys(name for name in names if name is not None))
    for row in table.rows(needed):
        cells = {heading: plain_cell(row.cells.get(heading)) for heading in needed}
        image, name = _image(cells[columns.image], row.where, images)
        split = cells[columns.split] if columns.split else None if asked.split == NONE else table.split
        if columns.split and split is None:
            raise CsktError(f"{row.where}: no split under '{columns.split}'; write train, val or test")
        if person is not None:
            pid = _pid(cells[person], row.where, table.class_names.get(person, ()))
        else:
            pid = _folder_of(name, row.where) if columns.person == FOLDER else None
        yield Item(
            row.where, image, name, pid,
            captions=[caption for heading in columns.captions for caption in captions_of(cells[heading], row.where)],
            split=None if split is None else split_name(str(split), row.where),
            attributes={heading: cells[heading] for heading in columns.attributes if cells[heading] is not None},
        )  # fmt: skip


def _image(cell: Any, where: str, images: Path) -> tuple[Path | bytes, str]:
    """Return an image and its path in the source: a path, or a file's content with or without one."""
    content, path = cell, None
    if isinstance(cell, Mapping):  # the feature `Image` of Hugging Face
        content, path = cell.get("bytes"), cell.get("path")
    if isinstance(content, bytes):
        return content, str(path or "")
    path = content if path is None else path
    if not isinstance(path, str) or not path.strip():
        raise CsktError(f"{where}: no image; name a file, relative to {images}")
    # Tables that were made on Windows separate with backslashes.
    root = os.path.abspath(images)  # noqa: PTH100  (links stay as they are)
    whole = os.path.normpath(os.path.join(root, path.strip().replace("\\", "/")))  # noqa: PTH118
    if not whole.startswith(root.rstrip(os.sep) + os.sep) or not whole.isprintable():
        raise CsktError(f"{where}: the image {path[:200]!r} is outside {images}; name the folder of all: --images DIR")
    return Path(whole), Path(whole).relative_to(root).as_posix()


def _folder_of(name: str, where: str) -> str:
    folder = PurePosixPath(name).parent.name
    if not folder:
        raise CsktError(f"{where}: the image '{name}' is in no folder that names its person; give --person COLUMN")
    return folder


def _pid(cell: Any, where: str, names: Sequence[str]) -> Pid | None:
    """Return the identity in a cell; None if it is empty."""
    if isinstance(cell, float) and cell.is_integer():  # how pandas stores integers where some are missing
        cell = int(cell)
    if names and cell == -1:  # how a test split of the Hub hides its labels
        return None
    if is_number(cell) and cell < len(names):
        cell = names[cell]
    if cell is not None and not is_number(cell) and not is_name(cell):
        raise CsktError(
            f"{where}: the person is {str(cell)[:80]!r}; expected a whole number from 0, or a name of 1 to"
            f" {MAX_PID_CHARACTERS} characters"
        )
    return cell
