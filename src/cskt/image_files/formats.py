"""Formats of image files that are read, opening a file of one, and the errors of their decoders."""

from __future__ import annotations

import importlib.util
import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import Image, UnidentifiedImageError, features

from cskt.errors import CsktError, RefusedImageError, out_of_memory_errors
from cskt.image_files.limits import REMEDY, check_decoder, check_parts, check_size, damaged

# Listed because Pillow would also start external programs (EPS) or fetch other files.
ALWAYS_READ: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats as Pillow names them."""
COMMON_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
AVIF_SUFFIXES = frozenset({".avif"})
HEIC_SUFFIXES = frozenset({".heic", ".heif"})
_HEIC = re.compile(rb"....ftyp(hei[cx]|hev[cx]|mif1|msf1)", re.DOTALL)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, IndexError, OverflowError,
    UserWarning,
)  # fmt: skip
"""Errors of Pillow, pillow-heif and simplejpeg on damaged files; warnings, where Python raises them."""


def reads_avif() -> bool:
    """Return whether this Pillow decodes AVIF; its wheels do from version 11.3 on."""
    return bool(features.check("avif")) if "avif" in features.modules else False


def reads_heic() -> bool:
    """Return whether pillow-heif is installed, which the extra `heic` brings."""
    return importlib.util.find_spec("pillow_heif") is not None


def suffixes() -> frozenset[str]:
    """Return the endings, in lower case, of the files that are taken for images."""
    avif, heic = AVIF_SUFFIXES if reads_avif() else set(), HEIC_SUFFIXES if reads_heic() else set()
    return COMMON_SUFFIXES | avif | heic


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that are read, as Pillow names them, ready for `PIL.Image.open`."""
    names = ALWAYS_READ
    if reads_avif():
        names += ("AVIF",)
    if reads_heic():
        import pillow_heif  # noqa: PLC0415  (an extra)

        pillow_heif.register_heif_opener()
        names += ("HEIF",)
    return names


def open_image(data: bytes) -> Image.Image:
    """Open an image file other than a JPEG within the limits of `cskt.image_files.limits`; nothing is decoded."""
    check_parts(data)
    if _HEIC.match(data) and not reads_heic():
        raise RefusedImageError("a HEIC file, which needs an extra: pip install 'cskt[heic]'")
    with decoder_errors():
        image = Image.open(io.BytesIO(data), formats=formats())
    check_size(image.height, image.width)
    check_decoder(image, len(data))
    return image


@contextmanager
def decoder_errors() -> Iterator[None]:
    """Turn the errors of a decoder on a damaged file into a CsktError; the block is one call of Pillow or simplejpeg.

    Raises:
        CsktError: the file is damaged or of no known format.
        RefusedImageError: it claims to be larger than Pillow's own limit.
        OutOfMemoryError: there is too little memory.
    """
    try:
        with out_of_memory_errors():
            yield
    except CsktError:
        raise
    except UnidentifiedImageError:
        raise CsktError(f"not an image of a known format ({', '.join(formats())}); {REMEDY}") from None
    except _BOMBS as error:
        raise RefusedImageError(f"{error}; scale it down") from None
    except _DECODING_ERRORS as error:
        raise damaged(error) from None
