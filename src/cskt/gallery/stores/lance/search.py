"""Reading a LanceDB table of crops: one version of it, its vectors in memory, the best of a search's candidates."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from cskt.errors import CorruptRowError
from cskt.gallery.stores.exact_search import Candidates, Matrix, Selection
from cskt.gallery.stores.lance.rows import ROW_ID, to_facts, to_vectors
from cskt.gallery.stores.row_checks import checked_name, first_corrupt
from cskt.types import Hit

SCAN_ROWS = 65_536
"""Rows handed over at once; with the default of a thousand, handing over costs more than reading."""
SCAN_VECTORS = 8192
"""The same for vectors, which are large."""
LOADED_ROWS = 131_072
"""Rows asked for at once when vectors are loaded: Lance reads ahead, and what it has read takes twice the memory of
what is kept of it."""
MOST_FETCHED = 8192
"""Candidates read from disk at once."""
MOST_SELECTIONS = 8
"""Conditions whose rows are remembered until the next version."""
NUM_PROBES = 64
"""Cells of LanceDB's index that a query visits: more find more, and take longer."""
REFINE_FACTOR = 10
"""Times k crops from these cells are scored as float32."""


@dataclass(frozen=True)
class Version:
    """One version of the table, pinned: what is read through it never changes."""

    folder: Path
    """Folder of the table, for errors."""
    number: int
    table: Any
    count: int

    def scan(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Rows in the order of their ids, some columns of them, with the id."""
        query = self.table.search().select([*columns, ROW_ID])
        if where is not None:
            query = query.where(where)
        yield from query.to_batches(batch_size=SCAN_VECTORS if "vector" in columns else SCAN_ROWS)

    def vectors(self, rows: pa.RecordBatch | pa.Table) -> NDArray[np.float32]:
        """[n, D] vectors of rows that `scan` or `take` gave.

        Raises:
            CorruptRowError: one holds something else than numbers of bearable size.
        """
        vectors = to_vectors(rows)
        if (corrupt := first_corrupt(vectors)) is not None:
            row = self.take(row_ids(rows)[corrupt : corrupt + 1], ["image_id"])
            raise CorruptRowError(self.folder, row["image_id"][0].as_py(), "its vector must be finite numbers")
        return vectors

    def row_ids(self, where: str | None = None) -> NDArray[np.int64]:
        """Ids of the rows that fulfil a condition, rising."""
        found = [row_ids(batch) for batch in self.scan([], where)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *found]))

    def take(self, row_ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns of some rows, in the order of their ids; if not said otherwise, vector and facts."""
        names = columns or [name for name in self.table.schema.names if name != "thumbnail"]
        rows = self.table.take_row_ids(np.sort(row_ids).tolist()).select(list(names)).with_row_id().to_arrow()
        return rows.sort_by(ROW_ID)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version with its vectors in memory."""

    version: Version
    matrix: Matrix
    selections: dict[str, Selection] = field(default_factory=dict)
    """Rows that fulfil the last few conditions, a byte per crop."""

    @classmethod
    def first(cls, version: Version) -> Loaded:
        """A version read for the first time."""
        dim = version.table.schema.field("vector").type.list_size
        return cls(version, Matrix(dim)).brought_to(version)

    def brought_to(self, version: Version) -> Loaded:
        """A later version; only rows that are new are read."""
        there = version.row_ids()
        matrix = self.matrix.without(np.setdiff1d(self.matrix.keys(), there, assume_unique=True))
        new = np.setdiff1d(there, matrix.keys(), assume_unique=True)
        if len(new) and new[0] <= matrix.last_key:  # ids rise with every write, though Lance does not promise it
            matrix, new = Matrix(matrix.dim), there
        for start in range(0, len(new), LOADED_ROWS):
            part = new[start : start + LOADED_ROWS]
            for batch in version.scan(["vector"], f"{ROW_ID} >= {part[0]} AND {ROW_ID} <= {part[-1]}"):
                matrix = matrix.extended(row_ids(batch), version.vectors(batch))
            _give_back_memory()
        assert np.array_equal(matrix.keys(), there)
        return Loaded(version, matrix)

    def selection(self, where: str | None) -> Selection | None:
        if where is None:
            return None
        found = self.selections.get(where)
        if found is None:
            found = self.matrix.select(self.version.row_ids(where))
            self.selections[where] = found
            for outdated in list(self.selections)[:-MOST_SELECTIONS]:
                self.selections.pop(outdated, None)  # another thread may have been quicker
        return found


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows as they were read from disk, by rising id."""

    folder: Path
    keys: NDArray[np.int64]
    vectors: NDArray[np.float32]
    facts: pa.Table

    @classmethod
    def read(cls, version: Version, keys: NDArray[np.int64]) -> Rows:
        rows = version.take(keys)
        return cls(version.folder, row_ids(rows), version.vectors(rows), rows.drop_columns([ROW_ID, "vector"]))

    def best(self, query: Tensor, k: int, keys: NDArray[np.int64]) -> list[Hit]:
        """The k best of these keys, all of which have been read."""
        places = np.searchsorted(self.keys, keys)
        # Row by row, not as a matrix product, whose last bit may depend on the place of a row.
        products = self.vectors[places].astype(np.float64) * query.double().numpy()
        scores = products.sum(axis=1).astype(np.float32)
        if len(scores) > k:
            reaching = scores >= np.partition(scores, -k)[-k]
            places, scores = places[reaching], scores[reaching]
        names = [
            checked_name({"image_id": name}, self.folder) for name in self.facts["image_id"].take(places).to_pylist()
        ]
        order = sorted(range(len(names)), key=lambda row: (-scores[row], names[row]))[:k]
        best = self.facts.take(places[order]).to_pylist()
        return [
            to_facts(row, self.folder).hit(float(scores[place]), rank)
            for rank, (place, row) in enumerate(zip(order, best, strict=True), start=1)
        ]


def rescored(version: Version, queries: Tensor, k: int, candidates: Sequence[Candidates]) -> list[list[Hit]]:
    """The k best of each query's candidates, by inner products in float64 rounded to float32."""
    keys = np.unique(np.concatenate([each.keys for each in candidates]))
    if not len(keys):
        return [[] for _ in candidates]
    if len(keys) <= MOST_FETCHED:
        rows = Rows.read(version, keys)
        return [rows.best(query, k, each.keys) for query, each in zip(queries, candidates, strict=True)]
    if len(candidates) == 1:
        return [_best_of_many(version, queries[0], k, candidates[0])]
    half = len(candidates) // 2
    return [
        *rescored(version, queries[:half], k, candidates[:half]),
        *rescored(version, queries[half:], k, candidates[half:]),
    ]


def _best_of_many(version: Version, query: Tensor, k: int, candidates: Candidates) -> list[Hit]:
    """The same where candidates are too many to hold, as with thousands of equal crops: in pieces, as far as needed."""
    best: list[Hit] = []
    for start in range(0, len(candidates.keys), MOST_FETCHED):
        if len(best) == k and candidates.upper[start] < best[-1].score:
            break
        piece = np.sort(candidates.keys[start : start + MOST_FETCHED])
        best += Rows.read(version, piece).best(query, k, piece)
        best = sorted(best, key=lambda hit: (-hit.score, hit.image_id))[:k]
    return [replace(hit, rank=rank) for rank, hit in enumerate(best, start=1)]


def by_index(version: Version, query: Tensor, k: int, where: str | None) -> list[Hit]:
    """The k best that LanceDB's index finds."""
    nearest = version.table.search(query.numpy(), vector_column_name="vector").distance_type("dot")
    nearest = nearest.nprobes(NUM_PROBES).refine_factor(REFINE_FACTOR).limit(k).select([ROW_ID])
    if where is not None:
        nearest = nearest.where(where, prefilter=True)
    keys = nearest.to_arrow()[ROW_ID].to_numpy().astype(np.int64)
    return rescored(version, query[None], k, [Candidates(keys, np.full(len(keys), np.inf, np.float32))])[0]


def row_ids(rows: pa.RecordBatch | pa.Table) -> NDArray[np.int64]:
    return np.asarray(rows[ROW_ID].to_numpy().astype(np.int64))


def _give_back_memory() -> None:
    """Return freed memory to the system: glibc would keep what Lance's readers have used, hundreds of megabytes."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)
