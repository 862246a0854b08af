"""Registry of data sets, and the JSON list of records in which the published ones come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from cskt.config.types import normalised
from cskt.data.records import SPLIT_NAMES, Record, SplitCounts
from cskt.errors import CsktError, MissingFileError, file_system_errors
from cskt.plugins import Registry
from cskt.utils.json_files import load_json

MAX_PID = 2**63 - 1
"""Identities are stored as int64 tensors."""
JSON_REMEDY = "is the file complete?"
MAX_PID_CHARACTERS = 200
"""Characters of an identity that is a string."""
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
"""Type of a JSON value -> how a message calls it; all others are numbers."""


@dataclass(frozen=True)
class DatasetFormat:
    """A data set that `read_dataset` knows by name; a subclass reads its annotation."""

    name: str
    """Lower case, with hyphens."""
    remedy: str
    """Remedy for a missing annotation, the end of an error message."""
    folder: str = ""
    """Folder of the data set under a common root; empty where the root is the data set's own folder."""
    published_counts: Mapping[str, SplitCounts] = field(default_factory=dict)
    """Size of each split in the data set's paper; empty for a data set of the user's own."""
    withdrawn_counts: Mapping[str, SplitCounts] = field(default_factory=dict)
    """Size of each split in a version that the authors withdrew and that still circulates."""

    def read(self, folder: Path) -> list[Record]:
        """Read all records below the data set's own folder.

        Raises:
            MissingFileError: the annotation is missing; names the file and the remedy.
            CsktError: it is malformed; names the file, the record and the remedy.
        """
        raise NotImplementedError


DATASETS: Registry[DatasetFormat] = Registry("data set", "cskt.datasets")
"""Data sets by name; `register` adds one."""


def register(dataset: DatasetFormat) -> DatasetFormat:
    """Make a data set known to `read_dataset` and return it.

    Raises:
        CsktError: its name is not in lower case with hyphens, or is taken.
    """
    if dataset.name != normalised(dataset.name):
        raise CsktError(f"a data set cannot be called '{dataset.name}'; use '{normalised(dataset.name)}'")
    return DATASETS.register(dataset.name, dataset)


def dataset_key(name: str) -> str:
    """Return the name under which a data set is registered; case and `_` for `-` do not matter."""
    key = normalised(name)
    DATASETS[key]  # raises for an unknown name
    return key


def folders() -> dict[str, str]:
    """Return the folder of each registered data set that has one under a common root."""
    return {name: dataset.folder for name, dataset in DATASETS.items() if dataset.folder}


def present(root: Path) -> list[str]:
    """Return the names of the data sets below `root`, or that `root` is."""
    named = [name for name, folder in folders().items() if (root / folder).is_dir() or root.resolve().name == folder]
    return named or (["jsonl"] if any((root / f"{split}.jsonl").is_file() for split in SPLIT_NAMES) else [])


@dataclass(frozen=True)
class JsonListFormat(DatasetFormat):
    """A JSON file with one list of records; images are in `imgs`. The format of the three published data sets.

    In its place there may be a file for each split, `train_reid.json` and so on, as for the released code of TBPS-CLIP,
    whose records have no split and the path in `file_path`.
    """

    files: tuple[str, ...] = ()
    """Names that the annotation may have; the first is the usual one."""
    path_key: str = ""
    """Field of a record with the path of its image."""

    def read(self, folder: Path) -> list[Record]:
        """Read the annotation."""
        candidates = [folder / name for name in self.files]
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        by_split = {split: folder / f"{split}_reid.json" for split in SPLIT_NAMES}
        if path is None and any(other.is_file() for other in by_split.values()):
            return [
                to_record(entry, where, folder / "imgs", split, path_key="file_path", pid_key="id")
                for split, file in by_split.items() if file.is_file()
                for where, entry in self._entries(file)
            ]  # fmt: skip
        if path is None:
            raise MissingFileError(f"{candidates[0]}: no such file; {self.remedy}")
        records = []
        for where, entry in self._entries(path):
            split = entry.get("split") if isinstance(entry, dict) else ""
            if isinstance(entry, dict) and split not in SPLIT_NAMES:
                raise CsktError(f"{where} has {_value(entry, 'split')}; expected one of {', '.join(SPLIT_NAMES)}")
            records.append(to_record(entry, where, folder / "imgs", str(split), path_key=self.path_key, pid_key="id"))
        return records

    def _entries(self, path: Path) -> list[tuple[str, Any]]:
        """Return the entries of an annotation, each with its place."""
        content = load_json(read_annotation(path), where=str(path), remedy=JSON_REMEDY)
        if not isinstance(content, list):
            raise CsktError(f"{path}: expected a list of records at the top level, found {_kind(content)}")
        if not content:
            raise CsktError(f"{path}: holds no records; {self.remedy}")
        return [(f"{path}: record {index}", entry) for index, entry in enumerate(content)]


