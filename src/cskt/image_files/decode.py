"""Image files -> RGB pixels of 8 bits, for every reader of the package.

Pixels equal those of the released code, `Image.open(path).convert("RGB")`. As there, an EXIF orientation is not applied
unless asked for, transparency is dropped, and an animation shows its first frame. Unlike there, 16-bit grey keeps its
range instead of clipping to white (`modes`), and an image that is damaged or beyond `limits` is an error that names the
file.
"""

from __future__ import annotations

import io
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cskt.errors import CsktError, RefusedImageError
from cskt.image_files import jpeg
from cskt.image_files.formats import NEEDS_HEIC, formats, is_heic, reads_heic
from cskt.image_files.limits import MAX_FILE_BYTES, check_decoder, check_parts, check_size
from cskt.image_files.modes import decode_ppm, to_rgb
from cskt.image_files.orientation import UPRIGHT, jpeg_orientation, may_be_turned, orientation_of, turned

TURNED_BY_THEIR_READER = ("TIFF", "HEIF")
"""Formats whose orientation is applied whenever a file is decoded."""
DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, IndexError, OverflowError,
    UserWarning,
)  # fmt: skip
"""Errors of the decoders of Pillow and pillow-heif on damaged files; warnings, where Python was told to raise them."""
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
REMEDY = "replace the file or leave it out"
"""For files that are damaged or no images."""


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
        CsktError: the file is missing, empty, cut short, damaged, no image, or larger than the limits
            of `cskt.image_files.limits`; names it.
    """
    if isinstance(source, Path):
        return decode_image(read_bytes(source), name=str(source), apply_orientation=apply_orientation)
    with _errors_naming(name or getattr(source, "filename", "") or "image"):
        if isinstance(source, Image.Image):
            return _decode_opened(source, apply_orientation)
        return _decode_file(source, apply_orientation)


def image_size(data: bytes) -> tuple[int, int]:
    """Read the size of an image file from its header.

    Args:
        data: the bytes of the file.

    Returns:
        Height and width in pixels, as stored.

    Raises:
        CsktError: no image, or larger than the limits of `cskt.image_files.limits`.
    """
    with _errors_naming("image"):
        if data.startswith(jpeg.SIGNATURE):
            height, width = jpeg.read_size(data)
            check_size(height, width)
            return height, width
        with open_image(data) as image:
            return image.height, image.width


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        CsktError: it is missing, cannot be read, is no file (a folder; a pipe or device, which may never end), or is
            larger than `MAX_FILE_BYTES`; names it.
    """
    with _errors_naming(str(path)):
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise RefusedImageError("a folder, pipe or device, not a file; name an image file")
        if state.st_size > MAX_FILE_BYTES:
            raise RefusedImageError(
                f"{state.st_size / 1e6:,.0f} MB; a file has at most {MAX_FILE_BYTES / 1e6:.0f} MB; scale it down"
            )
        return path.read_bytes()


@contextmanager
def _errors_naming(name: str) -> Iterator[None]:
    """Turn every error of reading and decoding into a ValueError that names the image and a remedy."""
    try:
        yield
    except FileNotFoundError:
        raise CsktError(f"{name}: no such image; put it there or leave it out") from None
    except PermissionError:
        raise CsktError(f"{name}: permission denied; make it readable or leave it out") from None
    except RefusedImageError as error:
        raise RefusedImageError(f"{name}: {error}") from None
    except UnidentifiedImageError:
        raise CsktError(f"{name}: not an image of a known format ({', '.join(formats())}); {REMEDY}") from None
    except BOMBS as error:
        raise RefusedImageError(f"{name}: {error}; scale it down") from None
    except DECODING_ERRORS as error:
        raise CsktError(f"{name}: damaged image: {' '.join(str(error).split())}; {REMEDY}") from None


def _decode_opened(image: Image.Image, apply_orientation: bool) -> NDArray[np.uint8]:
    check_size(image.height, image.width)
    pixels = to_rgb(image)
    return turned(pixels, orientation_of(image)) if apply_orientation else pixels


def _decode_file(data: bytes, apply_orientation: bool) -> NDArray[np.uint8]:
    if not data:
        raise CsktError("the file is empty")
    apply_orientation = apply_orientation and may_be_turned(data)
    if data.startswith(jpeg.SIGNATURE):
        pixels = jpeg.decode_jpeg(data)
        return turned(pixels, jpeg_orientation(data)) if apply_orientation else pixels
    if data[:2] in (b"P5", b"P6"):
        return decode_ppm(data)
    with open_image(data) as image:
        return _decode_opened(image, apply_orientation)


def stored_orientation(data: bytes) -> int:
    """Read the orientation of an image file that `apply_orientation` would apply to its pixels.

    Args:
        data: the bytes of the file.

    Returns:
        1 to 8, as EXIF numbers them; 1 for upright pixels, for files that any reader turns (TIFF, HEIC), and for files
        that cannot be read.
    """
    if not may_be_turned(data):
        return UPRIGHT
    try:
        if data.startswith(jpeg.SIGNATURE):
            return jpeg_orientation(data)
        with open_image(data) as image:
            return UPRIGHT if image.format in TURNED_BY_THEIR_READER else orientation_of(image)
    except (*DECODING_ERRORS, *BOMBS):
        return UPRIGHT


def open_image(data: bytes) -> Image.Image:
    """Open an image file other than a JPEG within the limits of `cskt.image_files.limits`; nothing is decoded.

    Raises:
        ValueError, OSError, ...: it is larger than they allow, damaged, or of no known format.
    """
    check_parts(data)
    if is_heic(data) and not reads_heic():
        raise RefusedImageError(NEEDS_HEIC)
    image = Image.open(io.BytesIO(data), formats=formats())
    check_size(image.height, image.width)
    check_decoder(image, len(data))
    return image
