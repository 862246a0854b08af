"""Checks of rows written to a store, and read from it: a gallery may come from someone else.

Names of crops and digests become paths, and numbers become answers. Rows therefore obey the same rules when read as
when written; one that does not is an error that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cskt.errors import SHORT, CorruptRowError, CsktError
from cskt.gallery.columns import MAX_WHOLE, Kind, Value
from cskt.gallery.stores.base import Crop, CropRecord, FileState, check_image_id, check_sha256

STATE_FIELDS = ("image_id", "num_bytes", "modified_ns", "sha256", "kept")
"""Fields of a row that make a `FileState`, and its name."""
FACT_FIELDS = (*STATE_FIELDS, "width", "height")
"""Fields of a row that make `CropRecord`, besides the metadata columns."""
MAX_ENTRY = 1e6
"""Largest number in a vector, whose length is 1; products of larger ones could be infinite."""
JPEG_START = b"\xff\xd8\xff"
MAX_THUMBNAIL_BYTES = 1_000_000
"""Thumbnails that this program makes have some 10,000."""


@contextmanager
def corrupt_row_errors(place: Path | str, row: object) -> Iterator[None]:
    """Turn a CsktError of the block into a CorruptRowError.

    Args:
        place: folder or address of the store; the functions below take it, too.
        row: name of the row, or a value of it.
    """
    try:
        yield
    except CsktError as error:
        raise CorruptRowError(place, row, str(error)) from None


def checked_name(name: object, place: Path | str) -> str:
    """Return the name of a row's crop, its field `image_id`."""
    with corrupt_row_errors(place, name):
        if not isinstance(name, str):
            raise CsktError("'image_id' must be text")
        return check_image_id(name)


def checked_state(row: Mapping[str, object], place: Path | str) -> tuple[str, FileState]:
    """Return the name and the file state of a row's crop."""
    name = checked_name(row["image_id"], place)
    with corrupt_row_errors(place, name):
        modified_ns, sha256, kept = row["modified_ns"], row["sha256"], row["kept"]
        if not isinstance(kept, bool | np.bool_):
            raise CsktError("'kept' must be true or false")
        if isinstance(modified_ns, bool) or not isinstance(modified_ns, int):
            raise CsktError("'modified_ns' must be a whole number")
        try:
            digest = check_sha256(sha256 if isinstance(sha256, str) else "")
        except CsktError as error:
            raise CsktError(f"'sha256' {error}, got {SHORT.repr(sha256)}") from None
        return name, FileState(_whole(row, "num_bytes"), modified_ns, digest, bool(kept))


def checked_facts(row: Mapping[str, object], metadata: Mapping[str, object], place: Path | str) -> CropRecord:
    """Return all facts of a row's crop; `metadata` has no missing values."""
    name, state = checked_state(row, place)
    with corrupt_row_errors(place, name):
        values = {column: checked_value(value, column) for column, value in metadata.items()}
        size = _whole(row, "width"), _whole(row, "height")
        return CropRecord(name, *size, state.num_bytes, state.modified_ns, state.sha256, state.kept, values)


def checked_value(value: object, column: str) -> Value:
    """Return a metadata value; a float without a fraction as a whole number."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_WHOLE:
        return int(value)
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise CsktError(f"column '{column}' must be text, a finite number or a truth value, got {SHORT.repr(value)}")
    return value


def checked_crops(crops: Sequence[Crop], dim: int, columns: Collection[str]) -> list[Crop]:
    """Return the last of the crops of each name; their vectors are [dim] and finite, and their columns are known."""
    for crop in crops:
        if crop.vector.shape != (dim,) or not np.isfinite(crop.vector).all():
            raise CsktError(
                f"{crop.facts.image_id}: the vector must be {dim} finite numbers, found {crop.vector.size}; encode the"
                " crop with the gallery's own model"
            )
        for name in crop.facts.metadata:
            if name not in columns:
                raise CsktError(f"{crop.facts.image_id}: the gallery has no column '{name}'; add the column first")
    return list({crop.facts.image_id: crop for crop in crops}.values())


def corrupt_vectors(vectors: NDArray[np.float32]) -> list[int]:
    """Return the indices of those of [n, D] vectors that have NaN or an entry beyond `MAX_ENTRY`."""
    # Two passes without a copy; NaN fails both comparisons.
    if not len(vectors) or (vectors.min() >= -MAX_ENTRY and vectors.max() <= MAX_ENTRY):
        return []
    return np.flatnonzero(~(np.abs(vectors) <= MAX_ENTRY).all(axis=1)).tolist()


def column_value(value: object, kind: Kind, column: str) -> Value:
    """Return a metadata value of a column of that kind; a float without a fraction as a whole number."""
    plain = checked_value(value, column)
    wanted = {"boolean": bool, "number": int | float}.get(kind, str)
    if not isinstance(plain, wanted) or (kind == "number" and isinstance(plain, bool)):
        raise CsktError(f"column '{column}' must hold a {kind}")
    return plain


def checked_metadata(image_id: str, text: object, columns: Mapping[str, Kind], place: Path | str) -> dict[str, Value]:
    """Return a crop's metadata from the text of a JSON object, without columns that the gallery does not have."""
    with corrupt_row_errors(place, image_id):
        try:
            values = json.loads(text if isinstance(text, str) else "")
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise CsktError("'metadata' must be a JSON object")
        return {name: column_value(value, columns[name], name) for name, value in values.items() if name in columns}


def checked_vector(image_id: str, data: object, dim: int, place: Path | str) -> NDArray[np.float32]:
    """Return a crop's vector [dim] from the bytes of its float32 numbers."""
    with corrupt_row_errors(place, image_id):
        if not isinstance(data, bytes) or len(data) != 4 * dim:
            raise CsktError(f"'vector' must be {dim} float32 numbers")
        vector = np.frombuffer(data, np.float32)
        if corrupt_vectors(vector[None]):
            raise CsktError("'vector' must be finite numbers")
        return vector


def checked_thumbnail(image_id: str, thumbnail: object, place: Path | str) -> bytes:
    """Return a crop's thumbnail, which is sent as JPEG."""
    if isinstance(thumbnail, bytes) and thumbnail.startswith(JPEG_START) and len(thumbnail) <= MAX_THUMBNAIL_BYTES:
        return thumbnail
    raise CorruptRowError(place, image_id, "its thumbnail is no small JPEG")


def _whole(row: Mapping[str, object], field: str) -> int:
    value = row[field]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_WHOLE or value != int(value):  # type: ignore[operator, call-overload]
        raise CsktError(f"'{field}' must be a whole number, got {SHORT.repr(value)}")
    return int(value)  # type: ignore[call-overload]
