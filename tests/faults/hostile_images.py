"""Picture files that are unusual, corrupt, or lie about what they hold, made byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

EXIF_TURNS = range(1, 9)
ORIENTATION = 0x0112


def picture(width: int = 40, height: int = 96) -> Image.Image:
    """No two of its quarters are alike."""
    coarse = np.random.default_rng(0).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    """The file of a camera that was held another way: its pixels lie, and the tag says how."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(picture(), kind, exif=exif)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, depth: int = 1, colour: int = 0, pixels: bytes = b"", before: bytes = b"") -> bytes:
    """A PNG file of that header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    content = chunk(b"IDAT", pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + content + chunk(b"IEND", b"")


def zeros(num_bytes: int) -> bytes:
    """So many zeros, compressed."""
    packer, part = zlib.compressobj(9), bytes(2**20)
    packed = b"".join(packer.compress(part) for _ in range(num_bytes // len(part)))
    return packed + packer.compress(bytes(num_bytes % len(part))) + packer.flush()


def black_png(width: int, height: int) -> bytes:
    """A whole picture, of one bit to the pixel."""
    return png(width, height, pixels=zeros((1 + (width + 7) // 8) * height))


def grey_jpeg(width: int, height: int) -> bytes:
    """A whole picture of multiples of 16 pixels: every block is the code of "as before" and that of "no more"."""
    small = bytearray(encoded(Image.new("L", (16, 16), 128), "JPEG"))
    frame, scan = small.index(b"\xff\xc0"), small.index(b"\xff\xda")
    small[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    header = small[: scan + 2 + int.from_bytes(small[scan + 2 : scan + 4], "big")]
    return bytes(header) + b"\x28\xa2\x8a" * (width * height // 64 // 4) + b"\xff\xd9"


def jpeg_of_scans(width: int, height: int, num_scans: int) -> bytes:
    """A progressive JPEG that goes over its pixels time and again, twenty bytes to the scan."""

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content

    num_blocks = (width // 8) * (height // 8)
    start = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    start += segment(0xC2, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0))
    first = segment(0xC4, b"\x00" + b"\1" + bytes(15) + b"\0")  # one code, "0": as before
    first += segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-num_blocks // 8))
    # One code, "0": 2^14 blocks, and as many more as the fourteen bits after it say, have nothing to add.
    runs, rest = divmod(num_blocks, 2**15 - 1)
    bits = ("0" + "1" * 14) * runs + f"0{max(rest - 2**14, 0):014b}"
    packed = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big")
    packed = packed.replace(b"\xff", b"\xff\0")
    table = segment(0xC4, b"\x10" + b"\1" + bytes(15) + b"\xe0")
    return start + first + table + (segment(0xDA, b"\1\1\0\1\1\0") + packed) * num_scans + b"\xff\xd9"


def claiming(data: bytes, width: int, height: int) -> bytes:
    """Return a file whose header claims another size."""
    changed = bytearray(data)
    if data.startswith(b"\xff\xd8"):
        frame = data.index(b"\xff\xc0")
        changed[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif data.startswith(b"GIF8"):
        changed[6:10] = struct.pack("<HH", width, height)
    elif data.startswith(b"BM"):
        changed[18:26] = struct.pack("<ii", width, height)
    elif data.startswith(b"II*\0"):
        return _tiff_claiming(data, width, height)
    else:
        raise AssertionError("of no kind that this knows")
    return bytes(changed)


def tiff(tags: dict[int, tuple[int, int]]) -> bytes:
    """A TIFF file whose tags, (type, count) each, all have their values at its end."""
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    end = len(head) + 12 * len(tags) + 4
    entries = [
        struct.pack("<HHII", tag, kind, 1 if tag in (322, 323) else count, count if tag in (322, 323) else end)
        for tag, (kind, count) in sorted(tags.items())
    ]
    return head + b"".join(entries) + bytes(100)


def bmp_of_runs(width: int, height: int) -> bytes:
    """A black BMP with run lengths, which Pillow decodes in Python."""
    row = b"\xff\0" * (width // 255) + bytes([width % 255, 0]) + b"\0\0"
    pixels = row * height + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(pixels), 0, 0, 1078) + header + bytes(1024) + pixels


def _tiff_claiming(data: bytes, width: int, height: int) -> bytes:
    changed = bytearray(data)
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag = struct.unpack_from("<H", data, entry)[0]
        if tag in (256, 257):
            struct.pack_into("<HHII", changed, entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(changed)
