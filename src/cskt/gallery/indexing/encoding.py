"""Images read and encoded in batches: the interface of an engine, and the engine of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cskt.config.types import Interpolation
from cskt.data.loading import work_ahead
from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.gallery.columns import Value
from cskt.gallery.indexing.preparing import PreparedImage, bytes_of, digest, prepare
from cskt.gallery.stores.base import Crop, CropFacts, FileState
from cskt.image_files.decode import Source
from cskt.utils.messages import one_line

MAX_BATCH_BYTES = 64_000_000
"""Size of the files of a batch that are in memory."""

Item = TypeVar("Item")
Stated: TypeAlias = Mapping[str, Value | None]
"""New metadata of a crop, column -> value; None deletes the value."""


@dataclass(frozen=True)
class Pending:
    """An image that is to be encoded."""

    image_id: str
    source: Source
    modified_ns: int
    kept: bool
    """True for an upload, whose file the gallery stores."""
    stated: Stated
    known: FileState | None
    """Content of the store under this name when the image was listed."""
    sha256: str | None = None
    """Digest that the file must have; any content is accepted if None."""


@dataclass(frozen=True)
class Processed:
    """Result for one image: a crop, an error, or neither if the store has this content already."""

    pending: Pending
    crop: Crop | None = None
    """Without metadata."""
    error: str | None = None
    data: bytes = b""
    """Content of the file, if the gallery stores it."""


class Engine(Protocol):
    """Reads and encodes images: in this process (`LocalEngine`) or on a cluster (`RayEngine`)."""

    def work(self, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        """Yield the results batch by batch, one for each image, in any order."""


class LocalEngine:
    """Encodes in this process with the encoder of the gallery; threads read files ahead."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def work(self, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        """Yield the results batch by batch, in order."""
        encoder = self._encoder
        size, interpolation = encoder.image_size, encoder.interpolation
        batches = batched(pending, encoder.batch_size, bytes_held)
        for batch in work_ahead(lambda item: _read(item, size, interpolation), batches, max(1, encoder.num_workers)):
            pixels = [image.pixels for _, image in batch if image is not None]
            vectors = iter(encoder.encode_image(torch.stack(pixels)).numpy() if pixels else ())
            yield [
                result if image is None else replace(result, crop=_crop(result.pending, image, next(vectors)))
                for result, image in batch
            ]


def batched(
    items: Iterable[Item], size: int = 1000, num_bytes: Callable[[Item], int] = lambda _: 0
) -> Iterator[list[Item]]:
    """Yield lists of `size` items, shorter ones where they would hold more than `MAX_BATCH_BYTES` in memory."""
    batch: list[Item] = []
    held = 0
    for item in items:
        more = num_bytes(item)
        if batch and (len(batch) == size or held + more > MAX_BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += more
    if batch:
        yield batch


def bytes_held(pending: Pending) -> int:
    """Return the size of an image's file if it is in memory, else 0."""
    return len(pending.source) if isinstance(pending.source, bytes) else 0


def _read(
    pending: Pending, size: tuple[int, int], interpolation: Interpolation
) -> tuple[Processed, PreparedImage | None]:
    try:
        data = bytes_of(pending.source)
        if pending.sha256 is not None and digest(data) != pending.sha256:
            raise CsktError("its file has changed since it was indexed; bring the gallery up to date first: cskt index")
        result = Processed(pending, data=data if pending.kept else b"")
        known = pending.known
        if known is not None and known.num_bytes == len(data) and digest(data) == known.sha256:
            return result, None
        return result, prepare(data, *size, interpolation)
    except CsktError as error:
        return Processed(pending, error=one_line(str(error).removeprefix("image: "))), None


def _crop(pending: Pending, image: PreparedImage, vector: NDArray[np.float32]) -> Crop:
    size = image.width, image.height, image.num_bytes
    facts = CropFacts(pending.image_id, *size, pending.modified_ns, image.sha256, pending.kept)
    return Crop(facts, vector, image.thumbnail)
