"""Cache of resized images in a folder, decoded once and read through a memory map.

A folder `<height>x<width>-<method>` for every size contains two files that only grow: `pixels.bin`, the images, and
`index.bin`, for each of them the SHA-256 of the image file it was made from. So an image is found by the content of its
file, whatever its name, data set or split, and a changed file is another image. `<method>` is a digest of the result of
decoding and resizing a test picture: pixels that another version of a library rounds differently have another folder.

Any number of runs may use and fill a folder at once. One appends at a time, pixels first, and the index only when they
are on the disk; what a killed run leaves behind the last indexed image is overwritten by the next. Indexed images never
change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from cskt.data.images import ImageReader
from cskt.errors import FileSystemError

METHOD_VERSION = 2
"""To be raised when decoding changes pixels in a way that the test picture, a JPEG file, does not show."""
PIXELS, INDEX, LOCK = "pixels.bin", "index.bin", ".lock"
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class ImageArray:
    """Resized images in memory or in a memory map, read by position."""

    pixels: NDArray[np.uint8]
    """[N, 3, H, W]"""
    rows: NDArray[np.int64]
    """Row of each image in `pixels`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Return the images at positions [b] int64 as a copy, [b, 3, H, W] uint8."""
        # NumPy copies an image at a time, ten times as fast as torch, which goes by elements.
        return torch.from_numpy(self.pixels[self.rows[positions.numpy()]])


class PixelStore:
    """The two files of one size and method of the reader; the folder is created if it does not exist.

    Raises:
        FileSystemError: the folder cannot be read or written; so do the methods.
    """

    def __init__(self, cache: Path, reader: ImageReader) -> None:
        upright = "-upright" if reader.apply_orientation else ""
        self.folder = cache / f"{reader.height}x{reader.width}-{_method(reader)}{upright}"
        self.rows: dict[bytes, int] = {}
        """SHA-256 of an image file -> row of its pixels."""
        self._cache = cache
        self._shape = (3, reader.height, reader.width)
        self._image_bytes = int(np.prod(self._shape))
        self._num_rows = 0
        with self._errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / LOCK)
            with self._lock:
                (self.folder / PIXELS).touch()
                (self.folder / INDEX).touch()
                self._read_index()

    def append(self, images: Mapping[bytes, Tensor]) -> None:
        """Add images by digest, but for those that another run has added meanwhile."""
        if not images:
            return
        with (
            self._errors(),
            self._lock,
            (self.folder / PIXELS).open("r+b") as pixels,
            (self.folder / INDEX).open("r+b") as index,
        ):
            self._read_index()
            new = {digest: image for digest, image in images.items() if digest not in self.rows}
            # A digest behind the last whole image would name whatever is written there now.
            index.truncate(self._num_rows * DIGEST_BYTES)
            pixels.seek(self._num_rows * self._image_bytes)
            for image in new.values():
                pixels.write(image.numpy().data)
            pixels.flush()
            os.fsync(pixels.fileno())  # or a power failure might keep the index and lose the pixels
            index.seek(0, os.SEEK_END)
            index.write(b"".join(new))
            index.flush()
            self._read_index()

    def images(self, digests: Sequence[bytes]) -> ImageArray:
        """Return the images of these digests, all of which are stored, over a memory map."""
        rows = np.array([self.rows[digest] for digest in digests], dtype=np.int64)
        if self._num_rows == 0:  # an empty file cannot be mapped
            return ImageArray(np.empty((0, *self._shape), np.uint8), rows)
        with self._errors():
            pixels = np.memmap(self.folder / PIXELS, np.uint8, "r", shape=(self._num_rows, *self._shape))
        return ImageArray(pixels.view(np.ndarray), rows)

    def _read_index(self) -> None:
        """Read the digests that were added since the last call; the lock is held."""
        whole_images = (self.folder / PIXELS).stat().st_size // self._image_bytes
        with (self.folder / INDEX).open("rb") as index:
            index.seek(self._num_rows * DIGEST_BYTES)
            added = index.read(max(whole_images - self._num_rows, 0) * DIGEST_BYTES)
        for start in range(0, len(added) - DIGEST_BYTES + 1, DIGEST_BYTES):
            self.rows[added[start : start + DIGEST_BYTES]] = self._num_rows
            self._num_rows += 1

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FileSystemError(
                f"{self._cache}: {error.strerror or error}; free space there or name another folder with data.cache_dir"
            ) from None


@lru_cache
def _method(reader: ImageReader) -> str:
    """Return a digest of the result of decoding and resizing a picture of noise; orientation has no part in it."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 120, 3), dtype=np.uint8)
    pixels = replace(reader, apply_orientation=False).read(simplejpeg.encode_jpeg(noise, quality=90))
    return hashlib.sha256(bytes([METHOD_VERSION]) + pixels.numpy().tobytes()).hexdigest()[:12]
