"""JPEG files: decoded strictly, so that lost data is an error, with exceptions for harmless mistakes of their writers.

libjpeg fills the lost part of a corrupt file with grey and reports a warning. The same warnings are reported for files
that have all their pixels: an unknown JFIF revision, wrong fields in a start of scan, bytes between two markers. So a
file that the strict decoder refuses is decoded by Pillow, and checked for lost data in other ways.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from cskt.errors import CsktError
from cskt.image_files.formats import decoder_errors
from cskt.image_files.limits import MAX_PARTS, check_scans, check_size, corrupt, too_many_parts

SIGNATURE = b"\xff\xd8\xff"
"""First bytes of a JPEG file."""
DATA_LOST = ("premature end", "bad huffman code", "bad arithmetic code")
"""Words of libjpeg's warnings, in lower case, after which pixels are missing."""
WRONG_RESTART = "instead of rst"
"""Words of its warning of a restart marker with an unexpected number, after which pixels may be missing."""
CUT_SHORT = "truncated: Premature end of JPEG file"
_SCAN = b"\xff\xda"
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_JFIF, _ADOBE = 0xE0, 0xEE
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})
_COLOURS = {_JFIF: b"JFIF\0", _ADOBE: b"Adobe"}
"""Metadata that decides the colours, by its first bytes."""
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_RESTART = re.compile(rb"(?<!\xff)\xff+[\xd0-\xd7]")
_WHOLE_SCAN = b"\x00\x3f\x00"
"""Last fields of a start of scan in a sequential file: first and last coefficient, and their bits."""
_FILLER = bytes(np.random.default_rng(0).integers(1, 255, 64, dtype=np.uint8))
"""Bytes that a decoder reads only where a scan ends too early."""


class Segment(NamedTuple):
    """A marker of a JPEG file and what belongs to it."""

    marker: int
    content: bytes
    """Without the two bytes of its length."""
    scan: bytes = b""
    """Compressed data after a start of scan."""


def segments(data: bytes) -> Iterator[Segment]:
    """Yield the segments of a JPEG file up to its end marker; bytes between them are skipped, as libjpeg does."""
    position = 2
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, position)
        if found is None:
            raise corrupt(CUT_SHORT)
        marker, position = found[0][1], found.end()
        if marker == _END_OF_IMAGE:
            return
        if marker in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        content, position = data[position + 2 : position + length], position + max(length, 2)
        if marker != _START_OF_SCAN:
            yield Segment(marker, content)
            continue
        end = _SCAN_END.search(data, position)
        if end is None:
            raise corrupt(CUT_SHORT)
        yield Segment(marker, content, data[position : end.start()].rstrip(b"\xff"))
        position = end.start()
    raise too_many_parts("JPEG segments")


def read_size(data: bytes) -> tuple[int, int]:
    """Return the height and width of a JPEG file in pixels, which are within the limits."""
    for segment in segments(data):
        if segment.marker in _FRAMES:
            height, width = (int.from_bytes(segment.content[start : start + 2], "big") for start in (1, 3))
            check_size(height, width)
            return height, width
    raise corrupt("no frame in a JPEG file")


def decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG file to [H, W, 3] RGB, as Pillow does."""
    try:
        with decoder_errors():
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        check_size(height, width)
        check_scans(data.count(_SCAN), height, width)
        if colours in ("RGB", "YCbCr", "Gray"):
            return _decode_strictly(data, "RGB")
    except CsktError as error:
        if _is_data_lost(error):
            raise
    return _decode_with_pillow(data)


def _decode_strictly(data: bytes, colours: str) -> NDArray[np.uint8]:
    with decoder_errors():
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colours, strict=True)
        return pixels


def _is_data_lost(error: CsktError) -> bool:
    return any(words in str(error).lower() for words in DATA_LOST)


def _decode_with_pillow(data: bytes) -> NDArray[np.uint8]:
    """Decode a file that the strict decoder refuses or does not know, such as CMYK, and check that no data is lost."""
    check_scans(data.count(_SCAN), *read_size(data))
    plain, repaired, padded = _rewritten(data)
    pixels = _pillow_pixels(plain)
    try:
        with decoder_errors():
            is_cmyk = simplejpeg.decode_jpeg_header(repaired)[2] in ("CMYK", "YCCK")
        strict = _decode_strictly(repaired, "CMYK" if is_cmyk else "RGB")
    except CsktError as error:
        if _is_data_lost(error) or WRONG_RESTART in str(error).lower():
            raise
        # Other complaints of the strict decoder say nothing about the rest of the file.
        if not np.array_equal(_pillow_pixels(padded), pixels):
            raise corrupt("Corrupt JPEG data: premature end of data segment") from None
        return pixels
    if not is_cmyk and not np.array_equal(strict, pixels):
        raise corrupt("Corrupt JPEG data: premature end of a restart interval")
    return pixels


def _pillow_pixels(data: bytes) -> NDArray[np.uint8]:
    with decoder_errors():
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
    check_size(image.height, image.width)
    with decoder_errors():
        return np.array(image.convert("RGB"))


def _rewritten(data: bytes) -> list[bytes]:
    """Return three versions of a file without its metadata.

    As it is; with the harmless mistakes repaired that the strict decoder refuses; and with bytes after every scan and
    restart interval, which change the picture only if one ended too early.
    """
    files = [bytearray(b"\xff\xd8") for _ in range(3)]
    is_sequential = False
    for marker, content, scan in segments(data):
        is_sequential = is_sequential or marker in _SEQUENTIAL_FRAMES
        if marker in _METADATA and not (marker in _COLOURS and content.startswith(_COLOURS[marker])):
            continue
        repaired = _repaired(marker, content, is_sequential), _renumbered(scan)
        for file, (header, body) in zip(files, ((content, scan), repaired, (content, _padded(scan))), strict=True):
            file.extend(bytes([0xFF, marker]) + (len(header) + 2).to_bytes(2, "big") + header + body)
    return [bytes(file + b"\xff\xd9") for file in files]


def _repaired(marker: int, content: bytes, is_sequential: bool) -> bytes:
    if marker == _JFIF:
        return content[:5] + b"\1" + content[6:]
    if marker == _ADOBE and content[11:12] > b"\2":
        return content[:11] + b"\1" + content[12:]
    if marker == _START_OF_SCAN and is_sequential:
        return content[:-3] + _WHOLE_SCAN
    return content


def _renumbered(scan: bytes) -> bytes:
    numbers = itertools.count()
    return _RESTART.sub(lambda _: bytes([0xFF, 0xD0 + next(numbers) % 8]), scan)


def _padded(scan: bytes) -> bytes:
    return _RESTART.sub(lambda restart: _FILLER + restart[0], scan) + _FILLER if scan else scan
