"""Image files on their way into a gallery: read, digested, decoded, resized; and the check of crop names."""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cskt.config.types import Interpolation
from cskt.data.images import resize
from cskt.errors import CsktError
from cskt.image_files.decode import Source, decode_image, read_bytes
from cskt.image_files.formats import suffixes

SUFFIXES = suffixes()
"""Suffixes, in lower case, of image files."""
THUMBNAIL_SIZE = (160, 256)
"""Largest width and height in pixels."""
THUMBNAIL_QUALITY = 82
LONGEST_ID = 512
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
"""Pattern of nearly all names; the full check takes ten times as long."""
_BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of writing, and so make one name look like another."""


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


def check_image_id(image_id: str) -> str:
    """Return a crop's name if every store, address and table can contain it."""
    if len(image_id) <= LONGEST_ID and _PLAIN_ID.fullmatch(image_id):
        return image_id
    parts = PurePosixPath(image_id).parts
    if (
        not 0 < len(image_id) <= LONGEST_ID
        or image_id.startswith("/")
        or "\\" in image_id
        or "/".join(parts) != image_id
        or any(part == ".." or not part.strip() for part in parts)
        or any(unicodedata.category(letter) in ("Cc", "Cs") or letter in _BIDIRECTIONAL for letter in image_id)
    ):
        raise CsktError(
            f"{image_id[:80]!r} is no name for a crop; expected 1 to {LONGEST_ID} letters such as cam3/0001.jpg: no"
            " '..', '\\', leading or double '/', control characters"
        )
    return image_id
