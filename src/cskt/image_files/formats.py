"""Image files of every format but JPEG: opened by Pillow and converted to RGB of 8 bits per channel.

The conversion is Pillow's `convert("RGB")`, without transparency. It differs for grey values of more than 8 bits, which
Pillow clips to white: 16 bits are scaled to 8 where the picture uses them. Values whose range is not known, so that the
picture would be nearly black or white, are an error.
"""

from __future__ import annotations

import importlib.util
import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from cskt.errors import CsktError, RefusedImageError, out_of_memory_errors
from cskt.image_files.limits import REMEDY, check_decoder, check_parts, check_size, corrupt, read_ppm_header

# Listed because Pillow would also start external programs (EPS) or fetch other files.
ALWAYS_READ: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats as Pillow names them."""
COMMON_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
AVIF_SUFFIXES = frozenset({".avif"})
HEIC_SUFFIXES = frozenset({".heic", ".heif"})
DARKEST = 16
"""Largest 8-bit value of a picture that is taken for black: what 12 bits leave of 16."""
REMEDY_RANGE = "save it with 8 bits per channel"
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0
_DEEP = re.compile(r"\b(LA|RGB[AaX]?);16[BLN]")
"""Pillow's names for channels of 16 bits, of which it keeps the upper 8."""
_HEIC = re.compile(rb"....ftyp(hei[cx]|hev[cx]|mif1|msf1)", re.DOTALL)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, IndexError, OverflowError,
    UserWarning,
)  # fmt: skip
"""Errors of Pillow, pillow-heif and simplejpeg on corrupt files; warnings, where Python raises them."""


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
    known = formats()
    with decoder_errors():
        image = Image.open(io.BytesIO(data), formats=known)
    check_size(image.height, image.width)
    check_decoder(image, len(data))
    return image


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Load an image and convert it to RGB, [H, W, 3]."""
    is_deep = any(_DEEP.search(str(tile[3])) for tile in getattr(image, "tile", ()))
    with decoder_errors():
        image.load()
    if image.mode.startswith("I"):
        image = Image.fromarray(_grey(image))
    elif image.mode == "F":
        raise RefusedImageError(f"its pixels are real numbers of unknown range, not 8 bits per channel; {REMEDY_RANGE}")
    with decoder_errors():
        if image.mode == "La":
            image = image.convert("LA")
        elif "transparency" in image.info:  # straight to RGB, Pillow warns about palettes with transparency
            image = image.convert("RGBA")
        pixels = np.array(image.convert("RGB"))
    if is_deep and pixels.max(initial=0) < DARKEST:
        raise RefusedImageError(f"the values of its 16-bit channels are below 4096 and would be black; {REMEDY_RANGE}")
    return pixels


def decode_ppm(data: bytes) -> NDArray[np.uint8]:
    """Decode a binary PPM file with grey or colour values to [H, W, 3], whatever its largest value is.

    The pixels are Pillow's, which decodes largest values other than 255 and 65535 in Python, value by value.
    """
    kind, width, height, maximum, start = read_ppm_header(data)
    shape = (height, width, 3) if kind == 6 else (height, width)
    kept_maximum = 255 if kind == 6 or maximum < 2**8 else 2**16 - 1
    stored = np.dtype("u1" if maximum < 2**8 else ">u2")
    if len(data) - start < stored.itemsize * int(np.prod(shape)):
        raise corrupt("the file is truncated: it has fewer pixels than its header says")
    values = np.frombuffer(data, stored, int(np.prod(shape)), start).reshape(shape)
    if maximum != kept_maximum:
        scaled = np.rint(np.arange(2 ** (8 * stored.itemsize)) / maximum * kept_maximum)
        values = scaled.clip(max=kept_maximum).astype(np.uint8 if kept_maximum == 255 else np.uint16)[values]
    return to_rgb(Image.fromarray(values.astype(values.dtype.newbyteorder("="))))


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Convert grey values of 16 or 32 bits to 8: as they are where they fit, else their upper 8 bits."""
    values = np.asarray(image)
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 2**16 - 1 - values  # Pillow inverts such TIFF files of up to 8 bits only
    lowest, highest = int(values.min(initial=0)), int(values.max(initial=0))
    if lowest < 0:
        raise RefusedImageError(f"its values are negative, down to {lowest}; {REMEDY_RANGE}")
    if highest < 2**8:
        return values.astype(np.uint8)
    # A binary PPM states its largest value, and Pillow scales it to 65535.
    if image.mode == "I" and image.format != "PPM":
        raise RefusedImageError(f"its values are 32-bit integers of unknown range, up to {highest}; {REMEDY_RANGE}")
    bits = tuple(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ()))  # 12 in some TIFF files, else 16
    shift = 4 if bits == (12,) else 8
    if highest >> shift < DARKEST:
        raise RefusedImageError(f"its 16-bit values are at most {highest} and would be nearly black; {REMEDY_RANGE}")
    return (values >> shift).astype(np.uint8)


@contextmanager
def decoder_errors() -> Iterator[None]:
    """Turn the errors of a decoder on a corrupt file into a CsktError; the block is one call of Pillow or simplejpeg.

    Raises:
        CsktError: the file is corrupt or of no known format.
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
        raise corrupt(error) from None
