"""Folders with a folder per person, which has images and a file of captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cskt.data.importing.items import CAPTION_NAMES, IMAGE_NAMES, Item, captions_of, numbered_headings, split_name
from cskt.data.importing.tables import SPLITS, read_tables
from cskt.errors import CsktError, file_system_errors
from cskt.image_files.formats import suffixes
from cskt.utils.json_files import read_text

SENTENCES = "captions.txt"
"""File in a person's folder with a sentence per line."""
PERSON_TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.json")
"""Tables in its place, with a column of captions; with one of images too, a row is for that image alone."""
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def people_in(root: Path) -> Iterator[Item]:
    """Yield the images of a folder per person, below folders of splits if all folders are called like splits.

    Raises:
        CsktError: no such folder, a person without a file of captions, or captions of an image that is missing.
    """
    folders = _folders_in(root)
    if not any(
        _captions_file(person) for person in [*folders, *(inner for each in folders for inner in _folders_in(each))]
    ):
        tables = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
        remedy = f"to import a table, name it: {tables[0]}" if tables else "see cskt data import --help"
        expected = f"no folder per person with {SENTENCES} or {' or '.join(PERSON_TABLES)}"
        raise CsktError(f"{root}: {expected}, and no data set of Hugging Face; {remedy}")
    if all(folder.name.lower() in SPLITS for folder in folders):
        for folder in folders:
            for person in _folders_in(folder):
                yield from _images_of(person, root, split_name(folder.name, str(folder)))
        return
    for person in folders:
        yield from _images_of(person, root, None)


def _images_of(person: Path, root: Path, split: str | None) -> Iterator[Item]:
    """Yield the images of a person's folder with its captions."""
    with file_system_errors(person):
        names = sorted(
            path.relative_to(person).as_posix()
            for path in person.rglob("*")
            if path.suffix.lower() in suffixes() and path.is_file()
        )
    captions: dict[str | None, list[str]] = {None: [], **{name: [] for name in names}}
    for where, image, sentence in _sentences(person):
        name = None if image is None else image.replace("\\", "/").removeprefix("./")
        if name not in captions:
            raise CsktError(f"{where}: '{str(image)[:80]}' is no image of {person}; correct the name, or add the file")
        captions[name].append(sentence)
    for name in names:
        path = person / name
        sentences = [sentence for sentence in (*captions[name], *captions[None]) if sentence]
        yield Item(str(path), path, path.relative_to(root).as_posix(), person.name, sentences, split)


def _captions_file(person: Path) -> Path | None:
    return next((person / name for name in (SENTENCES, *PERSON_TABLES) if (person / name).is_file()), None)


def _sentences(person: Path) -> Iterator[tuple[str, str | None, str]]:
    """Yield the place, the image (None: all images of the person) and the text of every caption of a person."""
    file = _captions_file(person) or person / SENTENCES
    if file.name == SENTENCES:
        lines = read_text(file, remedy="write a sentence about the person per line").split("\n")
        for number, line in enumerate(lines, 1):
            name, tab, sentence = line.partition("\t")
            yield f"{file}:{number}", name.strip() if tab else None, (sentence if tab else line).strip()
        return
    for table in read_tables(file):
        written: Mapping[str, str] = {heading.strip().lower(): heading for heading in reversed(table.headings)}
        image = next((written[name] for name in IMAGE_NAMES if name in written), None)
        texts = next(filter(None, (numbered_headings(stem, table.headings) for stem in CAPTION_NAMES)), ())
        if not texts:
            raise CsktError(f"{file}: no column 'caption'; it has {', '.join(table.headings)[:300]}")
        for row in table.rows(table.headings):
            named = None if image is None else str(row.cells.get(image) or "").strip() or None
            for heading in texts:
                for sentence in captions_of(row.cells.get(heading), row.where):
                    yield row.where, named, sentence


def _folders_in(folder: Path) -> list[Path]:
    with file_system_errors(folder):
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
