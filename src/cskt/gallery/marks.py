"""Crops marked as right or wrong for a sentence: as a table, and as records for training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskt.data.datasets.base import MAX_PID_CHARACTERS
from cskt.data.sentences import check_sentence
from cskt.errors import CsktError
from cskt.utils.csv_cells import csv_text
from cskt.utils.user_tables import Row, column_of, read_table

COLUMNS = ("text", "image", "right")
OTHER_NAMES = {
    "text": ("sentence", "caption", "query"), "image": ("image_id", "path", "file"), "right": ("label", "match"),
}  # fmt: skip
"""Names of the columns in other tables."""
PID_DIGEST_DIGITS = 12
YES, NO = ("1", "true", "yes", "right"), ("0", "false", "no", "wrong")


@dataclass(frozen=True)
class Mark:
    """A judged hit."""

    text: str
    """The sentence."""
    image_id: str
    """Name of the crop in the gallery."""
    right: bool
    """True if the crop shows the person whom the sentence describes."""


def marks_csv(marks: Iterable[Mark]) -> str:
    """Return marks as CSV with the columns text, image and right (1 or 0); `read_pairs` reads them back unchanged.

    Cells that a spreadsheet would take for a formula are marked as text; see `csv_cells`.
    """
    return csv_text([COLUMNS, *((mark.text, mark.image_id, int(mark.right)) for mark in marks)])


def training_records(marks: Iterable[Mark]) -> list[dict[str, Any]]:
    """Return crops marked right as training records: `{"image": ..., "pid": "a sentence", "captions": [...]}`.

    Crops that are right for one sentence show one person, and so do those of two sentences that share a right crop. The
    identity is the person's first sentence, so that two exports for different people can be splits of one data set.
    Crops marked wrong are left out, since their person is unknown. Of two marks for one sentence and crop the later
    counts. To train, save the records as `train.jsonl` in the indexed folder.
    """
    latest = {(mark.text, mark.image_id): mark.right for mark in marks}
    captions_of: dict[str, list[str]] = {}
    for (text, image_id), right in latest.items():
        if right:
            captions_of.setdefault(image_id, []).append(text)
    pids = _people(captions_of)
    return [
        {"image": image_id, "pid": pids[image_id], "captions": captions} for image_id, captions in captions_of.items()
    ]


def read_pairs(path: Path) -> list[Mark]:
    """Read labelled pairs from a file of `marks_csv`, or any CSV or JSON-lines file with such columns.

    Args:
        path: columns text, image (or image_id, path, file) and right: 1 or 0, true or false, right or wrong.
    """
    rows = read_table(path)
    text, image, right = (column_of(rows, (name, *OTHER_NAMES[name]), path) for name in COLUMNS)
    marks = [Mark(_text_of(row, text), _text_of(row, image), _is_right(row, right)) for row in rows]
    for row, mark in zip(rows, marks, strict=True):
        try:
            check_sentence(mark.text)
        except CsktError as error:
            raise CsktError(f"{row.where}: '{text}': {error}") from None
    return marks


def _people(captions_of: dict[str, list[str]]) -> dict[str, str]:
    """Return crop -> identity, made of the person's first sentence; crops that share a caption show one person."""
    first_with: dict[str, str] = {}
    parent = {image_id: image_id for image_id in captions_of}

    def root(image_id: str) -> str:
        while parent[image_id] != image_id:
            parent[image_id] = parent[parent[image_id]]
            image_id = parent[image_id]
        return image_id

    for image_id, captions in captions_of.items():
        for caption in captions:
            parent[root(image_id)] = root(first_with.setdefault(caption, image_id))
    pids: dict[str, str] = {}
    for image_id, captions in captions_of.items():
        pids.setdefault(root(image_id), _pid(captions[0]))
    return {image_id: pids[root(image_id)] for image_id in captions_of}


def _pid(sentence: str) -> str:
    """Return a sentence as an identity; a long one is cut and gets a digest, so that identities stay distinct."""
    if len(sentence) <= MAX_PID_CHARACTERS:
        return sentence
    digest = hashlib.sha256(sentence.encode()).hexdigest()[:PID_DIGEST_DIGITS]
    return f"{sentence[: MAX_PID_CHARACTERS - PID_DIGEST_DIGITS - 1]} {digest}"


def _text_of(row: Row, column: str) -> str:
    value = row.cells.get(column)
    if not isinstance(value, str) or not value.strip():
        raise CsktError(f"{row.where}: no text under '{column}'; give a sentence, the name of an image, and 1 or 0")
    return value


def _is_right(row: Row, column: str) -> bool:
    value = str(row.cells.get(column, "")).strip().lower()
    if value not in YES + NO:
        raise CsktError(
            f"{row.where}: '{column}' is '{value[:40]}'; write 1 where the crop is right for the text, else 0"
        )
    return value in YES
