"""Formats of image files that can be read here."""

from __future__ import annotations

import importlib.util
import re
from functools import cache

from PIL import features

# Listed because Pillow would also start external programs (EPS) or fetch other files.
ALWAYS_READ: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats as Pillow names them."""
COMMON_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
AVIF_SUFFIXES = frozenset({".avif"})
HEIC_SUFFIXES = frozenset({".heic", ".heif"})
_HEIC = re.compile(rb"....ftyp(hei[cx]|hev[cx]|mif1|msf1)", re.DOTALL)
NEEDS_HEIC = "a HEIC file, which needs an extra: pip install 'cskt[heic]'"


def reads_avif() -> bool:
    """Tell whether this Pillow decodes AVIF; its wheels do from version 11.3 on."""
    return bool(features.check("avif")) if "avif" in features.modules else False


def reads_heic() -> bool:
    """Tell whether pillow-heif is installed, which the extra `heic` brings."""
    return importlib.util.find_spec("pillow_heif") is not None


def suffixes() -> frozenset[str]:
    """Return the endings of the files that are taken for images, in lower case."""
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


def is_heic(data: bytes) -> bool:
    """Tell from its first bytes whether a file is HEIC."""
    return _HEIC.match(data) is not None
