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

from cskt.gallery.columns import LARGEST_WHOLE, Kind, Value
from cskt.gallery.milvus_filters import like_key, likeable, partition_field, partition_of
from cskt.gallery.milvus_server import LONGEST_ID, LONGEST_TEXT
from cskt.gallery.store import MOST_FACET_VALUES, Crop, CropFacts, Facet

STATE = ["image_id", "num_bytes", "modified_ns", "sha256", "kept"]
"""Fields that make a `FileState`, and its name."""
FACTS = [*STATE, "width", "height"]
"""Fields that make `CropFacts`, beside the columns."""


def to_row(crop: Crop, columns: Mapping[str, Kind], partitioned_by: str | None) -> dict[str, Any]:
    """A crop as it is written.

    Raises:
        ValueError: something of it is longer than Milvus keeps, or of no column.
    """
    facts = crop.facts
    if unknown := facts.metadata.keys() - columns.keys():
        raise ValueError(f"the gallery has no column '{min(unknown)}'")
    thumbnail = base64.b64encode(crop.thumbnail).decode()
    texts = {"its name": facts.image_id, "the thumbnail": thumbnail, **facts.metadata}
    for what, text in texts.items():
        longest = LONGEST_ID if what == "its name" else LONGEST_TEXT
        if isinstance(text, str) and len(text.encode()) > longest:
            raise ValueError(f"{facts.image_id[:60]}: {what} has more than the {longest:,} bytes that Milvus keeps")
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


def to_facts(row: Mapping[str, Any], columns: Mapping[str, Kind]) -> CropFacts:
    """What a row says beside its pixels and its vector."""
    return CropFacts(
        image_id=row["image_id"],
        width=int(row["width"]),
        height=int(row["height"]),
        num_bytes=int(row["num_bytes"]),
        modified_ns=int(row["modified_ns"]),
        sha256=row["sha256"],
        kept=bool(row["kept"]),
        metadata={
            column: to_value(row[column], kind) for column, kind in columns.items() if row.get(column) is not None
        },
    )


def to_value(raw: Any, kind: Kind) -> Value:
    """A value as it was before all numbers became floats."""
    if kind == "number" and float(raw).is_integer() and abs(raw) <= LARGEST_WHOLE:
        return int(raw)
    value: Value = raw
    return value


def to_facet(kind: Kind, counts: Counter[Value]) -> Facet:
    """How often each value of a column was seen, as an answer."""
    if kind in ("number", "time"):
        return Facet(kind, minimum=min(counts, default=None), maximum=max(counts, default=None))
    if len(counts) > MOST_FACET_VALUES:
        return Facet(kind)
    return Facet(kind, values=tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))


def to_vectors(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """[number of rows, D]."""
    return np.array([row["vector"] for row in rows], np.float32)
