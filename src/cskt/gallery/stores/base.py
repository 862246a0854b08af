"""`VectorStore`, the interface of a gallery to the storage of its crops, and the values that pass through it.

LanceDB (`stores.lance`), Milvus (`stores.milvus`) and stores of plug-ins implement it;
`tests/gallery/test_store_conformance.py` runs the same tests against all of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cskt.errors import CsktError, StoreError
from cskt.gallery.columns import BUILT_IN, Kind, Value
from cskt.gallery.conditions import Condition, fulfils
from cskt.types import Hit

SHA256 = re.compile(r"[0-9a-f]{64}")

MAX_ID_CHARACTERS = 512
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
"""Pattern of nearly all names; the full check takes ten times as long."""
_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of writing, and so make one name look like another."""
MAX_FACET_VALUES = 50
"""A text column with more distinct values has no list of them in its facet."""


def check_sha256(text: str) -> str:
    """Return a digest unchanged; files and folders are named by it."""
    if not SHA256.fullmatch(text):
        raise CsktError("must be 64 hexadecimal digits in lower case")
    return text


def check_image_id(image_id: str) -> str:
    """Return a crop's name if every store, address and table can contain it."""
    if len(image_id) <= MAX_ID_CHARACTERS and _PLAIN_ID.fullmatch(image_id):
        return image_id
    parts = PurePosixPath(image_id).parts
    if (
        not 0 < len(image_id) <= MAX_ID_CHARACTERS
        or image_id.startswith("/")
        or "\\" in image_id
        or "/".join(parts) != image_id
        or any(part == ".." or not part.strip() for part in parts)
        or any(unicodedata.category(letter) in ("Cc", "Cs") or letter in _BIDIRECTIONAL for letter in image_id)
    ):
        raise CsktError(
            f"{image_id[:80]!r} is no name for a crop; expected 1 to {MAX_ID_CHARACTERS} letters such as cam3/0001.jpg:"
            " no '..', '\\', leading or double '/', control characters"
        )
    return image_id


@contextmanager
def operator_errors() -> Iterator[None]:
    """Turn a CsktError of the block into a StoreError: the files of the gallery cause it, not the query."""
    try:
        yield
    except CsktError as error:
        raise StoreError(str(error), without_query=True) from error


@dataclass(frozen=True)
class FileState:
    """Attributes by which a changed file is recognised."""

    num_bytes: int
    modified_ns: int
    sha256: str
    kept: bool


@dataclass(frozen=True)
class CropRecord:
    """Attributes of a stored crop, without its pixels and its vector."""

    image_id: str
    """Name within the gallery, with `/` between folders; for an indexed file, its path within the indexed folder."""
    width: int
    """Width of the original as displayed, in pixels."""
    height: int
    num_bytes: int
    """Size of the original file."""
    modified_ns: int
    """Modification time of the original file, in nanoseconds since 1970; 0 for an uploaded crop."""
    sha256: str
    """Digest of the original file, in hexadecimal."""
    kept: bool
    """True for an uploaded crop, whose original the gallery stores itself under its digest. Filters know this column
    under the same name."""
    metadata: Mapping[str, Value] = field(default_factory=dict)
    """Column -> value, without columns in which the crop has no value."""

    @property
    def state(self) -> FileState:
        """Return the attributes of its file."""
        return FileState(self.num_bytes, self.modified_ns, self.sha256, self.kept)

    def fulfils(self, where: Condition | None) -> bool:
        """Return whether this crop fulfils a condition on its metadata and attributes; True without a condition."""
        if where is None:
            return True
        return fulfils(where, {**self.metadata, **{column: getattr(self, column) for column in BUILT_IN}})

    def hit(self, score: float, rank: int) -> Hit:
        """Return this crop as an answer to a query."""
        return Hit(self.image_id, score, rank, {**self.metadata, "width": self.width, "height": self.height})


@dataclass(frozen=True)
class Crop:
    """A crop to be stored."""

    facts: CropRecord
    vector: NDArray[np.float32]
    """[D], of length 1."""
    thumbnail: bytes
    """A small JPEG."""


