"""`ScanStore`, the base of a small store: it stores rows, and every search reads all of them."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cskt.errors import CorruptRowError
from cskt.gallery.columns import Kind, Value
from cskt.gallery.conditions import Condition
from cskt.gallery.stores.base import Crop, CropRecord, Facet, FileState, VectorStore, score_counts
from cskt.gallery.stores.registry import StoreLocation
from cskt.gallery.stores.row_checks import (
    FACT_FIELDS,
    checked_crops,
    checked_facts,
    checked_metadata,
    checked_name,
    checked_vector,
)
from cskt.types import Hit

ROW_FIELDS = (*FACT_FIELDS, "metadata", "vector", "thumbnail")
"""Fields of a row, the first its key `image_id`. Whole numbers are int, `kept` is 0 or 1, `vector` (D float32) and
`thumbnail` are bytes, and the others text; `metadata` is a JSON object."""


class ScanStore(VectorStore):
    """A `VectorStore` for some thousand crops, exact; a subclass implements four methods.

    Rows are checked when they are read, so a gallery of somebody else can be opened.

    Args:
        place: file or address, for messages.
        location: what the store must hold.
    """

    def __init__(self, place: str, location: StoreLocation) -> None:
        self.place, self.embed_dim, self.columns = place, location.embed_dim, dict(location.columns)

    @abstractmethod
    def write_rows(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows with `ROW_FIELDS`, or replace those of the same `image_id`: all of them or none, durably."""

    @abstractmethod
    def read_rows(self, image_ids: Sequence[str] | None = None) -> Iterable[Sequence[Any]]:
        """Return the rows of these names, without unknown ones; or all rows, as one write left them."""

    @abstractmethod
    def delete(self, image_ids: Sequence[str]) -> int:
        """See `VectorStore`."""

    @abstractmethod
    def close(self) -> None:
        """See `VectorStore`."""

    def add(self, crops: Sequence[Crop]) -> None:
        rows = []
        for crop in checked_crops(crops, self.embed_dim, self.columns):
            facts = {**vars(crop.facts), "kept": int(crop.facts.kept)}
            metadata = json.dumps(dict(crop.facts.metadata), ensure_ascii=False)
            rows.append((*(facts[name] for name in FACT_FIELDS), metadata, crop.vector.tobytes(), crop.thumbnail))
        self.write_rows(rows)

    def add_columns(self, columns: Mapping[str, Kind]) -> None:
        self.columns = {**columns, **self.columns}

    def count(self, where: Condition | None = None) -> int:
        return len(self._crops(where))

    def get(self, image_ids: Sequence[str]) -> dict[str, CropRecord]:
        return {crop.facts.image_id: crop.facts for crop in self._named(image_ids)}

    def vectors(self, image_ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        return {crop.facts.image_id: crop.vector for crop in self._named(image_ids)}

    def thumbnails(self, image_ids: Sequence[str]) -> dict[str, bytes]:
        return {crop.facts.image_id: crop.thumbnail for crop in self._named(image_ids)}

    def files(self) -> dict[str, FileState]:
        return {crop.facts.image_id: crop.facts.state for crop in self._crops()}

    def delete_corrupt(self) -> int:
        corrupt = []
        for row in self.read_rows():
            try:
                self._crop(row)
            except CorruptRowError:
                corrupt.append(row[0])
        return self.delete(corrupt)

    def search(self, queries: Tensor, k: int, where: Condition | None = None) -> list[list[Hit]]:
        crops = sorted(self._crops(where), key=lambda crop: crop.facts.image_id)
        return [self._best(scores, crops, k) for scores in _scores(queries, crops)]

    def histogram(self, query: Tensor, edges: Sequence[float], where: Condition | None = None) -> list[int]:
        return score_counts(_scores(query[None], self._crops(where)), edges)

    def facets(self, columns: Mapping[str, Kind]) -> dict[str, Facet]:
        counts: dict[str, Counter[Value]] = {column: Counter() for column in columns}
        for crop in self._crops():
            for column in counts.keys() & crop.facts.metadata.keys():
                counts[column][crop.facts.metadata[column]] += 1
        return {column: Facet.of(kind, counts[column]) for column, kind in columns.items()}

    def compact(self) -> None:
        """See `VectorStore`; nothing to do."""

    def _crops(self, where: Condition | None = None) -> list[Crop]:
        return [crop for crop in map(self._crop, self.read_rows()) if crop.facts.fulfils(where)]

    def _named(self, image_ids: Sequence[str]) -> Iterator[Crop]:
        return map(self._crop, self.read_rows(list(dict.fromkeys(image_ids))))

    def _crop(self, row: Sequence[Any]) -> Crop:
        fields = dict(zip(ROW_FIELDS, row, strict=True))
        name = checked_name(fields["image_id"], self.place)
        fields["kept"] = {0: False, 1: True}.get(fields["kept"])
        metadata = checked_metadata(name, fields["metadata"], self.columns, self.place)
        return Crop(
            checked_facts(fields, metadata, self.place),
            checked_vector(name, fields["vector"], self.embed_dim, self.place),
            fields["thumbnail"],  # a gallery checks it
        )

    @staticmethod
    def _best(scores: NDArray[np.float32], crops: Sequence[Crop], k: int) -> list[Hit]:
        """Return the k best of crops in the order of their names, which a stable sort keeps among equal scores."""
        order = np.argsort(-scores, kind="stable")[:k]
        return [crops[place].facts.hit(float(scores[place]), rank) for rank, place in enumerate(order, start=1)]


def _scores(queries: Tensor, crops: Sequence[Crop]) -> NDArray[np.float32]:
    """Return inner products [Q, G], summed in float64, so that the order of summation makes no difference."""
    if not crops:
        return np.empty((len(queries), 0), np.float32)
    vectors_GD = np.stack([crop.vector for crop in crops]).astype(np.float64)
    scores: NDArray[np.float32] = (queries.double().cpu().numpy() @ vectors_GD.T).astype(np.float32)
    return scores
