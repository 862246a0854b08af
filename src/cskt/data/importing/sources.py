"""Sources of images, people and captions to import: tables, and a folder per person."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cskt.data.datasets.base import MAX_PID_CHARACTERS, is_name, is_number
from cskt.data.importing.tables import SPLITS, Table, is_saved_dataset, is_snapshot, plain_cell, read_tables
from cskt.data.records import Pid
from cskt.errors import CsktError, MissingFileError, file_system_errors
from cskt.image_files.formats import suffixes
from cskt.utils.json_files import read_text
from cskt.utils.paths import check_path

logger = logging.getLogger(__name__)

FOLDER, NONE = "folder", "none"
"""Values of `Columns.person`: the name of the image's folder; nobody, each image is a person of its own."""
IMAGE_NAMES = (
    "image", "path", "file", "image_id", "image_path", "img_path", "file_path", "file_name", "filename", "img", "photo",
)  # fmt: skip
PERSON_NAMES = ("pid", "person", "person_id", "identity", "id", "label")
CAPTION_NAMES = ("caption", "text", "sentence", "description")
SPLIT_NAMES = ("split", "partition", "subset")
"""Usual headings, the first of which is used."""
CAPTIONS_FILE = "captions.txt"
"""File in a person's folder with a sentence per line."""
CAPTION_TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.parquet")
"""Tables in a folder of people with captions of images."""


@dataclass(frozen=True)
class Columns:
    """Headings of a table; those that are None or empty are found by their usual names."""

    image: str | None = None
    person: str | None = None
    """A heading, "folder" or "none"."""
    captions: tuple[str, ...] = ()
    split: str | None = None
    attributes: tuple[str, ...] = ()
    """Columns that become attributes of the image."""

    def __str__(self) -> str:
        named = {"image": self.image, "person": self.person, "captions": ", ".join(self.captions), "split": self.split}
        return "; ".join(f"{name} = {heading}" for name, heading in named.items() if heading)


@dataclass(frozen=True)
class Item:
    """An image with some of its captions, as a source gives it."""

    where: str
    """File and line, for messages."""
    image: Path | bytes
    name: str
    """Path of the image in the source; empty where the source gives none."""
    pid: Pid | None
    captions: Sequence[str]
    split: str | None = None
    """train, val or test."""
    attributes: Mapping[str, Any] = field(default_factory=dict)


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
            yield from _people_in(source)
            return
    for table in read_tables(source):
        yield from _items(table, columns, images or (source if source.is_dir() else source.parent))


def split_name(text: str, where: str) -> str:
    """Return train, val or test for the name that a source gives a split."""
    if text.strip().lower() not in SPLITS:
        raise CsktError(f"{where}: the split is '{text[:80]}'; use train, val or test")
    return SPLITS[text.strip().lower()]


def resolved(columns: Columns, table: Table) -> Columns:
    """Return the columns with the headings as the table writes them.

    Raises:
        CsktError: a column that was asked for, or that is needed, is not in the table.
    """
    written = {heading.strip().lower(): heading for heading in reversed(table.headings)}

    def find(flag: str, asked: str | None, usual: Sequence[str], remedy: str = "") -> str:
        names = usual if asked is None else (asked,)
        found = next((written[name] for name in (name.strip().lower() for name in names) if name in written), None)
        if found is None:
            tried = " or ".join(f"'{name}'" for name in names)
            known = ", ".join(table.headings)[:300]
            raise CsktError(f"{table.path}: no column {tried}; it has {known}: name one with {flag}{remedy}")
        return found

    person, split = columns.person, columns.split
    if person not in (FOLDER, NONE):
        remedy = f", or give --person {FOLDER} (the name of the image's folder) or {NONE} (each image is a person)"
        person = find("--person", person, PERSON_NAMES, remedy)
    if split is not None or (table.split is None and set(SPLIT_NAMES) & written.keys()):
        split = find("--split", split, SPLIT_NAMES)
    numbered = (_numbered(stem, table.headings) for stem in CAPTION_NAMES)
    return Columns(
        image=find("--image", columns.image, IMAGE_NAMES),
        person=person,
        captions=tuple(find("--caption", name, ()) for name in columns.captions)
        or next(filter(None, numbered), ())
        or (find("--caption", None, CAPTION_NAMES),),
        split=split,
        attributes=tuple(find("--attribute", name, ()) for name in columns.attributes),
    )


def _numbered(stem: str, headings: Sequence[str]) -> tuple[str, ...]:
    """Return the headings `caption`, `captions`, `caption_1`, `caption 2`, ... for the stem `caption`."""
    return tuple(heading for heading in headings if re.fullmatch(rf"{stem}s?[ _-]?\d*", heading.strip().lower()))


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
        split = cells[columns.split] if columns.split else table.split
        if columns.split and split is None:
            raise CsktError(f"{row.where}: no split under '{columns.split}'; write train, val or test")
        if person is not None:
            pid = _pid(cells[person], row.where, table.class_names.get(person, ()))
        else:
            pid = _folder_of(name, row.where) if columns.person == FOLDER else None
        yield Item(
            row.where, image, name, pid,
            captions=[caption for heading in columns.captions for caption in _captions(cells[heading], row.where)],
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


def _captions(cell: Any, where: str) -> list[str]:
    sentences = [plain_cell(value) for value in (cell if isinstance(cell, list) else [cell])]
    if not all(isinstance(sentence, str | None) for sentence in sentences):
        raise CsktError(f"{where}: the caption is {str(cell)[:80]!r}; expected a sentence, or a list of sentences")
    return [sentence for sentence in sentences if sentence]


def _people_in(root: Path) -> Iterator[Item]:
    """Yield the images of a folder per person, below folders of splits if all folders are called like splits."""
    folders = _folders_in(root)
    if not folders:
        raise CsktError(
            f"{root}: holds no folder per person, no {' or '.join(CAPTION_TABLES)}, no Parquet file, and no data set of"
            " save_to_disk; name a table, or a folder with one of these"
        )
    if all(folder.name.lower() in SPLITS for folder in folders):
        for folder in folders:
            for person in _folders_in(folder):
                yield from _images_of(person, root, split_name(folder.name, str(folder)))
        return
    for person in folders:
        yield from _images_of(person, root, None)


def _images_of(person: Path, root: Path, split: str | None) -> Iterator[Item]:
    """Yield the images of a person's folder with the sentences of its `captions.txt`."""
    with file_system_errors(person):
        names = sorted(
            path.relative_to(person).as_posix()
            for path in person.rglob("*")
            if path.suffix.lower() in suffixes() and path.is_file()
        )
    of_all: list[str] = []
    of_one: dict[str, list[str]] = {name: [] for name in names}
    file = person / CAPTIONS_FILE
    for number, line in enumerate(read_text(file, remedy="write a sentence about the person per line").split("\n"), 1):
        name, tab, sentence = line.partition("\t")
        if tab and name.strip() not in of_one:
            raise CsktError(f"{file}:{number}: '{name.strip()[:80]}' before the tab is no image of {person}")
        (of_one[name.strip()] if tab else of_all).append((sentence if tab else line).strip())
    for name in names:
        captions = [caption for caption in (*of_one[name], *of_all) if caption]
        path = person / name
        yield Item(str(path), path, path.relative_to(root).as_posix(), person.name, captions, split)


def _folders_in(folder: Path) -> list[Path]:
    with file_system_errors(folder):
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
