"""Image files from clients and back: the size is checked before decoding, the type is read from the content."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from cskt.errors import CsktError, OutOfMemoryError
from cskt.image_files.decode import decode_image, image_size
from cskt.service.http_errors import ServiceError
from cskt.service.settings import ServiceSettings

SIGNATURES = {
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/bmp": re.compile(rb"BM"),
    "image/tiff": re.compile(rb"II\*\0|MM\0\*"),
    "image/avif": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "image/heic": re.compile(rb"....ftyp(?:hei[cx]|hev[cx]|mif1|msf1)", re.DOTALL),
}
"""First bytes of the files of each type."""
MAX_DATA_URL_HEAD = 200
"""Characters of a data: URL before its data."""
DATA_URL = re.compile(rf"data:[^,]{{0,{MAX_DATA_URL_HEAD - 13}}};base64,", re.IGNORECASE)
SUFFIXES = {"image/jpeg": ".jpg", "application/octet-stream": ".bin"}


def content_type(data: bytes) -> str:
    """Return the type of an image file by its first bytes; other files are bytes that no browser opens."""
    found = (name for name, signature in SIGNATURES.items() if signature.match(data))
    return next(found, "application/octet-stream")


def download_name(image_id: str, type_name: str) -> str:
    """Return a harmless file name for a crop: the end of its name in ASCII letters, and the suffix of its type."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", image_id.rpartition("/")[2].rpartition(".")[0] or image_id)[-80:].strip("-")
    return (stem or "crop") + SUFFIXES.get(type_name, f".{type_name.rpartition('/')[2]}")


def decode_base64(text: str, settings: ServiceSettings) -> bytes:
    """Return the bytes of a base64 text, plain or in a data: URL (RFC 2397), whose type is ignored."""
    if text[:5].lower() == "data:":
        if (head := DATA_URL.match(text)) is None:
            raise ServiceError(422, "bad_base64", "a data: URL of an image has the form data:image/png;base64,...")
        text = unquote(text[head.end() :])
    if len(text) > settings.image_bytes * 4 // 3 + 4:
        message = f"an image has at most {settings.image_bytes:,} bytes; scale it down"
        raise ServiceError(413, "image_too_large", message)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # not base64, or not ASCII
        message = "an image is sent as its file's bytes in base64, plain or in a data: URL"
        raise ServiceError(422, "bad_base64", message) from None


def check_pixels(data: bytes, settings: ServiceSettings) -> None:
    """Check from its header that an image can be decoded in little memory; raise a CsktError if not."""
    height, width = image_size(data)
    if height * width > settings.image_pixels:
        raise CsktError(f"the image has more than {settings.image_pixels:,} pixels; scale it down")


def decode_query(data: bytes, settings: ServiceSettings) -> NDArray[np.uint8]:
    """Decode the image of a query to upright RGB [H, W, 3], or refuse it."""
    try:
        check_pixels(data, settings)
        return decode_image(data, apply_orientation=True)
    except OutOfMemoryError:
        raise
    except CsktError as error:
        raise ServiceError(422, "bad_image", str(error)) from None
