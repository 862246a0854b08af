"""Crops in a Milvus collection: a server's, or a file of milvus-lite.

The index is FLAT with inner products, so that a search looks at every vector. Its answers are scored anew here from the
vectors themselves: then equal vectors have equal scores wherever they lie, and ties are in the order of `image_id`.

A metadata column is a key of the collection's dynamic field, because milvus-lite cannot add fields; a crop without a
value has no such key. Conditions are compiled in `milvus_filters`.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cskt.gallery.columns import LARGEST_WHOLE, Kind, Value
from cskt.gallery.conditions import Condition
from cskt.gallery.milvus_filters import compiled, like_key, likeable, quoted
from cskt.gallery.milvus_server import (
    CALL_SECONDS,
    LONGEST_ID,
    LONGEST_TEXT,
    Collection,
    drop_collection,
    one_line,
    open_collection,
)
from cskt.gallery.store import MOST_FACET_VALUES, Crop, CropFacts, Facet, FileState, Found

MOST_HITS = 16_384
"""Milvus returns no more rows to one request."""
PAGE_ROWS = 10_000
"""Rows of one request that reads them all."""
NAMED_ROWS = 1000
"""Rows of one request that names each."""
MESSAGE_BYTES = 32 * 2**20
"""Of one request; a server takes messages of 64 MB."""
EXTRA_HITS = 16
"""Hits beyond k that are asked for at first, so that a tie at the end of the list is seen."""
_STATE = ["image_id", "num_bytes", "modified_ns", "sha256", "kept"]
_FACTS = [*_STATE, "width", "height"]


def open_milvus(url: str, embed_dim: int, columns: Mapping[str, Kind], generation: str = "") -> MilvusStore:
    """The crops of a gallery on Milvus; the collection is made where it is missing.

    Args:
        url: `milvus://HOST:PORT/COLLECTION`, or `milvus:FILE.db` for milvus-lite.
        embed_dim: D, length of a vector.
        columns: the metadata columns.
        generation: tells the vectors of one model from those of another; part of the collection's name.

    Raises:
        ValueError: the address is not understood, nobody answers there, or the collection is none of ours.
    """
    return MilvusStore(open_collection(url, embed_dim, generation), embed_dim, columns)


def drop_milvus(url: str, generation: str = "") -> None:
    """Delete the collection that `open_milvus` made, if it is there.

    Raises:
        ValueError: the address is not understood, or nobody answers there.
    """
    drop_collection(url, generation)


class MilvusStore:
    """A `VectorStore` on Milvus; made by `open_milvus`."""

    def __init__(self, collection: Collection, embed_dim: int, columns: Mapping[str, Kind]) -> None:
        self._collection = collection
        self._client, self._name, self._url = collection.client, collection.name, collection.url
        self._embed_dim = embed_dim
        self._columns = dict(columns)

    def add(self, crops: Sequence[Crop]) -> None:
        """As in `VectorStore`; more than fit into one request are written in parts, each whole or not at all.

        Milvus lets a replaced row keep keys that the new one lacks, so a crop that loses a value is removed first: a
        kill in between loses that crop.
        """
        by_name = {crop.facts.image_id: self._row(crop) for crop in crops}
        old = self.get(list(by_name))
        self.delete([name for name, facts in old.items() if not facts.metadata.keys() <= by_name[name].keys()])
        rows = list(by_name.values())
        step = self._rows_at_once()
        for start in range(0, len(rows), step):
            with one_line(self._url):
                self._client.upsert(self._name, rows[start : start + step], timeout=CALL_SECONDS)

    def delete(self, image_ids: Sequence[str]) -> int:
        """As in `VectorStore`."""
        there = [row["image_id"] for row in self._by_id(image_ids, ["image_id"])]
        for start in range(0, len(there), NAMED_ROWS):
            with one_line(self._url):
                self._client.delete(self._name, filter=_among(there[start : start + NAMED_ROWS]), timeout=CALL_SECONDS)
        return len(there)

    def add_columns(self, columns: Mapping[str, Kind]) -> None:
        """As in `VectorStore`."""
        self._columns = {**columns, **self._columns}

    def count(self, where: Condition | None = None) -> int:
        """As in `VectorStore`."""
        with one_line(self._url):
            [row] = self._client.query(
                self._name, filter=_expression(where), output_fields=["count(*)"], timeout=CALL_SECONDS
            )
        return int(row["count(*)"])

    def get(self, image_ids: Sequence[str]) -> dict[str, CropFacts]:
        """As in `VectorStore`."""
        return {row["image_id"]: self._facts(row) for row in self._by_id(image_ids, [*_FACTS, *self._columns])}

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """As in `VectorStore`."""
        rows = self._by_id(image_ids, ["image_id", "vector"])
        return {row["image_id"]: np.asarray(row["vector"], np.float32) for row in rows}

    def thumbnails(self, image_ids: Sequence[str]) -> dict[str, bytes]:
        """As in `VectorStore`."""
        rows = self._by_id(image_ids, ["image_id", "thumbnail"])
        return {row["image_id"]: base64.b64decode(row["thumbnail"]) for row in rows}

    def files(self) -> dict[str, FileState]:
        """As in `VectorStore`."""
        return {
            row["image_id"]: FileState(int(row["num_bytes"]), int(row["modified_ns"]), row["sha256"], bool(row["kept"]))
            for page in self._pages(_STATE)
            for row in page
        }

    def search(self, queries: Tensor, k: int, where: Condition | None = None) -> list[list[Found]]:
        """As in `VectorStore`."""
        queries_QD = queries.detach().cpu().numpy().astype(np.float32)
        best: list[list[tuple[float, str]]] = []
        limit = k + EXTRA_HITS
        step = max(1, self._rows_at_once() // limit)
        for start in range(0, len(queries_QD), step):
            best += self._best(queries_QD[start : start + step], k, where, limit)
        facts = self.get([image_id for pairs in best for _, image_id in pairs])
        # A crop may be deleted between the two requests.
        return [[Found(facts[name], score) for score, name in pairs if name in facts] for pairs in best]

    def histogram(self, query: Tensor, edges: Sequence[float], where: Condition | None = None) -> list[int]:
        """As in `VectorStore`; reads every vector."""
        query_D = query.detach().cpu().numpy().astype(np.float32)
        counts = np.zeros(len(edges) - 1, np.int64)
        for page in self._pages(["image_id", "vector"], where):
            interval = np.searchsorted(edges, _scores(_matrix(page), query_D), side="right") - 1
            counts += np.bincount(interval.clip(0, len(counts) - 1), minlength=len(counts))
        return [int(count) for count in counts]

    def facets(self, columns: Mapping[str, Kind]) -> dict[str, Facet]:
        """As in `VectorStore`; reads every crop's metadata."""
        seen: dict[str, Counter[Value]] = defaultdict(Counter)
        for page in self._pages(["image_id", *columns]):
            for row in page:
                for column, kind in columns.items():
                    if row.get(column) is not None:
                        seen[column][_value(row[column], kind)] += 1
        return {column: _facet(kind, seen[column]) for column, kind in columns.items()}

    def compact(self) -> None:
        """As in `VectorStore`: what was added lately is sealed and can be merged."""
        with one_line(self._url):
            self._client.flush(self._name, timeout=CALL_SECONDS)

    def close(self) -> None:
        """As in `VectorStore`."""
        self._collection.close()

    def _row(self, crop: Crop) -> dict[str, Any]:
        facts = crop.facts
        thumbnail = base64.b64encode(crop.thumbnail).decode()
        texts = {"its name": facts.image_id, "the thumbnail": thumbnail, **facts.metadata}
        for what, text in texts.items():
            longest = LONGEST_ID if what == "its name" else LONGEST_TEXT
            if isinstance(text, str) and len(text.encode()) > longest:
                raise ValueError(f"{facts.image_id[:60]}: {what} has more than the {longest:,} bytes that Milvus keeps")
        row: dict[str, Any] = {
            "image_id": facts.image_id,
            "vector": crop.vector.astype(np.float32),
            "thumbnail": thumbnail,
            "width": float(facts.width),
            "height": float(facts.height),
            "num_bytes": float(facts.num_bytes),
            "modified_ns": facts.modified_ns,
            "sha256": facts.sha256,
            "kept": facts.kept,
            like_key("image_id"): likeable(facts.image_id),
        }
        for column, value in facts.metadata.items():
            kind = self._columns[column]
            row[column] = float(value) if kind == "number" else value
            if kind == "text":
                row[like_key(column)] = likeable(str(value))
        return row

    def _facts(self, row: Mapping[str, Any]) -> CropFacts:
        return CropFacts(
            image_id=row["image_id"],
            width=int(row["width"]),
            height=int(row["height"]),
            num_bytes=int(row["num_bytes"]),
            modified_ns=int(row["modified_ns"]),
            sha256=row["sha256"],
            kept=bool(row["kept"]),
            metadata={
                column: _value(row[column], kind)
                for column, kind in self._columns.items()
                if row.get(column) is not None
            },
        )

    def _by_id(self, image_ids: Sequence[str], fields: list[str]) -> Iterator[dict[str, Any]]:
        """The rows of these names, in any order; once each."""
        names = list(dict.fromkeys(image_ids))
        step = min(NAMED_ROWS, self._rows_at_once())
        for start in range(0, len(names), step):
            with one_line(self._url):
                rows = self._client.query(
                    self._name,
                    filter=_among(names[start : start + step]),
                    output_fields=fields,
                    timeout=CALL_SECONDS,
                )
            yield from rows

    def _pages(self, fields: list[str], where: Condition | None = None) -> Iterator[list[dict[str, Any]]]:
        """All rows, in pages by the order of their names.

        pymilvus' own iterator pastes the last name into the next request as it is, quotes and all.
        """
        condition = _expression(where)
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
                filter=_expression(where),
                limit=limit,
                output_fields=["vector"],
                search_params={"metric_type": "IP"},
                timeout=CALL_SECONDS,
            )
        best = []
        for query_D, hits in zip(queries_QD, answers, strict=True):
            rows = [{"image_id": hit["image_id"], "vector": hit["entity"]["vector"]} for hit in hits]
            ranked = sorted(zip(-_scores(_matrix(rows), query_D), (row["image_id"] for row in rows), strict=True))
            pairs = [(-float(score), image_id) for score, image_id in ranked]
            # What Milvus left out scores no more than its last hit, up to the rounding of a sum of D products.
            slack = 2.0**-22 * (self._embed_dim + 2) * float(np.linalg.norm(query_D))
            if len(hits) == limit and hits[-1]["distance"] + slack >= pairs[k - 1][0]:
                [pairs] = self._best(query_D[None], k, where, 8 * limit)
            best.append(pairs[:k])
        return best

    def _best_of_all(
        self, queries_QD: NDArray[np.float32], k: int, where: Condition | None
    ) -> list[list[tuple[float, str]]]:
        """The same from reading every vector: for long lists and very long ties."""
        best: list[list[tuple[float, str]]] = [[] for _ in queries_QD]
        for page in self._pages(["image_id", "vector"], where):
            vectors = _matrix(page)
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


def _expression(where: Condition | None) -> str:
    return "" if where is None else compiled(where)


def _among(image_ids: Sequence[str]) -> str:
    return f"image_id in [{', '.join(map(quoted, image_ids))}]"


def _matrix(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    return np.array([row["vector"] for row in rows], np.float32)


def _scores(vectors: NDArray[np.float32], query_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products, summed in float64: the order of summation, which varies with the place, cannot be seen."""
    if not len(vectors):
        return np.empty(0, np.float32)
    return (vectors.astype(np.float64) @ query_D.astype(np.float64)).astype(np.float32)


def _value(raw: Any, kind: Kind) -> Value:
    """A value as it was before all numbers became floats."""
    if kind == "number" and float(raw).is_integer() and abs(raw) <= LARGEST_WHOLE:
        return int(raw)
    value: Value = raw
    return value


def _facet(kind: Kind, counts: Counter[Value]) -> Facet:
    if kind in ("number", "time"):
        return Facet(kind, minimum=min(counts, default=None), maximum=max(counts, default=None))
    if len(counts) > MOST_FACET_VALUES:
        return Facet(kind)
    return Facet(kind, values=tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))
