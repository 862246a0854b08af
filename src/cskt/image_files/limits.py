"""Limits on image files that are checked before anything is decoded.

A file of a few kilobytes can claim gigabytes of pixels, or a million parts that a decoder reads one by one. The sizes
and the number of parts are read from the header, so that such a file is refused at almost no cost.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

from cskt.errors import CsktError, RefusedImageError

REMEDY = "replace the file or leave it out"
"""For files that are corrupt or no images."""
MAX_FILE_BYTES = 256_000_000
"""Bytes of an image file; larger ones are not read."""
MAX_PIXELS = 64_000_000
"""Width times height."""
MAX_SIDE_PIXELS = 30_000
"""Width or height. Panoramas of phones reach 20,000."""
MAX_ASPECT_RATIO = 50
"""Long side divided by short side. Crops of persons stay below 10, panoramas below 20."""
MAX_SCANNED_PIXELS = 16 * MAX_PIXELS
"""Pixels times scans of a JPEG. A progressive file passes over its pixels once per scan, and a scan may take a few
bytes; common files have ten."""
MAX_PARTS = 50_000
"""Segments, chunks, blocks, strips or tiles of a file. Pillow walks them in Python."""
MAX_INTERPRETED_PIXELS = 500_000
"""Pixels of a file that Pillow decodes in Python, pixel by pixel (BMP with run lengths)."""
MAX_INTERPRETED_BYTES = 1_000_000
"""Bytes of such a file."""
PPM_HEADER_BYTES = 4096
"""Longest header of a PPM file, comments included."""

_OTHER_PPM = re.compile(rb"P[0123fy]")
_PPM_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_PPM_HEADER = re.compile(rb"P([456])%b(\d{1,10})%b(\d{1,10})" % (_PPM_SPACE, _PPM_SPACE))
_PPM_MAXIMUM = re.compile(rb"%b(\d{1,10})\s" % _PPM_SPACE)
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_TIFF_SHORT = 3
_PART_TAGS = (273, 279, 324, 325)
"""TIFF tags with one value for every strip or tile: offsets and byte counts."""


def check_size(height: int, width: int) -> None:
    """Check the size in the header of an image, in pixels, before it is decoded."""
    if height * width > MAX_PIXELS:
        raise RefusedImageError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}; scale it down")
    if max(height, width) > MAX_SIDE_PIXELS:
        raise RefusedImageError(
            f"{width} x {height} pixels; a side has at most {MAX_SIDE_PIXELS:,} pixels; scale it down"
        )
    if max(height, width) > MAX_ASPECT_RATIO * max(1, min(height, width)):
        raise RefusedImageError(
            f"{width} x {height} pixels; the long side is at most {MAX_ASPECT_RATIO} times the short side; cut it"
        )


def check_scans(num_scans: int, height: int, width: int) -> None:
    """Raise RefusedImageError if a JPEG passes over its pixels too often."""
    if num_scans * height * width > MAX_SCANNED_PIXELS:
        raise RefusedImageError(
            f"{num_scans:,} scans of {width} x {height} pixels would take too long to decode; save it as another JPEG"
        )


def check_parts(data: bytes) -> None:
    """Check that a file other than a JPEG can be opened at little cost; `cskt.image_files.jpeg` reads JPEG files."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith(b"GIF8"):
        _check_gif(data)
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _check_tiff(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_webp(data)
    elif _OTHER_PPM.match(data):
        raise RefusedImageError(
            f"a plain-text or unusual PPM ({data[:2].decode()}), which is not read; save it as binary PPM (P4, P5, P6)"
        )
    elif data[:2] in (b"P4", b"P5", b"P6"):
        read_ppm_header(data)


def check_decoder(image: Image.Image, num_bytes: int) -> None:
    """Raise RefusedImageError if Pillow decodes an opened image in Python, and it is too large for that."""
    tiles = getattr(image, "tile", ())
    interpreted = any(tile[0] in Image.DECODERS for tile in tiles)
    if interpreted and (image.width * image.height > MAX_INTERPRETED_PIXELS or num_bytes > MAX_INTERPRETED_BYTES):
        raise RefusedImageError(
            f"{image.width} x {image.height} pixels in {num_bytes:,} bytes of a rare compression would take too long to"
            f" decode; at most {MAX_INTERPRETED_PIXELS:,} pixels and {MAX_INTERPRETED_BYTES:,} bytes;"
            " save it as PNG"
        )


def read_ppm_header(data: bytes) -> tuple[int, int, int, int, int]:
    """Read the header of a binary PPM file.

    Returns:
        The kind (4, 5 or 6), width and height in pixels, largest value of a channel, and the offset of its pixels.
    """
    head = data[:PPM_HEADER_BYTES]
    found = _PPM_HEADER.match(head)
    if found is None:
        raise corrupt(f"no PPM header in the first {PPM_HEADER_BYTES} bytes")
    kind, width, height = map(int, found.groups())
    check_size(height, width)
    if kind == 4:
        return kind, width, height, 1, found.end() + 1
    maximum = _PPM_MAXIMUM.match(head, found.end())
    if maximum is None or not 0 < int(maximum[1]) < 2**16:
        raise corrupt("a PPM header without its largest value, 1 to 65535")
    return kind, width, height, int(maximum[1]), maximum.end()


def corrupt(reason: object) -> CsktError:
    """Return the error for a corrupt file."""
    return CsktError(f"corrupt image: {' '.join(str(reason).split())}; {REMEDY}")


def too_many_parts(parts: str) -> RefusedImageError:
    """Return the error for a file with more than `MAX_PARTS` of these parts."""
    return RefusedImageError(f"more than {MAX_PARTS:,} {parts} would take too long to read; save the image again")


def _check_png(data: bytes) -> None:
    position = 8
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    raise too_many_parts("PNG chunks")


def _check_gif(data: bytes) -> None:
    """Count the blocks before the first frame."""
    position = 13 + (6 << (data[10] & 7) if len(data) > 10 and data[10] & 128 else 0)
    num_blocks = 0
    while position < len(data) and data[position] not in b",;":
        if data[position] == ord("!"):
            position += 2
            while position < len(data) and data[position] and num_blocks <= MAX_PARTS:
                position += 1 + data[position]
                num_blocks += 1
        position += 1
        num_blocks += 1
        if num_blocks > MAX_PARTS:
            raise too_many_parts("GIF blocks")


def _check_tiff(data: bytes) -> None:
    """Check the tags of the first directory; an unreadable directory is left to Pillow."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    head, offset, entry = (f"{order}Q", 8, f"{order}HHQ") if big else (f"{order}H", 4, f"{order}HHL")
    value = f"{order}Q" if big else f"{order}L"
    entry_bytes = struct.calcsize(entry) + struct.calcsize(value)
    sides = {_TILE_WIDTH: 1, _TILE_LENGTH: 1}
    try:
        (start,) = struct.unpack_from(value, data, offset)
        (num_tags,) = struct.unpack_from(head, data, start)
        for number in range(min(num_tags, MAX_PARTS)):
            place = start + struct.calcsize(head) + number * entry_bytes
            tag, kind, count = struct.unpack_from(entry, data, place)
            if tag in _PART_TAGS and count > MAX_PARTS:
                raise too_many_parts("strips or tiles of a TIFF")
            if tag in sides:
                number_format = f"{order}H" if kind == _TIFF_SHORT else value
                (sides[tag],) = struct.unpack_from(number_format, data, place + struct.calcsize(entry))
    except struct.error:
        return
    if num_tags > MAX_PARTS:
        raise too_many_parts("TIFF tags")
    width, height = sides[_TILE_WIDTH], sides[_TILE_LENGTH]
    if width * height > MAX_PIXELS:
        raise RefusedImageError(
            f"tiles of {width} x {height} pixels are more than the limit of {MAX_PIXELS}; scale it down"
        )


def _check_webp(data: bytes) -> None:
    """Check the size; libwebp allocates memory for it when the file is opened."""
    head = data[12:30].ljust(18, b"\0")
    if head.startswith(b"VP8X"):
        check_size(1 + int.from_bytes(head[15:18], "little"), 1 + int.from_bytes(head[12:15], "little"))
    elif head.startswith(b"VP8L"):
        bits = int.from_bytes(head[9:13], "little")
        check_size(1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
    elif head.startswith(b"VP8 "):
        width, height = (int.from_bytes(head[place : place + 2], "little") & 0x3FFF for place in (14, 16))
        check_size(height, width)
