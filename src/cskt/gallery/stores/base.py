"""What a gallery asks of the place that keeps its crops: `VectorStore`, and the values that pass through it.

Two places fulfil it, `lance` and `milvus`; `tests/gallery/test_store_conformance.py` holds both to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cskt.errors import CsktError, StoreError
from cskt.gallery.columns import Kind, Value
from cskt.gallery.conditions import Condition

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_sha256(text: str) -> str:
    """Return a digest as it is, if it is one: files and folders are named by it.

    Raises:
        CsktError: it is not 64 hexadecimal digits.
    """
    if not _SHA256.fullmatch(text):
        raise CsktError("must be 64 hexadecimal digits in lower case")
    return text


@contextmanager
def operators_affair() -> Iterator[None]:
    """What is a user's error elsewhere, such as a folder that cannot be written, is the store's here."""
    try:
        yield
    except ValueError as error:
        raise StoreError(str(error), without_query=True) from error


@dataclass(frozen=True)
class CropFacts:
    """What is known of a crop beside its pixels and its vector."""

    image_id: str
    """Name within the gallery, with `/` between folders; for a crop that lies in the indexed folder, its path there."""
    width: int
    """Width of the original as it is displayed, in pixels."""
    height: int
    num_bytes: int
    """Of the original file."""
    modified_ns: int
    """When the original file was last changed, in nanoseconds since 1970; 0 for a crop that was handed over."""
    sha256: str
    """Of the original file, in hexadecimal."""
    kept: bool
    """Whether the gallery holds the original itself, by its digest, because it was handed over and not indexed."""
    metadata: Mapping[str, Value] = field(default_factory=dict)
    """Column -> value; columns that the crop knows nothing of are left out."""

    @property
    def state(self) -> FileState:
        """What tells its file from a changed one."""
        return FileState(self.num_bytes, self.modified_ns, self.sha256, self.kept)


@dataclass(frozen=True)
class Crop:
    """A crop as it enters a store."""

    facts: CropFacts
    vector: NDArray[np.float32]
    """[D], of length 1."""
    thumbnail: bytes
    """A small JPEG."""


@dataclass(frozen=True)
class FileState:
    """What tells an unchanged file from a changed one."""

    num_bytes: int
    modified_ns: int
    sha256: str
    kept: bool


@dataclass(frozen=True)
class Found:
    """A crop in the answer to a query."""

    facts: CropFacts
    score: float
    """Inner product with the query in float32."""


@dataclass(frozen=True)
class Facet:
    """What the values of a column are, for building filters."""

    kind: Kind
    values: tuple[tuple[Value, int], ...] = ()
    """(value, number of crops), the most frequent first; empty for numbers and times and where there are too many."""
    minimum: Value | None = None
    maximum: Value | None = None
    """Of numbers and times; none where no crop has a value."""


MOST_FACET_VALUES = 50
"""A text column with more distinct values is searched by writing, not by choosing."""


class VectorStore(Protocol):
    """Crops on disk or in a service: what is added outlives a kill of the process once the call has returned, and is
    visible to the next search."""

    def add(self, crops: Sequence[Crop]) -> None:
        """Insert crops, or replace those of the same `image_id`; all of them or none (on Milvus, each crop).

        Their metadata columns must exist (`add_columns`). Of two crops with one `image_id` the last counts.
        """

    def delete(self, image_ids: Sequence[str]) -> int:
        """Remove crops; those that are not there are passed over.

        Returns:
            How many were removed.
        """

    def add_columns(self, columns: Mapping[str, Kind]) -> None:
        """Make room for metadata; a column that exists is left alone."""

    def count(self, where: Condition | None = None) -> int:
        """Number of crops, of all or of those that fulfil a condition."""

    def get(self, image_ids: Sequence[str]) -> dict[str, CropFacts]:
        """Facts by name; names that are not there are left out."""

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """[D] by name; names that are not there are left out."""

    def thumbnails(self, image_ids: Sequence[str]) -> dict[str, bytes]:
        """Small JPEGs by name; names that are not there are left out."""

    def files(self) -> dict[str, FileState]:
        """The state of every crop's file by name."""

    def delete_corrupt(self) -> int:
        """Remove rows that this program did not write: names, facts or vectors that reading refuses.

        Returns:
            How many were removed.
        """

    def search(self, queries: Tensor, k: int, where: Condition | None = None) -> list[list[Found]]:
        """The k crops with the largest inner product for each query, exactly as float32 vectors rank them.

        Args:
            queries: [Q, D] float32.
            k: most crops per query, at least 1.
            where: only crops that fulfil this.

        Returns:
            Per query, best first; equal scores in the order of `image_id`. Fewer than k where there are fewer.
        """

    def histogram(self, query: Tensor, edges: Sequence[float], where: Condition | None = None) -> list[int]:
        """How many crops score between neighbouring edges.

        Scores may be rounded to the precision in which the store searches (bfloat16: 3 digits).

        Args:
            query: [D] float32.
            edges: n + 1 rising numbers; a score is counted in [edge, next), the last interval includes its end, and
                scores beyond the ends count in the first and the last interval.

        Returns:
            n counts.
        """

    def facets(self, columns: Mapping[str, Kind]) -> dict[str, Facet]:
        """The values of metadata columns."""

    def compact(self) -> None:
        """Tidy up after many additions; changes no answer."""

    def close(self) -> None:
        """Let go of files and connections."""
