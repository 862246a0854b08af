"""Images read and encoded in batches: the interface of an engine, and the engine of this process."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cskt.config.types import Interpolation
from cskt.data.images import resize
from cskt.data.loading import work_ahead
from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.gallery.columns import Value
from cskt.gallery.stores.base import Crop, CropRecord, FileState
from cskt.image_files.decode import Source, decode_image, read_bytes
from cskt.utils.messages import one_line

THUMBNAIL_SIZE = (160, 256)
"""Largest width and height in pixels."""
THUMBNAIL_QUALITY = 82
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


@dataclass(frozen=True)
class PreparedImage:
    """An image file, read once."""

    pixels: Tensor
    """[3, H, W] uint8, in the size of the model."""
    width: int
    """Width of the original as it is displayed, in pixels."""
    height: int
    num_bytes: int
    sha256: str
    thumbnail: bytes


@dataclass(frozen=True)
class _ReadBatch:
    """Results for images that were read, and the pixels of those that are to be encoded."""

    images: Tensor
    results: list[tuple[Processed, PreparedImage | None]]

    @classmethod
    def of(cls, results: list[tuple[Processed, PreparedImage | None]], size: tuple[int, int]) -> _ReadBatch:
        pixels = [image.pixels for _, image in results if image is not None]
        return cls(torch.stack(pixels) if pixels else torch.empty(0, 3, *size, dtype=torch.uint8), results)


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
        read = work_ahead(lambda item: _read(item, size, interpolation), batches, max(1, encoder.num_workers))
        for batch, found in encoder.encode_batches(_ReadBatch.of(results, size) for results in read):
            vectors = iter(found.numpy())
            yield [
                result if image is None else replace(result, crop=_crop(result.pending, image, next(vectors)))
                for result, image in batch.results
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
            raise CsktError(
                "its file has changed since it was indexed; bring the gallery up to date first: cskt index GALLERY"
            )
        result = Processed(pending, data=data if pending.kept else b"")
        known = pending.known
        if known is not None and known.num_bytes == len(data) and digest(data) == known.sha256:
            return result, None
        return result, prepare(data, *size, interpolation)
    except CsktError as error:
        return Processed(pending, error=one_line(str(error).removeprefix("image: "))), None


def _crop(pending: Pending, image: PreparedImage, vector: NDArray[np.float32]) -> Crop:
    size = image.width, image.height, image.num_bytes
    facts = CropRecord(pending.image_id, *size, pending.modified_ns, image.sha256, pending.kept)
    return Crop(facts, vector, image.thumbnail)


def bytes_of(source: Source) -> bytes:
    """Return the bytes of an image file; for an image in memory, of a PNG of it."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image):
        buffer = io.BytesIO()
        Image.fromarray(decode_image(source, apply_orientation=True)).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    return read_bytes(source)


def digest(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def prepare(data: bytes, height: int, width: int, interpolation: Interpolation = "bilinear") -> PreparedImage:
    """Decode a file once, upright: `height`, `width` and `interpolation` are of the model's images."""
    pixels = decode_image(data, apply_orientation=True)
    return PreparedImage(
        pixels=resize(pixels, height, width, interpolation),
        width=pixels.shape[1],
        height=pixels.shape[0],
        num_bytes=len(data),
        sha256=digest(data),
        thumbnail=draw_thumbnail(pixels),
    )


def draw_thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """Return a small JPEG of pixels [h, w, 3] with the same aspect ratio."""
    image = Image.fromarray(pixels)
    image.thumbnail(THUMBNAIL_SIZE, Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue()
