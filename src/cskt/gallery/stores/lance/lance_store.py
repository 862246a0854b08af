"""Crops in a LanceDB table in the gallery's folder, searched exactly in memory.

Each write makes a new version of the table, whole or not at all, and survives a kill at any moment. A reader pins one
version and takes filter, vectors and facts of a search from it, so that no search mixes two. Before each search it
looks for the latest version (a listing of a folder, under a millisecond); if there is a newer one, it compares the ids
of the rows and reads only new rows.

Vectors are in memory once, in bfloat16 (`exact_search`), without names: a search finds the few rows there that may be
among the best, and only those are read from disk and scored again. A process that searches only once reads the vectors
in batches instead, which are not stored; the same few rows are scored in the same way.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import lancedb
import numpy as np
import pyarrow.compute as pc
from filelock import FileLock
from lancedb.index import BTree, IvfSq
from numpy.typing import NDArray
from torch import Tensor

from cskt.errors import CorruptRowError, CsktError, StoreError, file_system_errors
from cskt.gallery.columns import Kind, Value
from cskt.gallery.conditions import Condition
from cskt.gallery.stores.base import MAX_FACET_VALUES, Crop, CropRecord, Facet, FileState, VectorStore, score_counts
from cskt.gallery.stores.exact_search import streamed_candidates
from cskt.gallery.stores.lance.purging import purge_table
from cskt.gallery.stores.lance.table import (
    PREFIX,
    ROW_ID,
    check_schema,
    lance_errors,
    membership_sql,
    metadata_fields,
    names_sql,
    schema,
    to_facts,
    to_rows,
    to_sql,
    to_vectors,
)
from cskt.gallery.stores.lance.versions import (
    LoadedVersion,
    Version,
    ids_in,
    rescored,
    search_by_index,
)
from cskt.gallery.stores.row_checks import (
    STATE_FIELDS,
    checked_state,
    checked_value,
    corrupt_row_errors,
    corrupt_vectors,
)
from cskt.types import Hit

TABLE = "crops"
LOCK = "write.lock"
MATRIX_LIMIT = 4_000_000
"""Maximum number of crops that are searched in memory: 4 GB at 512 dimensions."""
MAX_QUERIES = 128
"""Queries that are searched at once; each needs a float32 per row of a block."""
MANY_FRAGMENTS = 64
"""Number of separate additions above which compaction merges them, after which readers read them again."""
RETENTION = timedelta(hours=1)
"""Time for which a version can still be read after a newer one has replaced it."""
TOLERANCE = timedelta(seconds=1)
"""Between our clock and Lance's."""
INDEXED_FROM = 10_000
"""Number of crops above which names are indexed."""

P = ParamSpec("P")
T = TypeVar("T")


def open_lance(
    folder: Path,
    embed_dim: int,
    columns: Mapping[str, Kind],
    *,
    create: bool = True,
    matrix_limit: int = MATRIX_LIMIT,
) -> LanceStore:
    """Open the store in a folder, which is for the vectors of one model.

    Args:
        folder: the table is a folder in it.
        embed_dim: D, width of the vectors.
        columns: metadata columns.
        create: make the table, and the columns that it lacks; if False, nothing is written.
        matrix_limit: see `LanceStore`.
    """
    check_no_links(folder)
    with lance_errors(folder):
        if not create and not (folder / f"{TABLE}.lance").is_dir():  # connecting would make the folder
            raise StoreError(f"{folder}: the vectors are missing; restore them, or index into a new folder")
        database = lancedb.connect(str(folder))
        table = _existing(database)
        if table is None and create:
            with FileLock(folder / LOCK):
                table = _existing(database) or database.create_table(TABLE, schema=schema(embed_dim))
        if table is None:
            raise StoreError(f"{folder}: corrupt (no table in it); restore it, or index into a new folder")
        check_schema(table.schema, embed_dim, {} if create else columns, folder)
        store = LanceStore(folder, matrix_limit=matrix_limit)
    if create:
        store.add_columns(columns)
    return store


def _existing(database: lancedb.DBConnection) -> Any:
    try:
        return database.open_table(TABLE)
    except ValueError as error:
        if "not found" not in str(error):
            raise
        return None


def drop_lance(folder: Path) -> None:
    """Delete a table and the files that this program has made beside it; other files in the two folders stay."""
    check_no_links(folder)
    table = folder / f"{TABLE}.lance"
    with file_system_errors(folder):
        if (table / "_versions").is_dir():
            for part in table.iterdir():
                if part.is_dir() and (part.name == "data" or part.name.startswith("_")):  # Lance's names
                    shutil.rmtree(part)
            table.rmdir()
        (folder / LOCK).unlink(missing_ok=True)
        if folder.is_dir():
            folder.rmdir()


def check_no_links(folder: Path) -> None:
    """Check that no file or folder in a folder is a link: LanceDB would read and write its target."""
    for here, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if (path := Path(here, name)).is_symlink():
                raise StoreError(f"{path}: a link, which no store contains; put the files themselves there")


