"""Crops as rows of a Milvus collection, and back.

A metadata column is a key of the collection's dynamic field, because milvus-lite cannot add fields; a crop without a
value has no such key, or a null there. Numbers are floats.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cskt.errors import CorruptRowError, CsktError
from cskt.gallery.columns import Kind, Value
from cskt.gallery.stores.base import MAX_FACET_VALUES, Crop, CropFacts, Facet
from cskt.gallery.stores.milvus.filters import like_key, likeable, partition_field, partition_of
from cskt.gallery.stores.milvus.server import LONGEST_ID, LONGEST_TEXT
from cskt.gallery.stores.row_checks import checked_facts, first_corrupt, plain

STATE = ["image_id", "num_bytes", "modified_ns", "sha256", "kept"]
"""Fields that make a `FileState`, and its name."""
FACTS = [*STATE, "width", "height"]
"""Fields that make `CropFacts`, beside the columns."""


def to_row(crop: Crop, columns: Mapping[str, Kind], partitioned_by: str | None) -> dict[str, Any]:
    """A crop as it is written.

    Raises:
        CsktError: something of it is longer than Milvus keeps, or of no column.
    """
    facts = crop.facts
    if unknown := facts.metadata.keys() - columns.keys():
        raise CsktError(f"the gallery has no column '{min(unknown)}'")
    thumbnail = base64.b64encode(crop.thumbnail).decode()
    texts = {"its name": facts.image_id, "the thumbnail": thumbnail, **facts.metadata}
    for what, text in texts.items():
        longest = LONGEST_ID if what == "its name" else LONGEST_TEXT
        if isinstance(text, str) and len(text.encode()) > longest:
            raise CsktError(f"{facts.image_id[:60]}: {what} has more than the {longest:,} bytes that Milvus keeps")
    row: dict[str, Any] = {
        "image_id": facts.image_id,
        "vector": crop.vector.astype(np.float32),
        "thumbnail": thumbnail,
        "width": float(facts.width),
        "height": float(facts.height),
        "num_bytes": float(facts.num_bytes),
        "modified_ns": facts.modified_ns,
        "sha256": facts.sha256,
        "kept": facts.kept,
        like_key("image_id"): likeable(facts.image_id),
    }
    for column, value in facts.metadata.items():
        kind = columns[column]
        row[column] = float(value) if kind == "number" else value
        if kind == "text":
            row[like_key(column)] = likeable(str(value))
    if partitioned_by is not None:
        row[partition_field(partitioned_by)] = partition_of(facts.metadata.get(partitioned_by))
    return row


def to_no_values(facts: CropFacts) -> dict[str, None]:
    """A row's keys of metadata as nulls, which read and compare like no keys: what a replaced crop must not keep."""
    return dict.fromkeys([*facts.metadata, *map(like_key, facts.metadata)])


def to_facts(row: Mapping[str, Any], columns: Mapping[str, Kind], url: str) -> CropFacts:
    """Return the facts of a row, without its pixels and its vector.

    Args:
        url: of the collection, for the error.

    Raises:
        CorruptRowError: see `checked_facts`; or a value is not of its column's kind.
    """
    metadata = {column: row[column] for column in columns if row.get(column) is not None}
    facts = checked_facts(row, metadata, url)
    for column, value in facts.metadata.items():
        if not _fits(value, columns[column]):
            raise CorruptRowError(url, facts.image_id, f"column '{column}' must hold a {columns[column]}")
    return facts


def _fits(value: Value, kind: Kind) -> bool:
    """Return whether a value is of a kind; unlike a table, a collection keeps any JSON value in a column."""
    if kind == "boolean" or isinstance(value, bool):
        return kind == "boolean" and isinstance(value, bool)
    return isinstance(value, int | float) if kind == "number" else isinstance(value, str)


def to_value(raw: Any, kind: Kind, column: str, url: str) -> Value:
    """A value as it was before all numbers became floats.

    Raises:
        CorruptRowError: it is not of the column's kind.
    """
    try:
        value = plain(raw, column)
    except ValueError as error:
        raise CorruptRowError(url, raw, str(error)) from None
    if not _fits(value, kind):
        raise CorruptRowError(url, raw, f"column '{column}' must hold a {kind}")
    return value


def to_facet(kind: Kind, counts: Counter[Value]) -> Facet:
    """How often each value of a column was seen, as an answer."""
    if kind in ("number", "time"):
        return Facet(kind, minimum=min(counts, default=None), maximum=max(counts, default=None))
    if len(counts) > MAX_FACET_VALUES:
        return Facet(kind)
    return Facet(kind, values=tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def to_vectors(rows: Sequence[Mapping[str, Any]], url: str) -> NDArray[np.float32]:
    """[number of rows, D].

    Raises:
        CorruptRowError: a vector holds something else than numbers of bearable size.
    """
    vectors = np.array([row["vector"] for row in rows], np.float32)
    if (corrupt := first_corrupt(vectors)) is not None:
        raise CorruptRowError(url, rows[corrupt]["image_id"], "its vector must be finite numbers")
    return vectors


def to_thumbnail(row: Mapping[str, Any], url: str) -> bytes:
    """The small JPEG of a row.

    Raises:
        CorruptRowError: it is not written in base64.
    """
    try:
        return base64.b64decode(row["thumbnail"], validate=True)
    except (ValueError, TypeError):
        raise CorruptRowError(url, row["image_id"], "its thumbnail is not base64") from None
