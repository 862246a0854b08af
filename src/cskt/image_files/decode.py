"""Image files -> RGB pixels of 8 bits, for every reader of the package.

Pixels equal those of the released code, `Image.open(path).convert("RGB")`. As there, an EXIF orientation is not applied
unless asked for, transparency is dropped, and an animation shows its first frame. Unlike there, 16-bit grey keeps its
range instead of clipping to white (`modes`), and an image that is damaged or beyond `limits` is an error that names the
file.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cskt.errors import CsktError, FileSystemError, MissingFileError, RefusedImageError
from cskt.image_files import jpeg
from cskt.image_files.formats import open_image
from cskt.image_files.limits import MAX_FILE_BYTES, check_size, damaged
from cskt.image_files.modes import decode_ppm, to_rgb
from cskt.image_files.orientation import UPRIGHT, jpeg_orientation, may_be_turned, orientation_of, turned

TURNED_BY_THEIR_READER = ("TIFF", "HEIF")
"""Formats whose orientation is applied whenever a file is decoded."""

Source = Path | Image.Image | bytes
"""Source of an image: a file, an image that Pillow has opened, or the bytes of a file."""


def decode_image(source: Source, name: str = "", *, apply_orientation: bool = False) -> NDArray[np.uint8]:
    """Decode an image at its own size.

    Args:
        source: a file, its bytes, or an image that Pillow has opened.
        name: what errors call bytes; a path names itself.
        apply_orientation: turn the pixels as the file's EXIF orientation says.

    Returns:
        [H, W, 3] RGB.

    Raises:
        FileSystemError: the file is missing or cannot be read.
        RefusedImageError: the image is larger than the limits of `cskt.image_files.limits`, or has no known range.
        CsktError: the file is empty, cut short, damaged or no image. Every message names the image.
    """
    if isinstance(source, Path):
        return decode_image(read_bytes(source), name=str(source), apply_orientation=apply_orientation)
    with _errors_naming(name or getattr(source, "filename", "") or "image"):
        if isinstance(source, Image.Image):
            return _decode_opened(source, apply_orientation)
        if not source:
            raise damaged("the file is empty")
        apply_orientation = apply_orientation and may_be_turned(source)
        if source.startswith(jpeg.SIGNATURE):
            pixels = jpeg.decode_jpeg(source)
            return turned(pixels, jpeg_orientation(source)) if apply_orientation else pixels
        if source[:2] in (b"P5", b"P6"):
            return decode_ppm(source)
        with open_image(source) as image:
            return _decode_opened(image, apply_orientation)


def _decode_opened(image: Image.Image, apply_orientation: bool) -> NDArray[np.uint8]:
    check_size(image.height, image.width)
    pixels = to_rgb(image)
    return turned(pixels, orientation_of(image)) if apply_orientation else pixels


def image_size(data: bytes) -> tuple[int, int]:
    """Return height and width in pixels, as stored, from the header of an image file."""
    with _errors_naming("image"):
        if data.startswith(jpeg.SIGNATURE):
            return jpeg.read_size(data)
        with open_image(data) as image:
            return image.height, image.width


def stored_orientation(data: bytes) -> int:
    """Return the orientation, 1 to 8, that `apply_orientation` applies to a file's pixels; 1 if it cannot be read."""
    if not may_be_turned(data):
        return UPRIGHT
    try:
        if data.startswith(jpeg.SIGNATURE):
            return jpeg_orientation(data)
        with open_image(data) as image:
            return UPRIGHT if image.format in TURNED_BY_THEIR_READER else orientation_of(image)
    except CsktError:
        return UPRIGHT


def read_bytes(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        FileSystemError: it is missing or cannot be read.
        RefusedImageError: it is no file (a folder; a pipe or device, which may never end), or larger than
            `MAX_FILE_BYTES`.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise RefusedImageError(f"{path}: a folder, pipe or device, not a file; name an image file")
        if state.st_size > MAX_FILE_BYTES:
            raise RefusedImageError(
                f"{path}: {state.st_size / 1e6:,.0f} MB; a file has at most {MAX_FILE_BYTES / 1e6:.0f} MB;"
                " scale it down"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such image; put it there or leave it out") from None
    except PermissionError:
        raise FileSystemError(f"{path}: permission denied; make it readable or leave it out") from None
    except OSError as error:
        raise FileSystemError(f"{path}: cannot be read: {error.strerror or error}; leave it out") from None
    except UnicodeEncodeError:
        raise FileSystemError(f"{str(path)!a}: not a name of this file system; rename the file") from None


@contextmanager
def _errors_naming(name: str) -> Iterator[None]:
    """Put the name of the image in front of every message."""
    try:
        yield
    except CsktError as error:
        raise type(error)(f"{name}: {error}") from None
