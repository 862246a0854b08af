"""EXIF orientation: a tag with the turn that pixels, stored as the sensor read them, need."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cskt.image_files import jpeg

UPRIGHT = 1
"""Orientation of an image that is stored upright, or has no tag."""
_TAG = 0x0112
_SIGNS = (b"Exif", b"EXIF", b"exif", b"eXIf", b"tiff:Orientation", b"adobe.xmp")
"""One of these is in every file with the tag, but for AVIF."""
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_APP1 = 0xE1


def may_be_turned(data: bytes) -> bool:
    """Return, from a quick search, whether a file may have an orientation; most have none."""
    return data[4:8] == b"ftyp" or any(sign in data for sign in _SIGNS)


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation of a JPEG file, 1 to 8; 1 if the metadata is damaged.

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
    return orientation_of(image)


def orientation_of(image: Image.Image) -> int:
    """Return the orientation that is still to be applied to a loaded image, 1 to 8; 1 if the metadata is damaged.

    Pillow itself applies that of a TIFF file when it loads it, and pillow-heif that of a HEIC file.
    """
    try:
        orientation = image.getexif().get(_TAG, UPRIGHT)
    except Exception:  # noqa: BLE001  (Pillow's reader of metadata raises many kinds of errors on damaged ones)
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
