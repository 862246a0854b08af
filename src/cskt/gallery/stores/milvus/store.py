"""Crops in a Milvus collection: a server's, or a file of milvus-lite.

The index compares inner products. If it is FLAT, as where the address names none, a search looks at every vector; all
others are approximate (`milvus_options`). Answers are scored anew here from the vectors themselves: then equal vectors
have equal scores wherever they lie, and ties are in the order of `image_id`.

Rows are made in `milvus_rows`, conditions compiled in `milvus_filters`, connections opened in `milvus_server`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cskt.errors import CorruptRowError
from cskt.gallery.columns import Kind, Value
from cskt.gallery.conditions import Condition
from cskt.gallery.stores.base import Crop, CropFacts, Facet, FileState
from cskt.gallery.stores.milvus.filters import compiled, quoted
from cskt.gallery.stores.milvus.options import CONSISTENCY
from cskt.gallery.stores.milvus.rows import (
    FACTS,
    STATE,
    to_facet,
    to_facts,
    to_no_values,
    to_row,
    to_thumbnail,
    to_value,
    to_vectors,
)
from cskt.gallery.stores.milvus.server import (
    CALL_SECONDS,
    LONGEST_TEXT,
    READ_SECONDS,
    Collection,
    drop_collection,
    one_line,
    open_collection,
)
from cskt.gallery.stores.row_checks import checked_state
from cskt.types import Hit

MOST_HITS = 16_384
"""Milvus returns no more rows to one request."""
PAGE_ROWS = 10_000
"""Rows of one request that reads them all."""
NAMED_ROWS = 1000
"""Rows of one request that names each."""
MESSAGE_BYTES = 32 * 2**20
"""Of one request; a server takes messages of 64 MB."""
MANY_ROWS = 10_000
"""Rows after which `compact` flushes: a server grants a collection one flush in 10 seconds, and each makes segments."""
EXTRA_HITS = 16
"""Hits beyond k that are asked for at first, so that a tie at the end of the list is seen."""


def open_milvus(
    url: str, embed_dim: int, columns: Mapping[str, Kind], generation: str = "", *, create: bool = True
) -> MilvusStore:
    """The crops of a gallery on Milvus.

    Args:
        url: `milvus://HOST:PORT/COLLECTION`, or `milvus:FILE.db` for milvus-lite; options after a `?`, see
            `milvus_options`. With an index other than `flat` searches may miss crops; with a consistency other than
            `strong` they may not see the latest writes. Nothing else departs from `VectorStore`.
        embed_dim: D, length of a vector.
        columns: the metadata columns.
        generation: tells the vectors of one model from those of another; part of the collection's name.
        create: make the collection where it is missing.

    Raises:
        CsktError: the address is not understood, nobody answers there, the collection is missing or none of ours, or
            it was made with another index or other partitions.
    """
    return MilvusStore(open_collection(url, embed_dim, generation, create=create), embed_dim, columns)


def drop_milvus(url: str, generation: str = "") -> None:
    """Delete the collection that `open_milvus` made, if it is there.

    Raises:
        CsktError: the address is not understood, or nobody answers there.
    """
    drop_collection(url, generation)


class MilvusStore:
    """A `VectorStore` on Milvus; made by `open_milvus`."""

    def __init__(self, collection: Collection, embed_dim: int, columns: Mapping[str, Kind]) -> None:
        self._collection = collection
        self._client, self._name, self._url = collection.client, collection.name, collection.url
        self._options = collection.options
        self._embed_dim = embed_dim
        self._columns = dict(columns)
        self._unsealed = 0

    def add(self, crops: Sequence[Crop]) -> None:
        """As in `VectorStore`; each crop is written whole or not at all, a request of many perhaps in parts."""
        by_name = {crop.facts.image_id: to_row(crop, self._columns, self._options.partition) for crop in crops}
        if self._collection.keeps_keys:
            for name, facts in self.get(list(by_name)).items():
                by_name[name] = to_no_values(facts) | by_name[name]
        rows = list(by_name.values())
        step = self._rows_at_once()
        for start in range(0, len(rows), step):
            with one_line(self._url):
                self._client.upsert(self._name, rows[start : start + step], timeout=CALL_SECONDS)
        self._unsealed += len(rows)

    def delete(self, image_ids: Sequence[str]) -> int:
        """As in `VectorStore`."""
        there = [row["image_id"] for row in self._by_id(image_ids, ["image_id"])]
        for start in range(0, len(there), NAMED_ROWS):
            with one_line(self._url):
                self._client.delete(self._name, filter=_among(there[start : start + NAMED_ROWS]), timeout=CALL_SECONDS)
        return len(there)

    def add_columns(self, columns: Mapping[str, Kind]) -> None:
        """As in `VectorStore`."""
        self._columns = {**self._columns, **columns}

    def count(self, where: Condition | None = None) -> int:
        """As in `VectorStore`."""
        with one_line(self._url):
            [row] = self._client.query(
                self._name, filter=self._expression(where), output_fields=["count(*)"], timeout=READ_SECONDS
            )
        return int(row["count(*)"])

    def get(self, image_ids: Sequence[str]) -> dict[str, CropFacts]:
        """As in `VectorStore`."""
        return self._get(image_ids)

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """As in `VectorStore`."""
        rows = list(self._by_id(image_ids, ["image_id", "vector"]))
        return dict(zip((row["image_id"] for row in rows), to_vectors(rows, self._url), strict=True))

    def thumbnails(self, image_ids: Sequence[str]) -> dict[str, bytes]:
        """As in `VectorStore`."""
        rows = self._by_id(image_ids, ["image_id", "thumbnail"])
        return {row["image_id"]: to_thumbnail(row, self._url) for row in rows}

    def files(self) -> dict[str, FileState]:
        """As in `VectorStore`."""
        return dict(checked_state(row, self._url) for page in self._pages(STATE) for row in page)

    def delete_corrupt(self) -> int:
        """As in `VectorStore`."""
        corrupt = []
        for page in self._pages([*FACTS, "vector", *self._columns]):
            for row in page:
                try:
                    to_facts(row, self._columns, self._url)
                    to_vectors([row], self._url)
                except CorruptRowError:
                    corrupt.append(row["image_id"])
        return self.delete(corrupt)

    def search(self, queries: Tensor, k: int, where: Condition | None = None) -> list[list[Hit]]:
        """As in `VectorStore`."""
        queries_QD = queries.detach().cpu().numpy().astype(np.float32)
        best: list[list[tuple[float, str]]] = []
        limit = k + EXTRA_HITS
        step = max(1, self._rows_at_once() // limit)
        for start in range(0, len(queries_QD), step):
            best += self._best(queries_QD[start : start + step], k, where, limit)
        facts = self._get([image_id for pairs in best for _, image_id in pairs], **self._level())
        # A crop may be deleted between the two requests.
        found = [[(facts[name], score) for score, name in pairs if name in facts] for pairs in best]
        return [[crop.hit(score, rank) for rank, (crop, score) in enumerate(pairs, start=1)] for pairs in found]

    def histogram(self, query: Tensor, edges: Sequence[float], where: Condition | None = None) -> list[int]:
        """As in `VectorStore`; reads every vector."""
        query_D = query.detach().cpu().numpy().astype(np.float32)
        counts = np.zeros(len(edges) - 1, np.int64)
        for page in self._pages(["image_id", "vector"], where):
            interval = np.searchsorted(edges, _scores(to_vectors(page, self._url), query_D), side="right") - 1
            counts += np.bincount(interval.clip(0, len(counts) - 1), minlength=len(counts))
        return [int(count) for count in counts]

    def facets(self, columns: Mapping[str, Kind]) -> dict[str, Facet]:
        """As in `VectorStore`; reads every crop's metadata."""
        seen: dict[str, Counter[Value]] = defaultdict(Counter)
        for page in self._pages(["image_id", *columns]):
            for row in page:
                for column, kind in columns.items():
                    if row.get(column) is not None:
                        seen[column][to_value(row[column], kind, column, self._url)] += 1
        return {column: to_facet(kind, seen[column]) for column, kind in columns.items()}

    def compact(self) -> None:
        """As in `VectorStore`: if many rows were added, they are sealed and indexed; few, when Milvus sees fit."""
        if self._unsealed < MANY_ROWS:
            return
        with one_line(self._url):
            self._client.flush(self._name, timeout=CALL_SECONDS)
        self._unsealed = 0

    def close(self) -> None:
        """As in `VectorStore`."""
        self._collection.close()

    def _get(self, image_ids: Sequence[str], **level: str) -> dict[str, CropFacts]:
        rows = self._by_id(image_ids, [*FACTS, *self._columns], **level)
        return {row["image_id"]: to_facts(row, self._columns, self._url) for row in rows}

    def _by_id(self, image_ids: Sequence[str], fields: list[str], **level: str) -> Iterator[dict[str, Any]]:
        """The rows of these names, in any order; once each. Read as Strong if no level is given."""
        names = list(dict.fromkeys(image_ids))
        step = min(NAMED_ROWS, self._rows_at_once())
        for start in range(0, len(names), step):
            with one_line(self._url):
                rows = self._client.query(
                    self._name,
                    filter=_among(names[start : start + step]),
                    output_fields=fields,
                    timeout=READ_SECONDS,
                    **level,
                )
            yield from rows

    def _pages(self, fields: list[str], where: Condition | None = None) -> Iterator[list[dict[str, Any]]]:
        """All rows, in pages by the order of their names.

        pymilvus' own iterator pastes the last name into the next request as it is, quotes and all.
        """
        condition = self._expression(where)
        rows = min(PAGE_ROWS, MESSAGE_BYTES // (4 * self._embed_dim)) if "vector" in fields else PAGE_ROWS
        cursor = ""
        while True:
            with one_line(self._url):
                page = self._client.query(
                    self._name,
                    filter=f"image_id > {quoted(cursor)}" + (f" and ({condition})" if condition else ""),
                    output_fields=fields,
                    limit=rows,
                    timeout=CALL_SECONDS,
                    iterator="True",  # in the order of names
                    reduce_stop_for_best="True",  # rather a short page than a gap
                )
            if not page:
                return
            yield list(page)
            cursor = page[-1]["image_id"]

    def _best(
        self, queries_QD: NDArray[np.float32], k: int, where: Condition | None, limit: int
    ) -> list[list[tuple[float, str]]]:
        """(score, image_id) of the k best per query, ties in the order of names, out of Milvus' own first `limit`."""
        if limit > MOST_HITS:
            return self._best_of_all(queries_QD, k, where)
        with one_line(self._url):
            answers = self._client.search(
                self._name,
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
            scores = _scores(to_vectors(rows, self._url), query_D)
            ranked = sorted(zip(-scores, (row["image_id"] for row in rows), strict=True))
            pairs = [(-float(score), image_id) for score, image_id in ranked]
            # What Milvus left out scores no more than its last hit, up to the rounding of a sum of D products.
            slack = 2.0**-22 * (self._embed_dim + 2) * float(np.linalg.norm(query_D))
            # An approximate index leaves out others, too: asking for more would not make its list complete.
            may_tie = len(hits) == limit and hits[-1]["distance"] + slack >= pairs[k - 1][0]
            if self._options.is_exact and may_tie:
                [pairs] = self._best(query_D[None], k, where, 8 * limit)
            best.append(pairs[:k])
        return best

    def _best_of_all(
        self, queries_QD: NDArray[np.float32], k: int, where: Condition | None
    ) -> list[list[tuple[float, str]]]:
        """The same from reading every vector: for long lists and very long ties."""
        best: list[list[tuple[float, str]]] = [[] for _ in queries_QD]
        for page in self._pages(["image_id", "vector"], where):
            vectors = to_vectors(page, self._url)
            names = [row["image_id"] for row in page]
            for index, query_D in enumerate(queries_QD):
                pairs = best[index] + [
                    (float(s), name) for s, name in zip(_scores(vectors, query_D), names, strict=True)
                ]
                best[index] = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:k]
        return best

    def _rows_at_once(self) -> int:
        """Crops that fit into a message with their thumbnails."""
        return max(1, MESSAGE_BYTES // (4 * self._embed_dim + LONGEST_TEXT // 4))

    def _expression(self, where: Condition | None) -> str:
        return "" if where is None else compiled(where, self._options.partition)

    def _level(self) -> dict[str, str]:
        return {"consistency_level": CONSISTENCY[self._options.consistency]}


def _among(image_ids: Sequence[str]) -> str:
    return f"image_id in [{', '.join(map(quoted, image_ids))}]"


def _scores(vectors: NDArray[np.float32], query_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products, summed in float64: the order of summation, which varies with the place, cannot be seen."""
    if not len(vectors):
        return np.empty(0, np.float32)
    return (vectors.astype(np.float64) @ query_D.astype(np.float64)).astype(np.float32)
