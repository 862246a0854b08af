"""Rows of a store, checked when they are read: a gallery, and the rows in it, may come from somebody else.

Names of crops and digests become paths, numbers become answers. So what comes out of a store obeys the same rules as
what goes in, and a row that does not is an error that names it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cskt.errors import SHORT, CorruptRowError, CsktError
from cskt.gallery.columns import LARGEST_WHOLE, Value
from cskt.gallery.indexing.files import check_image_id
from cskt.gallery.stores.base import CropFacts, FileState, check_sha256

LARGEST_ENTRY = 1e6
"""Largest number in a vector, whose length is 1; products of larger ones could be infinite."""
JPEG_START = b"\xff\xd8\xff"
LARGEST_THUMBNAIL = 1_000_000
"""Bytes; those that this program makes have some 10,000."""


def checked_name(row: Mapping[str, object], place: Path | str) -> str:
    """The name of a row's crop.

    Args:
        row: field -> value.
        place: folder or address of the store, for the error.

    Raises:
        CorruptRowError: it is none.
    """
    name = row["image_id"]
    try:
        if not isinstance(name, str):
            raise CsktError("'image_id' must be text")
        return check_image_id(name)
    except ValueError as error:
        raise CorruptRowError(place, name, str(error)) from None


def checked_state(row: Mapping[str, object], place: Path | str) -> tuple[str, FileState]:
    """Name and file state of a row's crop.

    Raises:
        CorruptRowError: one of the fields is not what this program writes there.
    """
    name = checked_name(row, place)
    try:
        modified_ns, sha256, kept = row["modified_ns"], row["sha256"], row["kept"]
        if not isinstance(sha256, str):
            raise CsktError("'sha256' must be text")
        if not isinstance(kept, bool | np.bool_):
            raise CsktError("'kept' must be true or false")
        if isinstance(modified_ns, bool) or not isinstance(modified_ns, int):
            raise CsktError("'modified_ns' must be a whole number")
        return name, FileState(_whole(row, "num_bytes"), modified_ns, _digest(sha256), bool(kept))
    except ValueError as error:
        raise CorruptRowError(place, name, str(error)) from None


def checked_facts(row: Mapping[str, object], metadata: Mapping[str, object], place: Path | str) -> CropFacts:
    """All facts of a row's crop.

    Args:
        row: field -> value.
        metadata: column -> value, without those that have none.
        place: folder or address of the store, for the error.

    Raises:
        CorruptRowError: see `checked_state`; or a value of the metadata is of no kind that a column has.
    """
    name, state = checked_state(row, place)
    try:
        return CropFacts(
            image_id=name,
            width=_whole(row, "width"),
            height=_whole(row, "height"),
            num_bytes=state.num_bytes,
            modified_ns=state.modified_ns,
            sha256=state.sha256,
            kept=state.kept,
            metadata={column: plain(value, column) for column, value in metadata.items()},
        )
    except ValueError as error:
        raise CorruptRowError(place, name, str(error)) from None


def plain(value: object, column: str) -> Value:
    """A value of metadata; a float that stands for a whole number as that number.

    Raises:
        CsktError: it is neither text, a finite number nor a truth value.
    """
    if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_WHOLE:
        return int(value)
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise CsktError(f"column '{column}' must be text, a finite number or a truth value, got {SHORT.repr(value)}")
    return value


def first_corrupt(vectors: NDArray[np.float32]) -> int | None:
    """The first of [n, D] vectors that holds something else than numbers of bearable size; none if all are fine."""
    # Two passes without a copy; NaN fails both comparisons.
    if not len(vectors) or (vectors.min() >= -LARGEST_ENTRY and vectors.max() <= LARGEST_ENTRY):
        return None
    fine = (np.abs(vectors) <= LARGEST_ENTRY).all(axis=1)
    return int(np.argmin(fine))


def checked_thumbnail(image_id: str, thumbnail: object, place: Path | str) -> bytes:
    """A crop's thumbnail, which is sent as JPEG.

    Raises:
        CorruptRowError: it is no JPEG of bearable size.
    """
    if isinstance(thumbnail, bytes) and thumbnail.startswith(JPEG_START) and len(thumbnail) <= LARGEST_THUMBNAIL:
        return thumbnail
    raise CorruptRowError(place, image_id, "its thumbnail is no small JPEG")


def _digest(sha256: str) -> str:
    try:
        return check_sha256(sha256)
    except ValueError as error:
        raise CsktError(f"'sha256' {error}, got {SHORT.repr(sha256)}") from None


def _whole(row: Mapping[str, object], field: str) -> int:
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST_WHOLE:
        raise CsktError(f"'{field}' must be a whole number, got {SHORT.repr(value)}")
    if value != int(value):
        raise CsktError(f"'{field}' must be a whole number, got {value}")
    return int(value)
