"""Format of a LanceDB table of crops: its schema, crops as rows, conditions as its SQL, its errors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cskt.errors import SHORT, CsktError, StoreError, file_system_errors
from cskt.gallery.columns import BUILT_IN, Kind, Value
from cskt.gallery.conditions import All, Any_, Comparison, Condition, Membership, Missing, Pattern
from cskt.gallery.indexing.encoding import batched
from cskt.gallery.stores.base import Crop, CropRecord
from cskt.gallery.stores.row_checks import FACT_FIELDS, checked_crops, checked_facts

PREFIX = "meta_"
"""Start of the name of a metadata column in the table, so that none is a word of SQL or a column of ours."""
ARROW_TYPES: dict[Kind, pa.DataType] = {
    "text": pa.utf8(),
    "number": pa.float64(),  # built-in ones, too: Lance compares an int64 with whole literals only
    "boolean": pa.bool_(),
    "time": pa.utf8(),
}
ROW_ID = "_rowid"
"""Lance's own: number of the fragment in the upper 32 bits, of the row in it in the lower. A row is never changed:
replacing a crop deletes the row and adds another, and compaction moves rows to new fragments under new ids."""
MAX_LITERALS = 1000
"""Values in one condition."""
CORRUPTION = re.compile(r"LanceError\(IO\)|Not found|[Cc]orrupt|Invalid range")
"""Matches Lance's messages about files that are truncated, altered or missing."""


@contextmanager
def lance_errors(folder: Path) -> Iterator[None]:
    """Turn LanceDB's errors, which fill pages, into one line.

    Raises:
        FileSystemError: the operating system refused a call: a full disk, missing rights.
        StoreError: any other error of Lance.
    """
    try:
        with file_system_errors(folder):
            yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if (refused := re.search(r"\(os error (\d+)\)", text)) is not None:
            number = int(refused[1])
            with file_system_errors(folder):
                raise OSError(number, os.strerror(number)) from None
        if not text.startswith("lance error"):
            raise
        reason = text.partition(", /")[0][:200]  # without the place in Lance's source that follows
        if CORRUPTION.search(reason):
            reason = f"corrupt ({reason}); restore it, or index into a new folder"
        raise StoreError(f"{folder}: {reason}") from error


def schema(dim: int) -> pa.Schema:
    """Return the columns of a table without metadata; metadata columns follow."""
    kinds = {
        "image_id": pa.utf8(),
        "vector": pa.list_(pa.float32(), dim),
        "thumbnail": pa.binary(),
        "width": pa.float64(),
        "height": pa.float64(),
        "num_bytes": pa.float64(),
        "modified_ns": pa.int64(),
        "sha256": pa.utf8(),
        "kept": pa.bool_(),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def metadata_fields(columns: Mapping[str, Kind]) -> list[pa.Field]:
    """Return the columns of metadata; a crop without a value has NULL there."""
    return [pa.field(f"{PREFIX}{name}", ARROW_TYPES[kind]) for name, kind in columns.items()]


def check_schema(found: pa.Schema, dim: int, columns: Mapping[str, Kind], folder: Path) -> None:
    """Check that a table has the columns that this program makes: vectors of this width, and the metadata columns."""
    kinds: dict[str, pa.DataType] = {field.name: field.type for field in found}
    wanted = {field.name: field.type for field in [*schema(dim), *metadata_fields(columns)]}
    vector = kinds.get("vector")
    if vector is not None and pa.types.is_fixed_size_list(vector) and vector.value_type == pa.float32():
        wanted["vector"] = vector  # its width is compared last
    for name, kind in kinds.items():
        is_metadata = name.startswith(PREFIX) and kind in ARROW_TYPES.values()
        wanted.setdefault(name, kind if is_metadata else None)
    for name, kind in wanted.items():
        if kind is None or kinds.get(name) != kind:
            state = f"holds {str(kinds[name])[:80]}" if name in kinds else "is missing"
            raise StoreError(
                f"{folder}: column {SHORT.repr(name)} {state}; the table does not fit its gallery.json: restore both,"
                " or index into a new folder"
            )
    if kinds["vector"].list_size != dim:
        raise CsktError(
            f"{folder}: the gallery holds vectors of {kinds['vector'].list_size} numbers, the model gives {dim}; type:"
            " cskt reindex GALLERY"
        )


def to_rows(crops: Sequence[Crop], table: pa.Schema) -> pa.Table:
    """Return crops as rows of a table with this schema."""
    dim = table.field("vector").type.list_size
    columns = {name.removeprefix(PREFIX) for name in table.names if name.startswith(PREFIX)}
    crops = checked_crops(crops, dim, columns)
    vectors = np.concatenate([crop.vector for crop in crops]).astype(np.float32, copy=False)
    arrays: dict[str, pa.Array] = {
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors), dim),
        "thumbnail": pa.array([crop.thumbnail for crop in crops], pa.binary()),
    }
    for field in table:
        if field.name in FACT_FIELDS:
            arrays[field.name] = pa.array([getattr(crop.facts, field.name) for crop in crops], field.type)
        elif field.name not in arrays:
            name = field.name.removeprefix(PREFIX)
            arrays[field.name] = pa.array([crop.facts.metadata.get(name) for crop in crops], field.type)
    return pa.table([arrays[name] for name in table.names], schema=table)


def to_facts(row: Mapping[str, object], folder: Path) -> CropRecord:
    """Return the facts of a row, given as column -> value."""
    metadata = {
        name.removeprefix(PREFIX): value for name, value in row.items() if name.startswith(PREFIX) and value is not None
    }
    return checked_facts(row, metadata, folder)


def to_vectors(rows: pa.RecordBatch | pa.Table) -> NDArray[np.float32]:
    """Return the vectors [n, D] of some rows; a missing number, or vector, is NaN."""
    column = rows["vector"]
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    dim = column.type.list_size
    vectors = [np.empty((0, dim), np.float32)]
    for chunk in chunks:
        if chunk.null_count or chunk.flatten().null_count:
            vectors.append(np.array([vector or [None] * dim for vector in chunk.to_pylist()], np.float32))
        else:
            vectors.append(chunk.flatten().to_numpy().reshape(-1, dim))
    return vectors[1] if len(vectors) == 2 else np.concatenate(vectors)


def to_sql(condition: Condition) -> str:
    """Return a condition in Lance's SQL, in which a comparison with NULL is never true; there is no outer NOT."""
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
            # NULL is excluded explicitly: LanceDB's planner turns NOT IN (1) OR NOT IN (2) into "always true".
            return f"({column} IS NOT NULL AND {column} NOT {among})" if negated else f"{column} {among}"
        case Pattern(_, parts, negated):
            pattern = "%".join(part.replace("\\", r"\\").replace("_", r"\_").replace("%", r"\%") for part in parts)
            return f"{column} {'NOT ' if negated else ''}LIKE {_literal(pattern)}"


def names_sql(image_ids: Iterable[str]) -> Iterator[str]:
    """Yield conditions that select crops by name."""
    return membership_sql("image_id", map(_literal, dict.fromkeys(image_ids)))


def membership_sql(column: str, literals: Iterable[str]) -> Iterator[str]:
    """Yield conditions that a column has one of these values, `MAX_LITERALS` at a time."""
    return (f"{column} IN ({', '.join(part)})" for part in batched(literals, MAX_LITERALS))


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"  # the only escape: a backslash is a backslash
    assert math.isfinite(value)
    return repr(float(value))
