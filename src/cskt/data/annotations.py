"""Annotation files -> records and splits, for the three public data sets and for a plain JSON-lines format.

    name         annotation (in the data set's folder)        images
    cuhk-pedes   CUHK-PEDES/reid_raw.json                     imgs/<file_path>
    icfg-pedes   ICFG-PEDES/ICFG-PEDES.json, ICFG_PEDES.json  imgs/<file_path>
    rstpreid     RSTPReid/data_captions.json                  imgs/<img_path>
    jsonl        train.jsonl, val.jsonl, test.jsonl           <image>, relative to the folder

A line of the JSON-lines format is `{"image": "a/b.jpg", "pid": 7, "captions": ["..."]}`. Any record may carry
`attributes`, a mapping that the gallery can filter by; other keys are ignored. Whether the images exist is not
asked here (40,000 look-ups over a network take minutes): `cskt.data.check` asks, and so does decoding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from cskt.data.records import SPLIT_NAMES, Record, Split, SplitCounts
from cskt.errors import CsktError
from cskt.utils.messages import nearest

LARGEST_PID = 2**63 - 1  # identities travel as int64 tensors

PUBLISHED_COUNTS: dict[str, dict[str, SplitCounts]] = {
    "cuhk-pedes": {
        "train": SplitCounts(11003, 34054, 68126),
        "val": SplitCounts(1000, 3078, 6158),
        "test": SplitCounts(1000, 3074, 6156),
    },
    "icfg-pedes": {
        "train": SplitCounts(3102, 34674, 34674),
        "test": SplitCounts(1000, 19848, 19848),
    },
    "rstpreid": {
        "train": SplitCounts(3701, 18505, 37010),
        "val": SplitCounts(200, 1000, 2000),
        "test": SplitCounts(200, 1000, 2000),
    },
}
"""What each data set's paper reports, by split."""

WITHDRAWN_RSTPREID_COUNTS: dict[str, SplitCounts] = {
    "train": SplitCounts(3901, 19505, 39010),
    "val": SplitCounts(100, 500, 1000),
    "test": SplitCounts(100, 500, 1000),
}
"""An early RSTPReid file that still circulates; its authors withdrew it (issue 2 of their repository)."""

REQUEST_FROM: dict[str, str] = {
    "cuhk-pedes": "https://github.com/ShuangLI59/Person-Search-with-Natural-Language-Description",
    "icfg-pedes": "https://github.com/zifyloo/SSAN",
    "rstpreid": "https://github.com/NjtechCVLab/RSTPReid-Dataset",
}
"""Where each data set is asked for: all need a signed request and are for non-commercial research."""

FOLDERS: dict[str, str] = {"cuhk-pedes": "CUHK-PEDES", "icfg-pedes": "ICFG-PEDES", "rstpreid": "RSTPReid"}
"""Folder of each data set under the common root."""


def dataset_key(name: str) -> str:
    """The name by which `READERS` knows a data set; case and `_` against `-` do not matter.

    Raises:
        CsktError: no such data set; names the nearest one.
    """
    key = name.strip().lower().replace("_", "-")
    if key not in READERS:
        raise CsktError(f"unknown data set '{name}': {nearest(key, list(READERS))}")
    return key


def read_dataset(name: str, root: Path) -> dict[str, Split]:
    """The splits that a data set's annotation holds, by name.

    Args:
        name: a key of `READERS`, such as "cuhk-pedes" or "CUHK_PEDES".
        root: the folder that holds the data set's folder, or that folder itself.

    Raises:
        CsktError: unknown name; missing or malformed annotation, or a record that breaks the format. The message
            names the file, the record and the remedy.
    """
    key = dataset_key(name)
    folder = Path(root)
    if key in FOLDERS and (folder / FOLDERS[key]).is_dir():
        folder = folder / FOLDERS[key]
    if not folder.is_dir():
        raise CsktError(f"{folder}: no such folder; {_remedy(key)}")
    records = READERS[key](folder)
    present = [split for split in SPLIT_NAMES if any(record.split == split for record in records)]
    return {split: Split(key, split, tuple(record for record in records if record.split == split)) for split in present}


def read_cuhk_pedes(folder: Path) -> list[Record]:
    """CUHK-PEDES (Li et al. 2017): `reid_raw.json`, one to ten captions per image."""
    return _read_annotation(folder, "cuhk-pedes", ("reid_raw.json",), "file_path")


def read_icfg_pedes(folder: Path) -> list[Record]:
    """ICFG-PEDES (Ding et al. 2021): `ICFG-PEDES.json` or `ICFG_PEDES.json`, one caption per image, no val split."""
    return _read_annotation(folder, "icfg-pedes", ("ICFG-PEDES.json", "ICFG_PEDES.json"), "file_path")


def read_rstpreid(folder: Path) -> list[Record]:
    """RSTPReid (Zhu et al. 2021): `data_captions.json`, two captions per image."""
    return _read_annotation(folder, "rstpreid", ("data_captions.json",), "img_path")