@dataclass(frozen=True)
class Facet:
    """Values of a metadata column, for building filters."""

    kind: Kind
    values: tuple[tuple[Value, int], ...] = ()
    """(value, number of crops), the most frequent first; empty for numbers and times, and for more than
    `MAX_FACET_VALUES` values."""
    minimum: Value | None = None
    maximum: Value | None = None
    """Range of numbers and times; None if no crop has a value."""

    @classmethod
    def of(cls, kind: Kind, counts: Counter[Value]) -> Facet:
        """Return the facet of a column with these values (of numbers and times, the extreme ones suffice)."""
        if kind in ("number", "time"):
            return cls(kind, minimum=min(counts, default=None), maximum=max(counts, default=None))
        if len(counts) > MAX_FACET_VALUES:
            return cls(kind)
        return cls(kind, values=tuple(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))))


def score_counts(scores: Iterable[NDArray[np.float32]], edges: Sequence[float]) -> list[int]:
    """Count scores, given in pieces [n], between neighbouring edges; see `VectorStore.histogram`."""
    counts = np.zeros(len(edges) - 1, np.int64)
    for piece in scores:
        interval = np.searchsorted(np.asarray(edges), piece, side="right") - 1
        counts += np.bincount(interval.clip(0, len(counts) - 1), minlength=len(counts))
    return counts.tolist()


class VectorStore(Protocol):
    """Crops on disk or in a service.

    An addition is durable when the call returns, also if the process is killed then, and visible to the next search.
    """

    def add(self, crops: Sequence[Crop]) -> None:
        """Insert crops, or replace those of the same `image_id`; all of them or none (on Milvus, each crop by itself).

        Their metadata columns must exist (`add_columns`). Of two crops with one `image_id` the last is stored.
        """

    def delete(self, image_ids: Sequence[str]) -> int:
        """Delete crops; unknown names are ignored.

        Returns:
            Number of deleted crops.
        """

    def add_columns(self, columns: Mapping[str, Kind]) -> None:
        """Add metadata columns; a column that exists is left unchanged."""

    def count(self, where: Condition | None = None) -> int:
        """Return the number of crops, of all or of those that fulfil a condition."""

    def get(self, image_ids: Sequence[str]) -> dict[str, CropRecord]:
        """Return facts by name, without unknown names."""

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return vectors [D] by name, without unknown names."""

    def thumbnails(self, image_ids: Sequence[str]) -> dict[str, bytes]:
        """Return small JPEGs by name, without unknown names."""

    def files(self) -> dict[str, FileState]:
        """Return the state of every crop's file by name."""

    def delete_corrupt(self) -> int:
        """Delete rows that this program did not write: those whose name, facts or vector are refused when read.

        Returns:
            Number of deleted rows.
        """

    def search(self, queries: Tensor, k: int, where: Condition | None = None) -> list[list[Hit]]:
        """Return the k crops with the largest inner product for each query, ranked as float32 vectors rank them.

        Scores and order of the returned crops are exact. A store may miss crops above a size that its class states:
        `LanceStore` above its `matrix_limit`, `MilvusStore` as its index is chosen.

        Args:
            queries: [Q, D] float32.
            k: maximum number of crops per query, at least 1.
            where: only crops that fulfil this.

        Returns:
            Per query, hits of ranks 1 to k, equal scores in the order of `image_id`; fewer than k if there are fewer
            crops.
        """

    def search_once(self, query: Tensor, k: int, where: Condition | None = None) -> list[Hit]:
        """Return what `search` returns for one query [D], without preparing further searches.

        For a process that searches once: a store whose first search loads vectors for later ones has its own.
        """
        return self.search(query[None], k, where)[0]

    def histogram(self, query: Tensor, edges: Sequence[float], where: Condition | None = None) -> list[int]:
        """Return the number of crops that score between neighbouring edges.

        Scores may be rounded to the precision in which the store searches (bfloat16: 3 digits).

        Args:
            query: [D] float32.
            edges: n + 1 rising numbers; a score is counted in [edge, next), the last interval includes its end, and
                scores beyond the ends count in the first and the last interval.

        Returns:
            n counts.
        """

    def facets(self, columns: Mapping[str, Kind]) -> dict[str, Facet]:
        """Return the values of metadata columns."""

    def compact(self) -> None:
        """Optimise the storage after many additions; changes no answer."""

    def purge(self) -> bool:
        """Delete what removed crops have left in the storage: older versions, and rows that are marked as deleted.

        Returns:
            Whether nothing is left; False for a store that cannot know this, as by default.
        """
        return False

    def close(self) -> None:
        """Close files and connections."""