def reading(
    read: Callable[Concatenate[LanceStore, Version, P], T],
) -> Callable[Concatenate[LanceStore, P], T]:
    """Decorate a method that reads one version: it gets the latest one.

    A purge deletes the version that it replaces. A method that fails on a version which is no longer the latest one is
    called again, with the next.
    """

    @wraps(read)
    def on_latest(self: LanceStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        while True:
            number = self._latest()
            try:
                return read(self, self._at(number), *args, **kwargs)
            except CsktError:
                if self._latest() == number:
                    raise

    return on_latest


class LanceStore(VectorStore):
    """`VectorStore` over a LanceDB table; any number of processes may read and write the same one.

    Above `matrix_limit` crops searches use LanceDB's own index instead of the matrix, as far as `compact` has built it
    (IVF over 8-bit scalars, candidates scored again as float32). Such searches are approximate: they may miss crops,
    though scores and order of those that they find are exact.
    """

    def __init__(self, folder: Path, *, matrix_limit: int = MATRIX_LIMIT) -> None:
        self.folder = folder
        self._matrix_limit = matrix_limit
        self._database = lancedb.connect(str(folder))
        self._head: Any = self._database.open_table(TABLE)  # reads follow it to the latest version
        self._version: Version | None = None  # the latest version, pinned: what a search reads
        self._version_lock = threading.Lock()  # of the two handles above
        self._loaded: LoadedVersion | None = None  # a pinned version with its vectors in memory
        self._loading_lock = threading.Lock()
        self._writer: Any = self._database.open_table(TABLE)  # the only handle that writes
        self._writing_lock = threading.Lock()  # between threads; `_writing` also locks out other processes
        self.count()  # refuses a corrupt table here

    def add(self, crops: Sequence[Crop]) -> None:
        """See `VectorStore`; CsktError for a vector of another width or not finite, and for an unknown column."""
        if not crops:
            return
        with self._writing() as table:
            rows = to_rows(crops, table.schema)
            table.merge_insert("image_id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, image_ids: Sequence[str]) -> int:
        """See `VectorStore`; a thousand names at a time, each thousand whole or not at all."""
        with self._writing() as table:
            return sum(int(table.delete(where).num_deleted_rows) for where in names_sql(image_ids))

    def add_columns(self, columns: Mapping[str, Kind]) -> None:
        """See `VectorStore`; CsktError for a column with values of another kind."""
        fields = metadata_fields(columns)
        known = self._column_types()
        if all(known.get(field.name) == field.type for field in fields):  # a reader needs no right to write
            return
        with self._writing() as table:
            known = {field.name: field.type for field in table.schema}
            for field in fields:
                if known.get(field.name, field.type) != field.type:
                    # Made by a program that was killed, or whose disk was full, before the gallery knew the column.
                    if table.count_rows(f"`{field.name}` IS NOT NULL"):
                        raise CsktError(f"{self.folder}: {field.name} holds values of another kind; give another name")
                    table.drop_columns([field.name])
            if missing := [field for field in fields if known.get(field.name) != field.type]:
                table.add_columns(missing)

    @reading
    def count(self, version: Version, where: Condition | None = None) -> int:
        return version.num_rows if where is None else version.count(to_sql(where))

    @reading
    def get(self, version: Version, image_ids: Sequence[str]) -> dict[str, CropRecord]:
        rows = (row for batch in version.named(image_ids, version.fact_columns) for row in batch.to_pylist())
        return {facts.image_id: facts for facts in (to_facts(row, self.folder) for row in rows)}

    @reading
    def vectors(self, version: Version, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return {
            image_id: vector.copy()
            for batch in version.named(image_ids, ["image_id", "vector"])
            for image_id, vector in zip(batch["image_id"].to_pylist(), version.vectors(batch), strict=True)
        }

    @reading
    def thumbnails(self, version: Version, image_ids: Sequence[str]) -> dict[str, bytes]:
        batches = version.named(image_ids, ["image_id", "thumbnail"])
        return {row["image_id"]: bytes(row["thumbnail"]) for batch in batches for row in batch.to_pylist()}

    @reading
    def files(self, version: Version) -> dict[str, FileState]:
        rows = (row for batch in version.scan(STATE_FIELDS) for row in batch.to_pylist())
        return dict(checked_state(row, self.folder) for row in rows)

    @reading
    def delete_corrupt(self, version: Version) -> int:
        corrupt = set[int]()
        for batch in version.scan([*version.fact_columns, "vector"]):
            ids = ids_in(batch)
            corrupt |= {*ids[corrupt_vectors(to_vectors(batch))].tolist()}
            for row_id, row in zip(ids.tolist(), batch.drop_columns([ROW_ID, "vector"]).to_pylist(), strict=True):
                try:
                    to_facts(row, self.folder)
                except CorruptRowError:
                    corrupt.add(row_id)
        if not corrupt:
            return 0
        with self._writing() as table:
            conditions = membership_sql(ROW_ID, map(str, sorted(corrupt)))
            return sum(int(table.delete(where).num_deleted_rows) for where in conditions)

    @reading
    def search(self, version: Version, queries: Tensor, k: int, where: Condition | None = None) -> list[list[Hit]]:
        """See `VectorStore`; approximate above `matrix_limit`."""
        condition = None if where is None else to_sql(where)
        if version.num_rows > self._matrix_limit:
            self._loaded = None
            return [search_by_index(version, query, k, condition) for query in queries]
        loaded = self._in_memory(version)
        selection = loaded.selection(condition)
        hits: list[list[Hit]] = []
        for start in range(0, len(queries), MAX_QUERIES):
            part = queries[start : start + MAX_QUERIES]
            hits += rescored(loaded.version, part, k, loaded.matrix.candidates(part, k, selection))
        return hits

    @reading
    def search_once(self, version: Version, query: Tensor, k: int, where: Condition | None = None) -> list[Hit]:
        """See `VectorStore`; reads the vectors in batches, and loads none into memory."""
        if version.num_rows > self._matrix_limit:
            return self.search(query[None], k, where)[0]
        condition = None if where is None else to_sql(where)
        batches = version.vector_batches(version.matching_ids(condition), condition)
        return rescored(version, query[None], k, [streamed_candidates(batches, query, k)])[0]

    @reading
    def histogram(
        self, version: Version, query: Tensor, edges: Sequence[float], where: Condition | None = None
    ) -> list[int]:
        condition = None if where is None else to_sql(where)
        scores: Iterable[NDArray[np.float32]]
        if version.num_rows > self._matrix_limit:
            batches = version.vector_batches(version.matching_ids(condition), condition)
            scores = (vectors @ query.numpy() for _, vectors in batches)
        else:
            loaded = self._in_memory(version)
            scores = loaded.matrix.scores(query, loaded.selection(condition))
        return score_counts(scores, edges)

    @reading
    def facets(self, version: Version, columns: Mapping[str, Kind]) -> dict[str, Facet]:
        return {name: _facet(version, f"{PREFIX}{name}", kind) for name, kind in columns.items()}

    def compact(self) -> None:
        """Merge fragments, index names (and vectors above `matrix_limit`), delete versions that were replaced."""
        with self._writing() as table:
            count, indexed = table.count_rows(), {index.columns[0] for index in table.list_indices()}
            if count > INDEXED_FROM and "image_id" not in indexed:
                table.create_index("image_id", config=BTree())
            if count > self._matrix_limit and "vector" not in indexed:
                table.create_index("vector", config=IvfSq(distance_type="dot"))
            if table.stats()["fragment_stats"]["num_fragments"] > MANY_FRAGMENTS:
                table.optimize(cleanup_older_than=_age_of_outdated(table.list_versions()))

    def purge(self) -> bool:
        """See `VectorStore`; what reads a version that is deleted meanwhile reads the next one instead."""
        with self._writing() as table:
            purge_table(table, self._pinned(table.version))
        self.compact()
        return True

    def close(self) -> None:
        """Release the vectors in memory."""
        with self._loading_lock:
            self._loaded = None

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """Yield the table at its latest version, locked against other writers."""
        with self._writing_lock, lance_errors(self.folder), FileLock(self.folder / LOCK):
            self._writer.checkout_latest()
            yield self._writer

    def _pinned(self, number: int) -> Version:
        table = self._database.open_table(TABLE)
        table.checkout(number)
        return Version(self.folder, number, table, table.count_rows())

    def _latest(self) -> int:
        with self._version_lock, lance_errors(self.folder):
            self._head.checkout_latest()
            return int(self._head.version)

    def _at(self, number: int) -> Version:
        with self._version_lock, lance_errors(self.folder):
            if self._version is None or self._version.number != number:
                self._version = self._pinned(number)
            return self._version

    @reading
    def _column_types(self, version: Version) -> dict[str, Any]:
        return {field.name: field.type for field in version.table.schema}

    def _in_memory(self, version: Version) -> LoadedVersion:
        """Load the vectors of this version, or of a later one."""
        with self._loading_lock:
            if self._loaded is None or self._loaded.version.number < version.number:
                self._loaded = LoadedVersion.of(version, self._loaded)
            return self._loaded


def _facet(version: Version, column: str, kind: Kind) -> Facet:
    batches = (batch[column] for batch in version.scan([column], f"`{column}` IS NOT NULL"))
    counts: Counter[Value] = Counter()
    if kind in ("number", "time"):
        for end in (end for values in batches if len(values) for end in pc.min_max(values).as_py().values()):
            with corrupt_row_errors(version.folder, end):
                counts[checked_value(end, column)] += 1
        return Facet.of(kind, counts)
    for values in batches:
        counts.update({entry["values"]: entry["counts"] for entry in values.value_counts().to_pylist()})
        if len(counts) > MAX_FACET_VALUES:
            break
    return Facet.of(kind, counts)


def _age_of_outdated(versions: Sequence[Mapping[str, Any]]) -> timedelta:
    """Return an age such that every version of this age was replaced more than `RETENTION` ago.

    Lance counts from when a version was made; a reader may have pinned it until another replaced it.
    """
    now = datetime.now(UTC)
    made = [version["timestamp"].astimezone(UTC) for version in versions]  # local time, without a zone
    retained = [version for version, next_version in pairwise(made) if next_version > now - RETENTION]
    return now - min([*retained, made[-1]]) + TOLERANCE
