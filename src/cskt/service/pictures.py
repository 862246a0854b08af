"""Picture files from outside and back: size checked before decoding, type told by content and never by name."""

from __future__ import annotations

import base64
import binascii
import io
import re

from PIL import Image

from cskt.data.images import BOMBS, DECODING_ERRORS, FORMATS, decode_image
from cskt.service.errors import ServiceError
from cskt.service.settings import ServiceSettings

SIGNATURES = {
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/bmp": re.compile(rb"BM"),
    "image/tiff": re.compile(rb"II\*\0|MM\0\*"),
}
"""How files of each type begin."""
SUFFIXES = {"image/jpeg": ".jpg", "application/octet-stream": ".bin"}


def content_type(data: bytes) -> str:
    """The type of a picture file by its first bytes; anything else is bytes that no browser opens."""
    found = (name for name, signature in SIGNATURES.items() if signature.match(data))
    return next(found, "application/octet-stream")


def download_name(image_id: str, type_name: str) -> str:
    """A harmless file name for a crop: the end of its name in ASCII letters, and the suffix of its type."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", image_id.rpartition("/")[2].rpartition(".")[0] or image_id)[-80:].strip("-")
    return (stem or "crop") + SUFFIXES.get(type_name, f".{type_name.rpartition('/')[2]}")


def decode_base64(text: str, settings: ServiceSettings) -> bytes:
    """The bytes of an image file that came inside JSON.

    Raises:
        ServiceError: 413 too many bytes, 422 no base64.
    """
    if len(text) > settings.image_bytes * 4 // 3 + 4:
        raise ServiceError(
            413, "image_too_large", f"an image has at most {settings.image_bytes:,} bytes; scale it down"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ServiceError(422, "bad_base64", "an image is sent as its file's bytes in plain base64") from None


def check_pixels(data: bytes, settings: ServiceSettings) -> None:
    """See from its header that an image can be decoded in little memory.

    Raises:
        ValueError: it has too many pixels, or is no image; says so in a line.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            num_pixels = image.width * image.height
    except BOMBS:
        num_pixels = settings.image_pixels + 1
    except DECODING_ERRORS:
        raise ValueError(f"not an image of a known format ({', '.join(FORMATS)}); save it as one") from None
    if num_pixels > settings.image_pixels:
        raise ValueError(f"the image has more than {settings.image_pixels:,} pixels; scale it down")


def decode_query(data: bytes, settings: ServiceSettings) -> Image.Image:
    """The picture of a query, decoded, so that a bad one is refused before it joins a batch.

    Raises:
        ServiceError: 422, it cannot be decoded.
    """
    try:
        check_pixels(data, settings)
        return Image.fromarray(decode_image(data))
    except ValueError as error:
        raise ServiceError(422, "bad_image", str(error)) from None
