"""A gallery's crops in a LanceDB table in its folder, searched exactly in memory.

Each write makes a new version of the table, whole or not at all, and lasts through a kill at any moment. A reader pins
one version and takes filter, vectors and facts of a search from it, so that no search mixes two. Before each search it
asks for the latest version (a listing of a folder, under a millisecond); where there is a newer one it compares the ids
of the rows and reads only what is new.

Vectors stand in memory once, in bfloat16 (`matrix`), without names: a search finds there the few rows that may be among
the best, and only those are read from disk and scored again.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from lancedb.index import BTree, IvfSq
from numpy.typing import NDArray
from torch import Tensor

from cskt.errors import CorruptRowError, CsktError, StoreError
from cskt.gallery.columns import Kind, Value
from cskt.gallery.conditions import Condition
from cskt.gallery.stores.base import MAX_FACET_VALUES, Crop, CropFacts, Facet, FileState
from cskt.gallery.stores.lance.errors import in_one_line, told
from cskt.gallery.stores.lance.rows import (
    PREFIX,
    ROW_ID,
    STATE,
    check_schema,
    metadata_fields,
    names_sql,
    schema,
    to_facts,
    to_rows,
    to_sql,
    to_vectors,
)
from cskt.gallery.stores.lance.search import Loaded, Version, by_index, rescored, row_ids
from cskt.gallery.stores.row_checks import checked_state, first_corrupt, plain
from cskt.types import Hit

Item = TypeVar("Item")

TABLE = "crops"
LOCK = "write.lock"
MATRIX_LIMIT = 4_000_000
"""Most crops searched in memory: 4 GB at 512 dimensions."""
MOST_NAMES = 1000
"""Names in one question to the table."""
MOST_QUERIES = 128
"""Queries searched at once; each needs a float32 per row of a block."""
MANY_FRAGMENTS = 64
"""Additions that may lie apart before tidying up moves them together, which makes readers read them again."""
KEPT_FOR = timedelta(hours=1)
"""How long a version can still be read after a newer one has taken its place."""
TOLERANCE = timedelta(seconds=1)
"""Between our clock and Lance's."""
INDEXED_FROM = 10_000
"""Crops above which names are indexed."""


def open_lance(
    folder: Path,
    embed_dim: int,
    columns: Mapping[str, Kind],
    *,
    create: bool = True,
    matrix_limit: int = MATRIX_LIMIT,
) -> LanceStore:
    """The store in a gallery folder.

    Args:
        folder: of the vectors of one model; the table is a folder in it.
        embed_dim: D, width of the vectors.
        columns: metadata columns.
        create: make the table, and the columns that it lacks; if false, nothing is written.
        matrix_limit: see `LanceStore`.

    Raises:
        CsktError: there is no table and none is to be made; it has other columns, or vectors of another width; or
            there is a link in the folder.
    """
    check_no_links(folder)
    with in_one_line(folder):
        if not create and not (folder / f"{TABLE}.lance").is_dir():  # connecting would make the folder
            raise StoreError(f"{folder}: the vectors are missing; restore them, or index into a new folder")
        database = lancedb.connect(str(folder))
        table = _existing(database)
        if table is None and create:
            with FileLock(folder / LOCK):
                table = _existing(database) or database.create_table(TABLE, schema=schema(embed_dim))
        if table is None:
            raise StoreError(f"{folder}: damaged (no table in it); restore it, or index into a new folder")
        check_schema(table.schema, embed_dim, {} if create else columns, folder)
        store = LanceStore(folder, matrix_limit=matrix_limit)
    if create:
        store.add_columns(columns)
    return store


def drop_lance(folder: Path) -> None:
    """Delete a table and what this program keeps beside it; anything else in the two folders stays.

    Raises:
        CsktError: there is a link in the folder.
        OSError: something could not be deleted, or is not the program's.
    """
    check_no_links(folder)
    table = folder / f"{TABLE}.lance"
    if (table / "_versions").is_dir():
        for part in table.iterdir():
            if part.is_dir() and (part.name == "data" or part.name.startswith("_")):  # Lance's names
                shutil.rmtree(part)
        table.rmdir()
    if (folder / LOCK).is_file():
        (folder / LOCK).unlink()
    if folder.is_dir():
        folder.rmdir()


def check_no_links(folder: Path) -> None:
    """Check that nothing in a folder is a link: LanceDB would read and write where it leads.

    Raises:
        StoreError: something is.
    """
    for here, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if (path := Path(here, name)).is_symlink():
                raise StoreError(f"{path}: a link; a store has none: put the files themselves there")


def _existing(database: lancedb.DBConnection) -> Any:
    try:
        return database.open_table(TABLE)
    except ValueError as error:
        if "not found" not in str(error):
            raise
        return None


