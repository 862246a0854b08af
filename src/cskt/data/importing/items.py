"""Values that all sources of an import share: an image with its captions, usual headings, and names of splits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cskt.data.importing.tables import SPLITS, plain_cell
from cskt.data.records import Pid
from cskt.errors import CsktError

IMAGE_NAMES = (
    "image", "path", "file", "image_id", "image_path", "img_path", "file_path", "file_name", "filename", "img", "photo",
)  # fmt: skip
PERSON_NAMES = ("pid", "person", "person_id", "identity", "id", "label")
CAPTION_NAMES = ("caption", "text", "sentence", "description")
SPLIT_NAMES = ("split", "partition", "subset")
"""Usual headings, the first of which is used."""


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


def split_name(text: str, where: str) -> str:
    """Return train, val or test for the name that a source gives a split."""
    if text.strip().lower() not in SPLITS:
        raise CsktError(f"{where}: the split is '{text[:80]}'; use train, val or test")
    return SPLITS[text.strip().lower()]


def numbered_headings(stem: str, headings: Sequence[str]) -> tuple[str, ...]:
    """Return the headings `caption`, `captions`, `caption_1`, `caption 2`, ... for the stem `caption`."""
    return tuple(heading for heading in headings if re.fullmatch(rf"{stem}s?[ _-]?\d*", heading.strip().lower()))


def captions_of(cell: Any, where: str) -> list[str]:
    """Return the sentences of a cell, a text or a list of texts, without empty ones."""
    sentences = [plain_cell(value) for value in (cell if isinstance(cell, list) else [cell])]
    if not all(isinstance(sentence, str | None) for sentence in sentences):
        raise CsktError(f"{where}: the caption is {str(cell)[:80]!r}; expected a sentence, or a list of sentences")
    return [sentence for sentence in sentences if sentence]
