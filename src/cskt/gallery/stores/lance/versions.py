"""Reading one version of a LanceDB table of crops: rows, its vectors in memory, the best of a search's candidates."""

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
from cskt.gallery.stores.lance.table import ROW_ID, lance_errors, names_sql, to_facts, to_vectors
from cskt.gallery.stores.row_checks import checked_name, corrupt_vectors
from cskt.types import Hit

SCAN_ROWS = 65_536
"""Rows per batch of a scan; with the default of a thousand, the transfer costs more than the reading."""
SCAN_VECTORS = 8192
"""The same for vectors, which are large."""
LOADED_ROWS = 131_072
"""Rows that are requested at once when all vectors are read: Lance reads ahead, which takes twice their memory."""
MAX_FETCHED = 8192
"""Candidates that are read from disk at once."""
MAX_SELECTIONS = 8
"""Conditions whose rows are cached until the next version."""
NUM_PROBES = 64
"""Cells of LanceDB's index that a query visits; more find more, and take longer."""
REFINE_FACTOR = 10
"""This multiple of k crops from these cells is scored as float32."""


@dataclass(frozen=True)
class Version:
    """One pinned version of the table: what is read through it never changes."""

    folder: Path
    """Folder of the table, for errors."""
    number: int
    table: Any
    num_rows: int

    def scan(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Yield rows in the order of their ids, some columns of them, with the id."""
        with lance_errors(self.folder):
            query = self.table.search().select([*columns, ROW_ID])
            if where is not None:
                query = query.where(where)
            yield from query.to_batches(batch_size=SCAN_VECTORS if "vector" in columns else SCAN_ROWS)

    def named(self, image_ids: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield some columns of the rows with these names."""
        for where in names_sql(image_ids):
            yield from self.scan(columns, where)

    @property
    def fact_columns(self) -> list[str]:
        """Names of the columns of `CropRecord`, metadata included."""
        return [name for name in self.table.schema.names if name not in ("vector", "thumbnail")]

    def count(self, where: str) -> int:
        """Return the number of rows that fulfil a condition."""
        with lance_errors(self.folder):
            return int(self.table.count_rows(where))

    def vectors(self, rows: pa.RecordBatch | pa.Table) -> NDArray[np.float32]:
        """Return the vectors [n, D] of rows from `scan` or `take`."""
        vectors = to_vectors(rows)
        if corrupt := corrupt_vectors(vectors):
            row = self.take(ids_in(rows)[corrupt[:1]], ["image_id"])
            raise CorruptRowError(self.folder, row["image_id"][0].as_py(), "its vector must be finite numbers")
        return vectors

    def matching_ids(self, where: str | None = None) -> NDArray[np.int64]:
        """Return the ids of the rows that fulfil a condition, rising; of all rows without one."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *map(ids_in, self.scan([], where))]))

    def vector_batches(
        self, ids: NDArray[np.int64], where: str | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield ids [n] and vectors [n, D] of the rows that fulfil a condition, from the first to the last of `ids`."""
        for start in range(0, len(ids), LOADED_ROWS):
            part = ids[start : start + LOADED_ROWS]
            among = f"{ROW_ID} >= {part[0]} AND {ROW_ID} <= {part[-1]}"
            for batch in self.scan(["vector"], among if where is None else f"{among} AND ({where})"):
                yield ids_in(batch), self.vectors(batch)
            _trim_memory()

    def take(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Return some columns of some rows, in the order of their ids; vector and facts by default."""
        names = ["vector", *self.fact_columns] if columns is None else list(columns)
        with lance_errors(self.folder):
            rows = self.table.take_row_ids(np.sort(ids).tolist()).select(names).with_row_id().to_arrow()
        return rows.sort_by(ROW_ID)


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A version with its vectors in memory; only `selections`, a cache that several threads fill, changes."""

    version: Version
    matrix: Matrix
    selections: dict[str, Selection] = field(default_factory=dict)
    """Rows that fulfil the last few conditions, a byte per crop."""

    @classmethod
    def of(cls, version: Version, before: LoadedVersion | None) -> LoadedVersion:
        """Load a version; only rows that `before`, an earlier version, lacks are read."""
        dim = version.table.schema.field("vector").type.list_size
        ids = version.matching_ids()
        matrix = Matrix(dim) if before is None else before.matrix
        matrix = matrix.without(np.setdiff1d(matrix.keys(), ids, assume_unique=True))
        new = np.setdiff1d(ids, matrix.keys(), assume_unique=True)
        if len(new) and new[0] <= matrix.last_key:  # ids rise with every write, though Lance does not guarantee it
            matrix, new = Matrix(dim), ids
        for keys, vectors in version.vector_batches(new):
            matrix = matrix.extended(keys, vectors)
        assert np.array_equal(matrix.keys(), ids)
        return cls(version, matrix)

    def selection(self, where: str | None) -> Selection | None:
        """Return the rows that fulfil a condition; None for all."""
        if where is None:
            return None
        selection = self.selections.get(where)
        if selection is None:
            selection = self.selections[where] = self.matrix.select(self.version.matching_ids(where))
            for outdated in list(self.selections)[:-MAX_SELECTIONS]:
                self.selections.pop(outdated, None)  # another thread may have been quicker
        return selection


@dataclass(frozen=True, eq=False)
class _FetchedRows:
    """Some rows as they were read from disk, by rising id."""

    folder: Path
    keys: NDArray[np.int64]
    vectors: NDArray[np.float32]
    facts: pa.Table

    @classmethod
    def read(cls, version: Version, keys: NDArray[np.int64]) -> _FetchedRows:
        rows = version.take(keys)
        return cls(version.folder, ids_in(rows), version.vectors(rows), rows.drop_columns([ROW_ID, "vector"]))

    def best(self, query: Tensor, k: int, keys: NDArray[np.int64]) -> list[Hit]:
        """Return the k best of these keys, all of which have been read."""
        places = np.searchsorted(self.keys, keys)
        # Row by row, not as a matrix product, whose last bit may depend on the place of a row.
        products = self.vectors[places].astype(np.float64) * query.double().numpy()
        scores = products.sum(axis=1).astype(np.float32)
        if len(scores) > k:
            reaching = scores >= np.partition(scores, -k)[-k]
            places, scores = places[reaching], scores[reaching]
        names = [checked_name(name, self.folder) for name in self.facts["image_id"].take(places).to_pylist()]
        order = sorted(range(len(names)), key=lambda row: (-scores[row], names[row]))[:k]
        best = self.facts.take(places[order]).to_pylist()
        return [
            to_facts(row, self.folder).hit(float(scores[place]), rank)
            for rank, (place, row) in enumerate(zip(order, best, strict=True), start=1)
        ]


def rescored(version: Version, queries: Tensor, k: int, candidates: Sequence[Candidates]) -> list[list[Hit]]:
    """Return the k best of each query's candidates, by inner products in float64 rounded to float32."""
    keys = np.unique(np.concatenate([each.keys for each in candidates]))
    if not len(keys):
        return [[] for _ in candidates]
    if len(keys) <= MAX_FETCHED:
        rows = _FetchedRows.read(version, keys)
        return [rows.best(query, k, each.keys) for query, each in zip(queries, candidates, strict=True)]
    if len(candidates) == 1:
        return [_best_of_many(version, queries[0], k, candidates[0])]
    half = len(candidates) // 2
    return [
        *rescored(version, queries[:half], k, candidates[:half]),
        *rescored(version, queries[half:], k, candidates[half:]),
    ]


def _best_of_many(version: Version, query: Tensor, k: int, candidates: Candidates) -> list[Hit]:
    """Return the k best of more candidates than are read at once, such as thousands of equal crops."""
    best: list[Hit] = []
    for start in range(0, len(candidates.keys), MAX_FETCHED):
        if len(best) == k and candidates.upper[start] < best[-1].score:
            break
        piece = np.sort(candidates.keys[start : start + MAX_FETCHED])
        best += _FetchedRows.read(version, piece).best(query, k, piece)
        best = sorted(best, key=lambda hit: (-hit.score, hit.image_id))[:k]
    return [replace(hit, rank=rank) for rank, hit in enumerate(best, start=1)]


def search_by_index(version: Version, query: Tensor, k: int, where: str | None) -> list[Hit]:
    """Return the k best crops that LanceDB's index finds."""
    nearest = version.table.search(query.numpy(), vector_column_name="vector").distance_type("dot")
    nearest = nearest.nprobes(NUM_PROBES).refine_factor(REFINE_FACTOR).limit(k).select([ROW_ID])
    if where is not None:
        nearest = nearest.where(where, prefilter=True)
    with lance_errors(version.folder):
        keys = ids_in(nearest.to_arrow())
    return rescored(version, query[None], k, [Candidates(keys, np.full(len(keys), np.inf, np.float32))])[0]


def ids_in(rows: pa.RecordBatch | pa.Table) -> NDArray[np.int64]:
    """Return the ids of rows that were read with them."""
    return np.asarray(rows[ROW_ID].to_numpy().astype(np.int64))


def _trim_memory() -> None:
    """Return freed memory to the system: glibc would hold what Lance's readers have used, hundreds of megabytes."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl has none
            libc.malloc_trim(0)
