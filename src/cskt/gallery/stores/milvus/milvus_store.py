"""Crops in a Milvus collection: a server's, or a file of milvus-lite.

The index compares inner products. With the default index, FLAT, a search compares every vector; all others are
approximate (`address`). Hits are scored again here from the vectors themselves: equal vectors then have equal scores
wherever they are stored, and ties are in the order of `image_id`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cskt.errors import CorruptRowError
from cskt.gallery.columns import Kind, Value
from cskt.gallery.conditions import Condition
from cskt.gallery.indexing.encoding import batched
from cskt.gallery.stores.base import Crop, CropRecord, Facet, FileState, VectorStore, score_counts
from cskt.gallery.stores.milvus.address import CONSISTENCY
from cskt.gallery.stores.milvus.collection import (
    CALL_SECONDS,
    MAX_TEXT_BYTES,
    Collection,
    milvus_errors,
    to_facts,
    to_row,
    to_thumbnail,
    to_vectors,
)
from cskt.gallery.stores.milvus.expressions import compiled, like_key, quoted
from cskt.gallery.stores.row_checks import (
    FACT_FIELDS,
    STATE_FIELDS,
    checked_crops,
    checked_state,
    column_value,
    corrupt_row_errors,
)
from cskt.types import Hit

READ_SECONDS = 20.0
"""Time limit of a request that reads; one that reads everything, page by page, has `CALL_SECONDS`."""
MAX_HITS = 16_384
"""Milvus returns no more rows to one request."""
PAGE_ROWS = 10_000
"""Rows of one request that reads them all."""
NAMED_ROWS = 1000
"""Rows of one request that names each."""
MESSAGE_BYTES = 32 * 2**20
"""Bytes of one request; a server accepts messages of 64 MB."""
MANY_ROWS = 10_000
"""Rows after which `compact` flushes: a server allows a collection one flush in 10 seconds, and each makes segments."""
EXTRA_HITS = 16
"""Hits beyond k that are requested at first, so that a tie at the end of the list is seen."""


def open_milvus(
    url: str, embed_dim: int, columns: Mapping[str, Kind], generation: str = "", *, create: bool = True
) -> MilvusStore:
    """Open the crops of a gallery on Milvus.

    Args:
        url: `milvus://HOST:PORT/COLLECTION`, or `milvus:FILE.db` for milvus-lite; options after a `?`, see `address`.
            With an index other than `flat` searches may miss crops; with a consistency other than `strong` they may
            not see the latest writes. Nothing else differs from `VectorStore`.
        embed_dim: D, length of a vector.
        columns: metadata columns.
        generation: distinguishes the vectors of one model from those of another; end of the collection's name.
        create: make the collection if it is missing.
    """
    collection = Collection(url, generation, must_exist=not create)
    try:
        collection.prepare(embed_dim, create=create)
    except BaseException:
        collection.close()
        raise
    return MilvusStore(collection, embed_dim, columns)


def drop_milvus(url: str, generation: str = "") -> None:
    """Delete the collection that `open_milvus` made, if it exists."""
    collection = Collection(url, generation)
    try:
        with milvus_errors(url):
            collection.client.drop_collection(collection.name, timeout=CALL_SECONDS)
    finally:
        collection.close()


class MilvusStore(VectorStore):
    """A `VectorStore` on Milvus; made by `open_milvus`."""

    def __init__(self, collection: Collection, embed_dim: int, columns: Mapping[str, Kind]) -> None:
        self._collection = collection
        self._client, self._name, self._url = collection.client, collection.name, collection.url
        self._options = collection.options
        self._embed_dim = embed_dim
        self._columns = dict(columns)
        self._num_unflushed = 0

    def add(self, crops: Sequence[Crop]) -> None:
        """See `VectorStore`; each crop is written whole or not at all, a request of many perhaps in parts."""
        last = checked_crops(crops, self._embed_dim, self._columns)
        by_name = {crop.facts.image_id: to_row(crop, self._columns, self._options.partition) for crop in last}
        if self._collection.merges_keys:
            for name, facts in self.get(list(by_name)).items():
                # Nulls are read and compared like missing keys.
                absent = dict.fromkeys([*facts.metadata, *map(like_key, facts.metadata)])
                by_name[name] = absent | by_name[name]
        for rows in batched(by_name.values(), self._rows_per_message()):
            self._call(self._client.upsert, rows)
        self._num_unflushed += len(by_name)

    def delete(self, image_ids: Sequence[str]) -> int:
        present = [row["image_id"] for row in self._by_name(image_ids, ["image_id"])]
        for names in batched(present, NAMED_ROWS):
            self._call(self._client.delete, filter=_is_one_of(names))
        return len(present)

    def add_columns(self, columns: Mapping[str, Kind]) -> None:
        self._columns = {**self._columns, **columns}

    def count(self, where: Condition | None = None) -> int:
        [row] = self._query(filter=self._expression(where), output_fields=["count(*)"])
        return int(row["count(*)"])

    def get(self, image_ids: Sequence[str], **level: str) -> dict[str, CropRecord]:
        rows = self._by_name(image_ids, [*FACT_FIELDS, *self._columns], **level)
        return {row["image_id"]: to_facts(row, self._columns, self._url) for row in rows}

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        rows = list(self._by_name(image_ids, ["image_id", "vector"]))
        return dict(zip((row["image_id"] for row in rows), to_vectors(rows, self._url), strict=True))

    def thumbnails(self, image_ids: Sequence[str]) -> dict[str, bytes]:
        rows = self._by_name(image_ids, ["image_id", "thumbnail"])
        return {row["image_id"]: to_thumbnail(row, self._url) for row in rows}

    def files(self) -> dict[str, FileState]:
        return dict(checked_state(row, self._url) for page in self._pages(STATE_FIELDS) for row in page)

    def delete_corrupt(self) -> int:
        corrupt = []
        for page in self._pages([*FACT_FIELDS, "vector", *self._columns]):
            for row in page:
                try:
                    to_facts(row, self._columns, self._url)
                    to_vectors([row], self._url)
                except CorruptRowError:
                    corrupt.append(row["image_id"])
        return self.delete(corrupt)

    def search(self, queries: Tensor, k: int, where: Condition | None = None) -> list[list[Hit]]:
        queries_QD = queries.detach().cpu().numpy().astype(np.float32)
        best: list[list[tuple[float, str]]] = []
        limit = k + EXTRA_HITS
        step = max(1, self._rows_per_message() // limit)
        for start in range(0, len(queries_QD), step):
            best += self._best(queries_QD[start : start + step], k, where, limit)
        facts = self.get([image_id for pairs in best for _, image_id in pairs], **self._level())
        # A crop may be deleted between the two requests.
        found = [[(facts[name], score) for score, name in pairs if name in facts] for pairs in best]
        return [[crop.hit(score, rank) for rank, (crop, score) in enumerate(pairs, start=1)] for pairs in found]

    def histogram(self, query: Tensor, edges: Sequence[float], where: Condition | None = None) -> list[int]:
        """See `VectorStore`; reads every vector."""
        query_D = query.detach().cpu().numpy().astype(np.float32)
        pages = self._pages(["image_id", "vector"], where)
        return score_counts((_scores(to_vectors(page, self._url), query_D) for page in pages), edges)

    def facets(self, columns: Mapping[str, Kind]) -> dict[str, Facet]:
        """See `VectorStore`; reads every crop's metadata."""
        counts: dict[str, Counter[Value]] = defaultdict(Counter)
        for page in self._pages(["image_id", *columns]):
            for row in page:
                for column, kind in columns.items():
                    if (value := row.get(column)) is not None:
                        with corrupt_row_errors(self._url, value):
                            counts[column][column_value(value, kind, column)] += 1
        return {column: Facet.of(kind, counts[column]) for column, kind in columns.items()}

    def compact(self) -> None:
        """See `VectorStore`; many new rows are flushed and indexed, few are left to Milvus."""
        if self._num_unflushed >= MANY_ROWS:
            self._call(self._client.flush)
            self._num_unflushed = 0

    def close(self) -> None:
        self._collection.close()

    def _call(self, request: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Send a request for this collection."""
        with milvus_errors(self._url):
            return request(self._name, *args, **{"timeout": CALL_SECONDS, **kwargs})

    def _query(self, **kwargs: Any) -> Any:
        return self._call(self._client.query, **{"timeout": READ_SECONDS, **kwargs})

    def _by_name(self, image_ids: Sequence[str], fields: list[str], **level: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of these names, in any order, once each; the consistency is Strong without a level."""
        for names in batched(dict.fromkeys(image_ids), min(NAMED_ROWS, self._rows_per_message())):
            yield from self._query(filter=_is_one_of(names), output_fields=fields, **level)

    def _pages(self, fields: Sequence[str], where: Condition | None = None) -> Iterator[list[dict[str, Any]]]:
        """Yield all rows, in pages by the order of their names.

        pymilvus' own iterator inserts the last name into the next request without escaping its quotes.
        """
        condition = self._expression(where)
        rows = min(PAGE_ROWS, MESSAGE_BYTES // (4 * self._embed_dim)) if "vector" in fields else PAGE_ROWS
        last = ""
        while page := self._query(
            filter=f"image_id > {quoted(last)}" + (f" and ({condition})" if condition else ""),
            output_fields=list(fields),
            limit=rows,
            timeout=CALL_SECONDS,
            iterator="True",  # in the order of names
            reduce_stop_for_best="True",  # a short page instead of a gap
        ):
            yield list(page)
            last = page[-1]["image_id"]

    def _best(
        self, queries_QD: NDArray[np.float32], k: int, where: Condition | None, limit: int
    ) -> list[list[tuple[float, str]]]:
        """Return (score, image_id) of the k best per query, ties in the order of names, of Milvus' first `limit`."""
        if limit > MAX_HITS:
            return self._best_of_all(queries_QD, k, where)
        answers = self._call(
            self._client.search,
            data=list(queries_QD),
            anns_field="vector",
            filter=self._expression(where),
            limit=limit,
            output_fields=["vector"],
            search_params={"metric_type": "IP", "params": self._options.search_numbers(limit)},
            timeout=READ_SECONDS,
            **self._level(),
        )
        best = []
        for query_D, hits in zip(queries_QD, answers, strict=True):
            rows = [{"image_id": hit["image_id"], "vector": hit["entity"]["vector"]} for hit in hits]
            pairs = _ranked(rows, to_vectors(rows, self._url), query_D)
            # Milvus' other rows score no more than its last hit, up to the rounding of a sum of D products.
            slack = 2.0**-22 * (self._embed_dim + 2) * float(np.linalg.norm(query_D))
            may_tie = len(hits) == limit and hits[-1]["distance"] + slack >= pairs[k - 1][0]
            if self._options.is_exact and may_tie:  # an approximate index omits other crops, too
                [pairs] = self._best(query_D[None], k, where, 8 * limit)
            best.append(pairs[:k])
        return best

    def _best_of_all(
        self, queries_QD: NDArray[np.float32], k: int, where: Condition | None
    ) -> list[list[tuple[float, str]]]:
        """Return the same by reading every vector, for long lists and very long ties."""
        best: list[list[tuple[float, str]]] = [[] for _ in queries_QD]
        for page in self._pages(["image_id", "vector"], where):
            vectors = to_vectors(page, self._url)
            for index, query_D in enumerate(queries_QD):
                pairs = best[index] + _ranked(page, vectors, query_D)
                best[index] = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:k]
        return best

    def _rows_per_message(self) -> int:
        """Return the number of crops that fit into a message with their thumbnails."""
        return max(1, MESSAGE_BYTES // (4 * self._embed_dim + MAX_TEXT_BYTES // 4))

    def _expression(self, where: Condition | None) -> str:
        return "" if where is None else compiled(where, self._options.partition)

    def _level(self) -> dict[str, str]:
        return {"consistency_level": CONSISTENCY[self._options.consistency]}


def _is_one_of(image_ids: Sequence[str]) -> str:
    return f"image_id in [{', '.join(map(quoted, image_ids))}]"


def _ranked(
    rows: Sequence[Mapping[str, Any]], vectors: NDArray[np.float32], query_D: NDArray[np.float32]
) -> list[tuple[float, str]]:
    """Return (score, image_id) of rows, best first."""
    pairs = zip(_scores(vectors, query_D).tolist(), (row["image_id"] for row in rows), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))


def _scores(vectors: NDArray[np.float32], query_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return inner products, summed in float64, so that the order of summation makes no difference."""
    if not len(vectors):
        return np.empty(0, np.float32)
    return (vectors.astype(np.float64) @ query_D.astype(np.float64)).astype(np.float32)