class LanceStore:
    """`VectorStore` over a LanceDB table; any number of processes may read and write the same one.

    Above `matrix_limit` crops searches use LanceDB's own index instead of the matrix, as far as `compact` has built it
    (IVF over 8-bit scalars, candidates scored again as float32). Such searches are approximate: they may miss crops,
    though scores and order of those they find are exact.
    """

    def __init__(self, folder: Path, *, matrix_limit: int = MATRIX_LIMIT) -> None:
        self.folder = folder
        self._matrix_limit = matrix_limit
        self._database = lancedb.connect(str(folder))
        self._head: Any = self._database.open_table(TABLE)  # asked for the latest version
        self._version = self._pinned(self._head.version)
        self._version_lock = threading.Lock()
        self._loaded: Loaded | None = None
        self._loading_lock = threading.Lock()
        self._writer: Any = self._database.open_table(TABLE)
        self._writing_lock = threading.Lock()

    @property
    @told
    def exact(self) -> bool:
        """Whether a search finds the best crops for certain."""
        return self._latest().count <= self._matrix_limit

    def add(self, crops: Sequence[Crop]) -> None:
        """As in `VectorStore`; ValueError for a vector of another width or not finite, and for an unknown column."""
        last = {crop.facts.image_id: crop for crop in crops}
        if not last:
            return
        with self._writing() as table:
            rows = to_rows(list(last.values()), table.schema)
            table.merge_insert("image_id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, image_ids: Sequence[str]) -> int:
        """As in `VectorStore`; a thousand names at a time, each thousand whole or not at all."""
        with self._writing() as table:
            return sum(int(table.delete(where).num_deleted_rows) for where in _questions(image_ids))

    @told
    def add_columns(self, columns: Mapping[str, Kind]) -> None:
        """As in `VectorStore`; ValueError for a column that holds values of another kind."""
        fields = metadata_fields(columns)
        known = self._latest().table.schema
        if all(
            _type_in(known, field.name) == field.type for field in fields
        ):  # so that a reader needs no right to write
            return
        with self._writing() as table:
            for field in fields:
                if _type_in(table.schema, field.name) not in (None, field.type):
                    # made by a program that was killed, or had no room, before the gallery knew of it
                    if table.count_rows(f"`{field.name}` IS NOT NULL"):
                        raise CsktError(f"{self.folder}: {field.name} holds values of another kind; give another name")
                    table.drop_columns([field.name])
            missing = [field for field in fields if field.name not in table.schema.names]
            if missing:
                table.add_columns(missing)

    @told
    def count(self, where: Condition | None = None) -> int:
        """As in `VectorStore`."""
        version = self._latest()
        return version.count if where is None else int(version.table.count_rows(to_sql(where)))

    @told
    def get(self, image_ids: Sequence[str]) -> dict[str, CropFacts]:
        """As in `VectorStore`."""
        version = self._latest()
        names = [name for name in version.table.schema.names if name not in ("vector", "thumbnail")]
        rows = (
            row for where in _questions(image_ids) for batch in version.scan(names, where) for row in batch.to_pylist()
        )
        return {facts.image_id: facts for facts in (to_facts(row, self.folder) for row in rows)}

    @told
    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """As in `VectorStore`."""
        version = self._latest()
        batches = (batch for where in _questions(image_ids) for batch in version.scan(["image_id", "vector"], where))
        return {
            image_id: vector.copy()
            for batch in batches
            for image_id, vector in zip(batch["image_id"].to_pylist(), version.vectors(batch), strict=True)
        }

    @told
    def thumbnails(self, image_ids: Sequence[str]) -> dict[str, bytes]:
        """As in `VectorStore`."""
        version = self._latest()
        batches = (batch for where in _questions(image_ids) for batch in version.scan(["image_id", "thumbnail"], where))
        return {row["image_id"]: bytes(row["thumbnail"]) for batch in batches for row in batch.to_pylist()}

    @told
    def files(self) -> dict[str, FileState]:
        """As in `VectorStore`."""
        rows = (row for batch in self._latest().scan(STATE) for row in batch.to_pylist())
        return dict(checked_state(row, self.folder) for row in rows)

    @told
    def delete_corrupt(self) -> int:
        """As in `VectorStore`."""
        version = self._latest()
        names = [name for name in version.table.schema.names if name not in ("vector", "thumbnail")]
        corrupt: list[int] = []
        for batch in version.scan(names):
            for row_id, row in zip(row_ids(batch).tolist(), batch.drop_columns([ROW_ID]).to_pylist(), strict=True):
                try:
                    to_facts(row, self.folder)
                except CorruptRowError:
                    corrupt.append(row_id)
        for batch in version.scan(["vector"]):
            vectors, keys = to_vectors(batch), row_ids(batch)
            while (first := first_corrupt(vectors)) is not None:
                corrupt.append(int(keys[first]))
                vectors, keys = vectors[first + 1 :], keys[first + 1 :]
        if not corrupt:
            return 0
        with self._writing() as table:
            return sum(
                int(table.delete(f"{ROW_ID} IN ({', '.join(map(str, part))})").num_deleted_rows)
                for part in _parts(sorted(set(corrupt)))
            )

    @told
    def search(self, queries: Tensor, k: int, where: Condition | None = None) -> list[list[Hit]]:
        """As in `VectorStore`, except above `matrix_limit`; see the class."""
        version = self._latest()
        condition = None if where is None else to_sql(where)
        if version.count > self._matrix_limit:
            self._loaded = None
            return [by_index(version, query, k, condition) for query in queries]
        loaded = self._in_memory(version)
        selection = loaded.selection(condition)
        found: list[list[Hit]] = []
        for start in range(0, len(queries), MOST_QUERIES):
            part = queries[start : start + MOST_QUERIES]
            found += rescored(loaded.version, part, k, loaded.matrix.candidates(part, k, selection))
        return found

    @told
    def histogram(self, query: Tensor, edges: Sequence[float], where: Condition | None = None) -> list[int]:
        """As in `VectorStore`."""
        version = self._latest()
        condition = None if where is None else to_sql(where)
        pieces: Iterable[NDArray[np.float32]]
        if version.count > self._matrix_limit:
            pieces = (version.vectors(batch) @ query.numpy() for batch in version.scan(["vector"], condition))
        else:
            loaded = self._in_memory(version)
            pieces = loaded.matrix.scores(query, loaded.selection(condition))
        counts = np.zeros(len(edges) - 1, np.int64)
        for scores in pieces:
            interval = np.searchsorted(np.asarray(edges), scores, side="right") - 1
            counts += np.bincount(interval.clip(0, len(counts) - 1), minlength=len(counts))
        return counts.tolist()

    @told
    def facets(self, columns: Mapping[str, Kind]) -> dict[str, Facet]:
        """As in `VectorStore`."""
        version = self._latest()
        return {name: _facet(version, f"{PREFIX}{name}", kind) for name, kind in columns.items()}

    def compact(self) -> None:
        """Move rows together, index names (vectors, too, above `matrix_limit`), drop versions long replaced."""
        with self._writing() as table:
            count, indexed = table.count_rows(), {index.columns[0] for index in table.list_indices()}
            if count > INDEXED_FROM and "image_id" not in indexed:
                table.create_index("image_id", config=BTree())
            if count > self._matrix_limit and "vector" not in indexed:
                table.create_index("vector", config=IvfSq(distance_type="dot"))
            if table.stats()["fragment_stats"]["num_fragments"] > MANY_FRAGMENTS:
                table.optimize(cleanup_older_than=_age_of_outdated(table.list_versions()))

    def close(self) -> None:
        """Let go of the vectors in memory."""
        with self._loading_lock:
            self._loaded = None

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """The table at its latest version, which no one else changes meanwhile."""
        with self._writing_lock, FileLock(self.folder / LOCK), in_one_line(self.folder):
            self._writer.checkout_latest()
            yield self._writer

    def _pinned(self, number: int) -> Version:
        table = self._database.open_table(TABLE)
        table.checkout(number)
        return Version(self.folder, number, table, table.count_rows())

    def _latest(self) -> Version:
        with self._version_lock:
            self._head.checkout_latest()
            number = self._head.version
            if number != self._version.number:
                self._version = self._pinned(number)
            return self._version

    def _in_memory(self, version: Version) -> Loaded:
        """This version or a later one with its vectors."""
        with self._loading_lock:
            if self._loaded is None:
                self._loaded = Loaded.first(version)
            elif self._loaded.version.number < version.number:
                self._loaded = self._loaded.brought_to(version)
            return self._loaded


def _type_in(schema: pa.Schema, name: str) -> pa.DataType | None:
    return schema.field(name).type if name in schema.names else None


def _facet(version: Version, column: str, kind: Kind) -> Facet:
    batches = (batch[column] for batch in version.scan([column], f"`{column}` IS NOT NULL"))
    if kind in ("number", "time"):
        ends = [pc.min_max(values).as_py() for values in batches if len(values)]
        if not ends:
            return Facet(kind)
        least, most = min(each["min"] for each in ends), max(each["max"] for each in ends)
        try:
            return Facet(kind, minimum=plain(least, column), maximum=plain(most, column))
        except ValueError as error:
            raise CorruptRowError(version.folder, least, str(error)) from None
    counts: Counter[Value] = Counter()
    for values in batches:
        for entry in values.value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
        if len(counts) > MAX_FACET_VALUES:
            return Facet(kind)
    return Facet(kind, values=tuple(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))))


def _age_of_outdated(versions: Sequence[Mapping[str, Any]]) -> timedelta:
    """Versions of this age and more have been out of date for longer than `KEPT_FOR`.

    Lance counts from when a version was made; a reader may have pinned it until another took its place.
    """
    now = datetime.now(UTC)
    made = [version["timestamp"].astimezone(UTC) for version in versions]  # local time, without a zone
    kept = [version for version, next_version in pairwise(made) if next_version > now - KEPT_FOR]
    return now - min([*kept, made[-1]]) + TOLERANCE


def _questions(image_ids: Sequence[str]) -> Iterator[str]:
    """Conditions that ask for crops by name, not too many at once."""
    return map(names_sql, _parts(list(dict.fromkeys(image_ids))))


def _parts(values: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (values[start : start + MOST_NAMES] for start in range(0, len(values), MOST_NAMES))
