"""Resized images kept in a folder from run to run, decoded once and read through a memory map.

A folder `<height>x<width>-<method>` for every size holds two files that only grow: `pixels.bin`, the images, and
`index.bin`, for each of them the SHA-256 of the image file it was made from. So an image is found by what its file
holds, whatever its name, data set or split, and a changed file is another image. `<method>` is a digest of what
decoding and resizing do to a test picture: pixels that another version of a library rounds differently lie elsewhere.

Any number of runs may use and fill a folder at once. One appends at a time, pixels first, and the index only when they
are on the disk; what a killed run leaves behind the last indexed image is overwritten by the next. What has been
indexed is never changed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from cskt.config.types import Interpolation
from cskt.data.ahead import work_ahead
from cskt.data.images import decode_image, read_bytes, resize
from cskt.errors import CsktError

logger = logging.getLogger(__name__)

METHOD_VERSION = 2
"""To be raised when `decode_image` gives other pixels in a way that the test picture, a JPEG file, does not show."""
PIXELS, INDEX, LOCK = "pixels.bin", "index.bin", ".lock"
DIGEST_BYTES = hashlib.sha256().digest_size
IMAGES_PER_APPEND = 256


@dataclass(frozen=True)
class KeptImages:
    """Resized images in memory or in a memory map, any of them at once by position."""

    pixels: NDArray[np.uint8]
    """[N, 3, H, W]"""
    rows: NDArray[np.int64]
    """Where each image stands in `pixels`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """[b] int64 -> [b, 3, H, W] uint8, a copy."""
        # NumPy copies an image at a time, ten times as fast as torch, which goes by elements.
        return torch.from_numpy(self.pixels[self.rows[positions.numpy()]])


def cached_images(
    folder: Path,
    paths: Sequence[Path],
    height: int,
    width: int,
    num_workers: int,
    *,
    interpolation: Interpolation = "bilinear",
    apply_orientation: bool = False,
) -> KeptImages:
    """The images of files, through the cache in `folder`; those that it lacks are decoded and added.

    Every file is read and its SHA-256 taken, each time: that costs a thirtieth of decoding it, and nothing less, such
    as a file's size and time, would tell for certain that it is unchanged.

    Args:
        folder: of the cache; made where there is none.
        height, width: size of the images in pixels.
        num_workers: threads that read, or decode; 0 for the calling one.
        interpolation: see `resize`; every filter has a folder of its own.
        apply_orientation: turn images as their EXIF orientation says; such images have a folder of their own, too.

    Raises:
        CsktError: an image is missing or damaged (names the file), or the folder cannot be written.
    """
    with _remedy(folder):
        name = f"{height}x{width}-{_method(height, width, interpolation)}{'-upright' if apply_orientation else ''}"
        store = _Store(folder / name, (3, height, width))
        num_known = len(store.rows)

        def read(path: Path) -> tuple[bytes, Tensor | None]:
            data = read_bytes(path)
            digest = hashlib.sha256(data).digest()
            if digest in store.rows:
                return digest, None
            pixels = decode_image(data, name=str(path), apply_orientation=apply_orientation)
            return digest, resize(pixels, height, width, interpolation)

        digests: list[bytes] = []
        starts = range(0, len(paths), IMAGES_PER_APPEND)
        for images in work_ahead(read, (paths[start : start + IMAGES_PER_APPEND] for start in starts), num_workers):
            digests += [digest for digest, _ in images]
            new = {digest: pixels for digest, pixels in images if pixels is not None}
            if new and len(store.rows) == num_known:
                logger.info("adding images to %s, which holds %d", store.folder, num_known)
            store.append(new)
        if len(store.rows) > num_known:
            logger.info("%s now holds %d images", store.folder, len(store.rows))
        return KeptImages(store.pixels(), np.array([store.rows[digest] for digest in digests], dtype=np.int64))


class _Store:
    """The two files of one size; `rows` tells where the image of a digest stands."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.rows: dict[bytes, int] = {}
        self._shape = shape
        self._image_bytes = int(np.prod(shape))
        self._count = 0
        self._lock = FileLock(folder / LOCK)
        with self._lock:
            (folder / PIXELS).touch()
            (folder / INDEX).touch()
            self._read_index()

    def append(self, images: Mapping[bytes, Tensor]) -> None:
        """Add images by digest, but for those that another run has added meanwhile."""
        if not images:
            return
        with (
            self._lock,
            (self.folder / PIXELS).open("r+b") as pixels,
            (self.folder / INDEX).open("r+b") as index,
        ):
            self._read_index()
            new = {digest: image for digest, image in images.items() if digest not in self.rows}
            # A digest behind the last whole image would name whatever is written there now.
            index.truncate(self._count * DIGEST_BYTES)
            pixels.seek(self._count * self._image_bytes)
            for image in new.values():
                pixels.write(image.numpy().data)
            pixels.flush()
            os.fsync(pixels.fileno())  # or a power failure might keep the index and lose the pixels
            index.seek(0, os.SEEK_END)
            index.write(b"".join(new))
            index.flush()
            self._read_index()

    def pixels(self) -> NDArray[np.uint8]:
        """[N, 3, H, W] memory map of all images so far."""
        if self._count == 0:  # an empty file cannot be mapped
            return np.empty((0, *self._shape), np.uint8)
        return np.memmap(self.folder / PIXELS, np.uint8, "r", shape=(self._count, *self._shape)).view(np.ndarray)

    def _read_index(self) -> None:
        """Take note of what was added since the last look; the lock is held."""
        whole_images = (self.folder / PIXELS).stat().st_size // self._image_bytes
        with (self.folder / INDEX).open("rb") as index:
            index.seek(self._count * DIGEST_BYTES)
            added = index.read(max(whole_images - self._count, 0) * DIGEST_BYTES)
        for start in range(0, len(added) - DIGEST_BYTES + 1, DIGEST_BYTES):
            self.rows[added[start : start + DIGEST_BYTES]] = self._count
            self._count += 1


@lru_cache
def _method(height: int, width: int, interpolation: Interpolation) -> str:
    """A digest of what decoding and resizing to this size do, here and now, to a picture of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 120, 3), dtype=np.uint8)
    pixels = resize(decode_image(simplejpeg.encode_jpeg(noise, quality=90)), height, width, interpolation)
    return hashlib.sha256(bytes([METHOD_VERSION]) + pixels.numpy().tobytes()).hexdigest()[:12]


@contextmanager
def _remedy(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CsktError(
            f"{folder}: {error.strerror or error}; make room there or name another folder with data.cache_dir"
        ) from None
