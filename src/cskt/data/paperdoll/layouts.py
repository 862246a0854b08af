"""Annotation files of generated data sets, in the formats of the three public data sets and in JSON lines.

Which file, key and numbering belongs to which data set is `records`' business to read; this is the writing side.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from cskt.data.paperdoll.attributes import Attributes

Layout: TypeAlias = Literal["cuhk-pedes", "icfg-pedes", "rstpreid", "jsonl"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image with its captions, before it is written in a layout."""

    split: str
    pid: int
    """From 0 over all splits."""
    file_path: str
    """Relative to `imgs/`, with forward slashes."""
    captions: tuple[str, ...]
    attributes: Attributes


@dataclasses.dataclass(frozen=True)
class LayoutFormat:
    """How a layout names things."""

    folder: str
    """Folder under the root; empty where the root is the data set's folder itself."""
    annotation: str
    """Annotation file; empty where each split has its own."""
    path_key: str
    first_pid: int


LAYOUTS: dict[Layout, LayoutFormat] = {
    "cuhk-pedes": LayoutFormat("CUHK-PEDES", "reid_raw.json", "file_path", first_pid=1),
    "icfg-pedes": LayoutFormat("ICFG-PEDES", "ICFG-PEDES.json", "file_path", first_pid=0),
    "rstpreid": LayoutFormat("RSTPReid", "data_captions.json", "img_path", first_pid=0),
    "jsonl": LayoutFormat("", "", "image", first_pid=0),
}


def write_annotation(folder: Path, layout: Layout, entries: Sequence[Entry]) -> None:
    """Write the annotation of a data set whose images lie under `folder/imgs`."""
    if layout == "jsonl":
        for split in dict.fromkeys(entry.split for entry in entries):
            lines = [json.dumps(_jsonl_line(entry)) for entry in entries if entry.split == split]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    records = [_native_record(entry, layout, index) for index, entry in enumerate(entries)]
    text = ",\n".join(json.dumps(record) for record in records)
    (folder / LAYOUTS[layout].annotation).write_text(f"[{text}]\n", encoding="utf-8")


def _jsonl_line(entry: Entry) -> dict[str, object]:
    return {
        "image": f"imgs/{entry.file_path}",
        "pid": entry.pid,
        "captions": list(entry.captions),
        "attributes": dataclasses.asdict(entry.attributes),
    }


def _native_record(entry: Entry, layout: Layout, index: int) -> dict[str, object]:
    shape = LAYOUTS[layout]
    record: dict[str, object] = {
        "split": entry.split,
        "captions": list(entry.captions),
        shape.path_key: entry.file_path,
        "id": entry.pid + shape.first_pid,
        "attributes": dataclasses.asdict(entry.attributes),
    }
    if layout == "icfg-pedes":
        # The real data set has one caption per image and no validation split.
        record |= {"captions": [entry.captions[0]], "split": "train" if entry.split == "val" else entry.split}
    if layout == "cuhk-pedes" and index % 3 == 0:
        # Some real records carry their tokens, which no reader needs.
        record["processed_tokens"] = [re.findall(r"[\w-]+", caption.lower()) for caption in entry.captions]
    return record
