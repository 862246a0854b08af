"""Image files -> RGB pixels of 8 bits, for every reader of the package.

Pixels equal those of the released code, `Image.open(path).convert("RGB")`. As there, an EXIF orientation is not applied
unless asked for, transparency is dropped, and an animation shows its first frame. Unlike there, 16-bit grey keeps its
range instead of clipping to white (`formats`), and an image that is corrupt or beyond `limits` is an error that names
the file.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cskt.errors import MAX_PATH_CHARACTERS, CsktError, FileSystemError, MissingFileError, RefusedImageError
from cskt.image_files import jpeg
from cskt.image_files.formats import decode_ppm, open_image, to_rgb
from cskt.image_files.limits import MAX_FILE_BYTES, check_size, corrupt
from cskt.utils.paths import check_characters

UPRIGHT = 1
"""Orientation of an image that is stored upright, or has no tag."""
_TAG = 0x0112
_SIGNS = (b"Exif", b"EXIF", b"exif", b"eXIf", b"tiff:Orientation", b"adobe.xmp")
"""One of these is in every file with the tag, but for AVIF."""
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_APP1 = 0xE1
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
        CsktError: the file is empty, cut short, corrupt or no image. Every message names the image.
    """
    if isinstance(source, Path):
        return decode_image(read_bytes(source), name=str(source), apply_orientation=apply_orientation)
    with _errors_naming(name or getattr(source, "filename", "") or "image"):
        if isinstance(source, Image.Image):
            return _decode_opened(source, apply_orientation)
        if not source:
            raise corrupt("the file is empty")
        apply_orientation = apply_orientation and _may_be_turned(source)
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
    return turned(pixels, _orientation_of(image)) if apply_orientation else pixels


def image_size(data: bytes) -> tuple[int, int]:
    """Return height and width in pixels, as stored, from the header of an image file."""
    with _errors_naming("image"):
        if data.startswith(jpeg.SIGNATURE):
            return jpeg.read_size(data)
        with open_image(data) as image:
            return image.height, image.width


def stored_orientation(data: bytes) -> int:
    """Return the orientation, 1 to 8, that `apply_orientation` applies to a file's pixels; 1 if it cannot be read."""
    if not _may_be_turned(data):
        return UPRIGHT
    try:
        if data.startswith(jpeg.SIGNATURE):
            return jpeg_orientation(data)
        with open_image(data) as image:
            return UPRIGHT if image.format in TURNED_BY_THEIR_READER else _orientation_of(image)
    except CsktError:
        return UPRIGHT


def _may_be_turned(data: bytes) -> bool:
    """Return, from a quick search, whether a file may have an orientation; most have none."""
    return data[4:8] == b"ftyp" or any(sign in data for sign in _SIGNS)


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation of a JPEG file, 1 to 8; 1 if the metadata is corrupt.

    The segments are read here, since Pillow reads all tags of all segments when it opens a file.
    """
    image = Image.Image()
    exif = b""
    for marker, content, scan in jpeg.segments(data):
        if scan:
            break
        if marker == _APP1 and content.startswith(_EXIF):
            exif += content if not exif else content[len(_EXIF) :]
        elif marker == _APP1 and content.startswith(_XMP):
            image.info["xmp"] = content[len(_XMP) :]
    if exif:
        image.info["exif"] = exif
    return _orientation_of(image)


def _orientation_of(image: Image.Image) -> int:
    """Return the orientation that is still to be applied to a loaded image, 1 to 8; 1 if the metadata is corrupt.

    Pillow itself applies that of a TIFF file when it loads it, and pillow-heif that of a HEIC file.
    """
    try:
        orientation = image.getexif().get(_TAG, UPRIGHT)
    except Exception:  # noqa: BLE001  (Pillow's reader of metadata raises many kinds of errors on corrupt ones)
        return UPRIGHT
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else UPRIGHT


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Apply an EXIF orientation, 1 to 8, to pixels [H, W, 3] as stored; from 5 on, they become [W, H, 3]."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        FileSystemError: it is missing or cannot be read.
        RefusedImageError: it is no file (a folder; a pipe or device, which may never end), or larger than
            `MAX_FILE_BYTES`.
    """
    check_characters(path)
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
        shown = str(path)[:MAX_PATH_CHARACTERS]
        raise FileSystemError(f"{shown}: cannot be read: {error.strerror or error}; leave it out") from None
    except UnicodeEncodeError:
        raise FileSystemError(f"{str(path)!a}: not a name of this file system; rename the file") from None


@contextmanager
def _errors_naming(name: str) -> Iterator[None]:
    """Put the name of the image in front of every message."""
    try:
        yield
    except CsktError as error:
        raise type(error)(f"{name}: {error}") from None
