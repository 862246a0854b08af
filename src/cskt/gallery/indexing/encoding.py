"""Images read and encoded in batches: what an engine is given and gives back, and the engine of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cskt.config.types import Interpolation
from cskt.data.loading import work_ahead
from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.gallery.columns import Value
from cskt.gallery.indexing.files import ReadImage, bytes_of, digest, prepare
from cskt.gallery.stores.base import Crop, CropFacts, FileState
from cskt.image_files.decode import Source

MOST_BATCH_BYTES = 64_000_000
"""Of the files of a batch, where they are in memory."""

Item = TypeVar("Item")
Stated: TypeAlias = Mapping[str, Value | None]
"""Metadata of a crop as it was told; None takes a value back."""


@dataclass(frozen=True)
class Pending:
    """An image that is to be encoded."""

    image_id: str
    source: Source
    modified_ns: int
    kept: bool
    stated: Stated
    """What is newly told of it; other values stay as the store has them when it is committed."""
    known: FileState | None
    """What the store held under this name when it was looked at."""
    sha256: str | None = None
    """Digest that the file must have, if it must be the one that was indexed; any file is taken otherwise."""


@dataclass(frozen=True)
class Encoded:
    """An image as the store is to hold it."""

    crop: Crop
    """But for its metadata."""
    stated: Stated
    data: bytes
    """Of the file, where the gallery is to keep it."""


@dataclass(frozen=True)
class Touched:
    """An image whose content is what the store already has."""

    pending: Pending
    data: bytes
    """As of `Encoded`."""


@dataclass(frozen=True)
class Worked:
    """What became of a batch of images."""

    encoded: list[Encoded]
    touched: list[Touched]
    unreadable: list[tuple[str, str]]
    """(name, what is wrong with it)."""
    outdated: list[str]
    """Names among the unreadable of which the store has an older version."""

    @property
    def num_images(self) -> int:
        """In the batch."""
        return len(self.encoded) + len(self.touched) + len(self.unreadable)


class Engine(Protocol):
    """Reads and encodes images somewhere: in this process (`LocalEngine`) or in others (`ray_engine`)."""

    def work(self, pending: Iterable[Pending]) -> Iterator[Worked]:
        """Batch after batch, each image once, in any order."""


class LocalEngine:
    """Encodes in this process: files are read ahead in threads.

    Args:
        encoder: the gallery's.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def work(self, pending: Iterable[Pending]) -> Iterator[Worked]:
        """Batches in order."""
        encoder = self._encoder
        resizing = encoder.image_size, encoder.interpolation
        batches = batched(pending, encoder.batch_size, bytes_held)
        for images in work_ahead(lambda item: _read(item, *resizing), batches, max(1, encoder.num_workers)):
            yield encode(encoder, images)


def batched(items: Iterable[Item], size: int, num_bytes: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Lists of `size`, shorter where their files would fill more memory than `MOST_BATCH_BYTES`; the last of the rest.

    Args:
        num_bytes: what an item holds in memory.
    """
    batch: list[Item] = []
    held = 0
    for item in items:
        more = num_bytes(item)
        if batch and (len(batch) == size or held + more > MOST_BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += more
    if batch:
        yield batch


def bytes_held(pending: Pending) -> int:
    """Of the image's file, where it is in memory."""
    return len(pending.source) if isinstance(pending.source, bytes) else 0


@dataclass(frozen=True)
class _Decoded:
    pending: Pending
    data: bytes
    image: ReadImage


@dataclass(frozen=True)
class _Failed:
    pending: Pending
    reason: str


def encode(encoder: Encoder, images: Sequence[_Decoded | Touched | _Failed]) -> Worked:
    """Encode images that `_read` returned as one batch."""
    decoded = [image for image in images if isinstance(image, _Decoded)]
    encoded = []
    if decoded:
        vectors = encoder.encode_image(torch.stack([item.image.pixels for item in decoded])).numpy()
        encoded = [_encoded(item, vector) for item, vector in zip(decoded, vectors, strict=True)]
    failed = [image for image in images if isinstance(image, _Failed)]
    return Worked(
        encoded,
        touched=[image for image in images if isinstance(image, Touched)],
        unreadable=[(image.pending.image_id, image.reason) for image in failed],
        outdated=[image.pending.image_id for image in failed if image.pending.known is not None],
    )


def _encoded(item: _Decoded, vector: NDArray[np.float32]) -> Encoded:
    pending, image = item.pending, item.image
    facts = CropFacts(
        image_id=pending.image_id,
        width=image.width,
        height=image.height,
        num_bytes=image.num_bytes,
        modified_ns=pending.modified_ns,
        sha256=image.sha256,
        kept=pending.kept,
    )
    return Encoded(Crop(facts, vector, image.thumbnail), pending.stated, item.data)


def _read(pending: Pending, size: tuple[int, int], interpolation: Interpolation) -> _Decoded | Touched | _Failed:
    """Read and decode one image."""
    try:
        data = bytes_of(pending.source)
        if pending.sha256 is not None and digest(data) != pending.sha256:
            raise CsktError("its file has changed since it was indexed; bring the gallery up to date first: cskt index")
        kept = data if pending.kept else b""
        if pending.known is not None and pending.known.num_bytes == len(data) and digest(data) == pending.known.sha256:
            return Touched(pending, kept)
        return _Decoded(pending, kept, prepare(data, *size, interpolation))
    except ValueError as error:
        return _Failed(pending, " ".join(str(error).removeprefix("image: ").split()))
