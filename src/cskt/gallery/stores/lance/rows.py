"""How crops lie in a LanceDB table: its columns, crops to rows and back, conditions as its SQL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cskt.errors import SHORT, CsktError, StoreError
from cskt.gallery.columns import BUILT_IN, Kind, Value
from cskt.gallery.conditions import All, Any_, Comparison, Condition, Membership, Missing, Pattern
from cskt.gallery.stores.base import Crop, CropFacts
from cskt.gallery.stores.row_checks import checked_facts

PREFIX = "meta_"
"""Before the name of a metadata column, so that none is a word of SQL or a column of ours."""
ARROW_TYPES: dict[Kind, pa.DataType] = {
    "text": pa.utf8(),
    "number": pa.float64(),  # built-in ones, too: Lance compares an int64 with whole literals only
    "boolean": pa.bool_(),
    "time": pa.utf8(),
}
ROW_ID = "_rowid"
"""Lance's own: number of the fragment in the upper 32 bits, of the row in it in the lower. A row is never changed:
replacing a crop removes the row and adds another, and tidying up moves rows to new fragments under new ids."""


def schema(dim: int) -> pa.Schema:
    """Columns of a table without metadata; those of metadata follow under their own names."""
    return pa.schema(
        [
            pa.field("image_id", pa.utf8(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
            pa.field("thumbnail", pa.binary(), nullable=False),
            pa.field("width", pa.float64(), nullable=False),
            pa.field("height", pa.float64(), nullable=False),
            pa.field("num_bytes", pa.float64(), nullable=False),
            pa.field("modified_ns", pa.int64(), nullable=False),
            pa.field("sha256", pa.utf8(), nullable=False),
            pa.field("kept", pa.bool_(), nullable=False),
        ]
    )


STATE = ("image_id", "num_bytes", "modified_ns", "sha256", "kept")
"""Columns of a `FileState`, and its name."""
FACTS = (*STATE, "width", "height")
"""Columns of `CropFacts`, beside those of metadata."""


def metadata_fields(columns: Mapping[str, Kind]) -> list[pa.Field]:
    """Columns of metadata; a crop that knows nothing of one has NULL there."""
    return [pa.field(f"{PREFIX}{name}", ARROW_TYPES[kind]) for name, kind in columns.items()]


def to_rows(crops: Sequence[Crop], table: pa.Schema) -> pa.Table:
    """Crops as rows of a table with this schema.

    Raises:
        CsktError: a vector has another length or is not finite, or a column of the metadata is not in the table.
    """
    dim = table.field("vector").type.list_size
    for crop in crops:
        if crop.vector.shape != (dim,) or not np.isfinite(crop.vector).all():
            raise CsktError(
                f"{crop.facts.image_id}: the vector must be {dim} finite numbers, found {crop.vector.size}; encode the"
                " crop with the gallery's own model"
            )
        for name in crop.facts.metadata:
            if f"{PREFIX}{name}" not in table.names:
                raise CsktError(f"{crop.facts.image_id}: the gallery has no column '{name}'; add the column first")
    arrays: dict[str, pa.Array] = {
        name: pa.array([getattr(crop.facts, name) for crop in crops], table.field(name).type) for name in FACTS
    }
    vectors = np.concatenate([crop.vector for crop in crops]).astype(np.float32, copy=False)
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors), dim)
    arrays["thumbnail"] = pa.array([crop.thumbnail for crop in crops], pa.binary())
    for field in table:
        if field.name not in arrays:
            name = field.name.removeprefix(PREFIX)
            arrays[field.name] = pa.array([crop.facts.metadata.get(name) for crop in crops], field.type)
    return pa.table([arrays[name] for name in table.names], schema=table)


def to_facts(row: Mapping[str, object], folder: Path) -> CropFacts:
    """The facts of a row, given as column -> value.

    Args:
        folder: of the table, for the error.

    Raises:
        CorruptRowError: see `checked_facts`.
    """
    metadata = {
        name.removeprefix(PREFIX): value for name, value in row.items() if name.startswith(PREFIX) and value is not None
    }
    return checked_facts(row, metadata, folder)


def to_vectors(rows: pa.RecordBatch | pa.Table) -> NDArray[np.float32]:
    """The vectors of some rows; [n, D]. A vector that is missing, or has no number somewhere, is NaN."""
    column = rows["vector"]
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    flat = [_flat(chunk) for chunk in chunks] or [np.empty(0, np.float32)]
    return (flat[0] if len(flat) == 1 else np.concatenate(flat)).reshape(-1, column.type.list_size)


def _flat(chunk: pa.FixedSizeListArray) -> NDArray[np.float32]:
    if not chunk.null_count and not chunk.flatten().null_count:
        return np.asarray(chunk.flatten().to_numpy())
    dim = chunk.type.list_size
    rows = [vector or [None] * dim for vector in chunk.to_pylist()]
    return np.array([math.nan if entry is None else entry for vector in rows for entry in vector], np.float32)


def check_schema(found: pa.Schema, dim: int, columns: Mapping[str, Kind], folder: Path) -> None:
    """Check that a table has the columns that this program makes.

    Args:
        found: of the table.
        dim: width of the model's vectors.
        columns: metadata columns that the manifest names.
        folder: of the table, for the error.

    Raises:
        CsktError: a column is missing or of another type, there is another column, or the vectors have another width.
    """
    fields = [field for field in schema(dim) if field.name != "vector"] + metadata_fields(columns)
    vector = found.field("vector").type if "vector" in found.names else None
    if vector is None or not pa.types.is_fixed_size_list(vector) or vector.value_type != pa.float32():
        raise _unlike(folder, "vector", vector)
    for field in fields:
        kind = found.field(field.name).type if field.name in found.names else None
        if kind != field.type:
            raise _unlike(folder, field.name, kind)
    for field in found:
        is_metadata = field.name.startswith(PREFIX) and field.type in ARROW_TYPES.values()
        if field.name not in schema(dim).names and not is_metadata:
            raise _unlike(folder, field.name, field.type)
    if vector.list_size != dim:
        raise CsktError(
            f"{folder}: the gallery holds vectors of {vector.list_size} numbers, the model gives {dim}; type: cskt"
            " reindex"
        )


def _unlike(folder: Path, column: str, kind: pa.DataType | None) -> StoreError:
    return StoreError(
        f"{folder}: column {SHORT.repr(column)} {'is missing' if kind is None else f'holds {str(kind)[:80]}'}; the"
        " table does not fit its gallery.json: restore both, or index into a new folder"
    )


def to_sql(condition: Condition) -> str:
    """A condition in Lance's SQL. A comparison with NULL is never true there, and there is no NOT around one here."""
    match condition:
        case All(conditions):
            return "(" + " AND ".join(map(to_sql, conditions)) + ")"
        case Any_(conditions):
            return "(" + " OR ".join(map(to_sql, conditions)) + ")"
    column = f"`{condition.column if condition.column in BUILT_IN else PREFIX + condition.column}`"
    match condition:
        case Missing(_, negated):
            return f"{column} IS {'NOT ' if negated else ''}NULL"
        case Comparison(_, operator, value):
            return f"{column} {operator} {_literal(value)}"
        case Membership(_, values, negated):
            among = f"IN ({', '.join(map(_literal, values))})"
            # NULL is ruled out in so many words: of NOT IN (1) OR NOT IN (2) LanceDB's planner makes "always true".
            return f"({column} IS NOT NULL AND {column} NOT {among})" if negated else f"{column} {among}"
        case Pattern(_, parts, negated):
            pattern = "%".join(_like(part) for part in parts)
            return f"{column} {'NOT ' if negated else ''}LIKE {_literal(pattern)}"


def names_sql(image_ids: Sequence[str]) -> str:
    """The condition that a crop has one of these names."""
    return f"image_id IN ({', '.join(map(_literal, image_ids))})"


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"  # the only escape: a backslash is a backslash
    assert math.isfinite(value)
    return repr(float(value))


def _like(text: str) -> str:
    """Text for LIKE without a special meaning."""
    return text.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")