def read_annotation(path: Path) -> str:
    """Return the text of an annotation file; a byte order mark, which some editors write, is left out."""
    try:
        with file_system_errors(path):
            return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CsktError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None


def to_record(
    entry: Any, where: str, image_folder: Path, split: str, *, path_key: str, pid_key: str, own_data: bool = False
) -> Record:
    """Check a parsed entry and return it as a record.

    Args:
        entry: any JSON value.
        where: file and place in it; the start of an error.
        image_folder: the folder that image paths are relative to and may not leave.
        split: train, val or test.
        path_key, pid_key: fields with the path of the image and with the identity.
        own_data: the identity may also be a string, or missing: then the image is a person of its own, whose identity
            is its path.
    """
    if not isinstance(entry, dict):
        raise CsktError(f"{where} is {_kind(entry)}; expected an object with {pid_key}, {path_key} and captions")
    pid = entry.get(pid_key)
    if not (is_number(pid) or (own_data and (pid is None or is_name(pid)))):
        names = f", or a string of 1 to {MAX_PID_CHARACTERS} characters" if own_data else ""
        raise CsktError(f"{where} has {_value(entry, pid_key)}; expected a whole number from 0{names}")
    captions = entry.get("captions")
    if not isinstance(captions, list) or not captions or not all(isinstance(item, str) for item in captions):
        raise CsktError(f"{where} has {_value(entry, 'captions')}; expected a non-empty list of strings")
    translations = entry.get("captions_bt")
    if translations is not None:
        are_strings = isinstance(translations, list) and all(isinstance(item, str) for item in translations)
        if not are_strings or len(translations) != len(captions):
            raise CsktError(
                f"{where} has {_value(entry, 'captions_bt')}; expected a list of {len(captions)} strings, one for each"
                " caption (empty: none)"
            )
    path = entry.get(path_key)
    if not isinstance(path, str) or not path.strip():
        raise CsktError(f"{where} has {_value(entry, path_key)}; expected the path of an image")
    # Annotations made on Windows separate with backslashes; no published file name has one.
    relative = PurePosixPath(path.replace("\\", "/"))
    outside = relative.is_absolute() or ".." in relative.parts or PureWindowsPath(path).drive
    if outside or any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in path):  # no file can have these
        raise CsktError(f"{where} has {_value(entry, path_key)}; expected a path inside {image_folder}")
    attributes = entry.get("attributes")
    return Record(
        pid=relative.as_posix() if pid is None else pid,
        image_path=image_folder / relative,
        captions=tuple(captions),
        split=split,
        attributes=attributes if isinstance(attributes, dict) else None,
        back_translations=None if translations is None else tuple(translations),
    )


def is_number(pid: object) -> bool:
    """Return whether a value is an identity as an integer."""
    return isinstance(pid, int) and not isinstance(pid, bool) and 0 <= pid <= MAX_PID


def is_name(pid: object) -> bool:
    """Return whether a value is an identity as a string: not blank, not too long, and Unicode."""
    if not isinstance(pid, str) or not pid.strip() or len(pid) > MAX_PID_CHARACTERS:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in pid)


def _value(entry: dict[str, Any], key: str) -> str:
    if key not in entry:
        return f"no '{key}'"
    written = repr(entry[key])
    return f"'{key}' {written if len(written) <= 80 else written[:77] + '...'}"


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "a number")