def read_jsonl(folder: Path) -> list[Record]:
    """Any data set as `train.jsonl`, `val.jsonl`, `test.jsonl`; those that exist are read."""
    files = [folder / f"{split}.jsonl" for split in SPLIT_NAMES]
    present = [path for path in files if path.is_file()]
    if not present:
        raise CsktError(f"{folder}: none of {', '.join(path.name for path in files)} found; {_remedy('jsonl')}")
    records = []
    for path in present:
        lines = [(number, line) for number, line in enumerate(_read_text(path).split("\n"), start=1) if line.strip()]
        if not lines:
            raise CsktError(f"{path}: empty; delete the file or add a record per line")
        for number, line in lines:
            where = f"{path}:{number}"
            entry = _parse_json(line, where)
            records.append(_to_record(entry, where, folder, split=path.stem, path_key="image", pid_key="pid"))
    return records


READERS: dict[str, Callable[[Path], list[Record]]] = {
    "cuhk-pedes": read_cuhk_pedes,
    "icfg-pedes": read_icfg_pedes,
    "rstpreid": read_rstpreid,
    "jsonl": read_jsonl,
}
"""Data set -> function from its folder to its records."""


def _read_annotation(folder: Path, key: str, file_names: tuple[str, ...], path_key: str) -> list[Record]:
    candidates = [folder / name for name in file_names]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise CsktError(f"{candidates[0]}: no such file; {_remedy(key)}")
    content = _parse_json(_read_text(path), str(path))
    if not isinstance(content, list):
        raise CsktError(f"{path}: expected a list of records at the top level, found {_kind(content)}")
    if not content:
        raise CsktError(f"{path}: holds no records; {_remedy(key)}")
    records = []
    for index, entry in enumerate(content):
        where = f"{path}: record {index}"
        split = entry.get("split") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and split not in SPLIT_NAMES:
            raise CsktError(f"{where} has {_value(entry, 'split')}; expected one of {', '.join(SPLIT_NAMES)}")
        records.append(_to_record(entry, where, folder / "imgs", str(split), path_key=path_key, pid_key="id"))
    return records


def _to_record(entry: Any, where: str, image_folder: Path, split: str, *, path_key: str, pid_key: str) -> Record:
    if not isinstance(entry, dict):
        raise CsktError(f"{where} is {_kind(entry)}; expected an object with {pid_key}, {path_key} and captions")
    pid = entry.get(pid_key)
    if isinstance(pid, bool) or not isinstance(pid, int) or not 0 <= pid <= LARGEST_PID:
        raise CsktError(f"{where} has {_value(entry, pid_key)}; expected a whole number from 0")
    captions = entry.get("captions")
    if not isinstance(captions, list) or not captions or not all(isinstance(item, str) for item in captions):
        raise CsktError(f"{where} has {_value(entry, 'captions')}; expected a non-empty list of strings")
    attributes = entry.get("attributes")
    return Record(
        pid=pid,
        image_path=image_folder / _relative_path(entry, path_key, where, image_folder),
        captions=tuple(captions),
        split=split,
        attributes=attributes if isinstance(attributes, dict) else None,
    )


def _relative_path(entry: dict[str, Any], path_key: str, where: str, image_folder: Path) -> PurePosixPath:
    written = entry.get(path_key)
    if not isinstance(written, str) or not written.strip():
        raise CsktError(f"{where} has {_value(entry, path_key)}; expected the path of an image")
    # Annotations made on Windows separate with backslashes; no published file name holds one.
    relative = PurePosixPath(written.replace("\\", "/"))
    if (
        relative.is_absolute()
        or ".." in relative.parts
        or PureWindowsPath(written).drive
        or not _can_be_a_name(written)
    ):
        raise CsktError(f"{where} has {_value(entry, path_key)}; expected a path inside {image_folder}")
    return relative


def _can_be_a_name(written: str) -> bool:
    """Whether a file can bear a name: a NUL ends it, and half a surrogate pair stands for no character."""
    return "\0" not in written and not any("\ud800" <= letter <= "\udfff" for letter in written)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        raise CsktError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise CsktError(f"{path}: cannot be read: {error.strerror}") from None


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise CsktError(f"{where}: not JSON: {error.msg} at {place}; is the file complete?") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of nested brackets
        raise CsktError(f"{where}: not JSON that can be read: {error}") from None


def _value(entry: dict[str, Any], key: str) -> str:
    if key not in entry:
        return f"no '{key}'"
    written = repr(entry[key])
    return f"'{key}' {written if len(written) <= 80 else written[:77] + '...'}"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _remedy(key: str) -> str:
    if key == "jsonl":
        return 'write lines {"image": "relative/path.jpg", "pid": 7, "captions": ["..."]}'
    return f"data.root must hold {FOLDERS[key]}; request the data at {REQUEST_FROM[key]}"
