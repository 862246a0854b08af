"""JPEG files with mistakes that cost no pixel are read as Pillow reads them; files that have lost data are refused."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from cskt.image_files.decode import decode_image
from cskt.image_files.jpeg import read_size, segments

GARBAGE = b"\x12\x34\x00\x56"
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"


def encoded(mode: str = "RGB", **options: object) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((60, 120), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


BASELINE, PROGRESSIVE = encoded(), encoded(progressive=True)
RESTARTS, CMYK = encoded(restart_marker_rows=1), encoded("CMYK")


def before(data: bytes, marker: int, number: int = 0, inserted: bytes = GARBAGE) -> bytes:
    """The file with bytes before the occurrence of a marker."""
    place = -1
    for _ in range(number + 1):
        place = data.index(bytes([0xFF, marker]), place + 1)
    return data[:place] + inserted + data[place:]


def scan_start(data: bytes) -> int:
    """Return the offset of the compressed data of the first scan."""
    start = data.index(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")


def jfif(major: int, data: bytes = BASELINE) -> bytes:
    assert data[6:11] == b"JFIF\0"
    return data[:11] + bytes([major]) + data[12:]


def scan_fields(fields: bytes) -> bytes:
    end = scan_start(BASELINE)
    return BASELINE[: end - 3] + fields + BASELINE[end:]


def restart_number(old: int, new: int) -> bytes:
    place = RESTARTS.index(bytes([0xFF, old]), scan_start(RESTARTS))
    return RESTARTS[: place + 1] + bytes([new]) + RESTARTS[place + 2 :]


ICC = b"\xff\xe2\0\x1aICC_PROFILE\0\x05\x02" + bytes(10)
HARMLESS = {
    "bytes before the quantisation table": before(BASELINE, 0xDB),
    "bytes before the second one": before(BASELINE, 0xDB, 1),
    "bytes before the frame": before(BASELINE, 0xC0),
    "bytes before a Huffman table": before(BASELINE, 0xC4),
    "bytes before the scan": before(BASELINE, 0xDA),
    "one byte": before(BASELINE, 0xDB, inserted=b"\0"),
    "stuffed bytes": before(BASELINE, 0xDB, inserted=b"\xff\0\xff\0"),
    "bytes between scans": before(PROGRESSIVE, 0xDA, 2),
    "bytes before the tables of a later scan": before(PROGRESSIVE, 0xC4, 2),
    "bytes before the end": BASELINE[:-2] + GARBAGE + BASELINE[-2:],
    "bytes before a restart marker": before(RESTARTS, 0xD1, 0),
    "restart marker of a far number": restart_number(0xD1, 0xD5),
    "first and last coefficient 0": scan_fields(b"\0\0\0"),
    "last coefficient 64": scan_fields(b"\0\x40\0"),
    "approximation in a sequential file": scan_fields(b"\0\x3f\x11"),
    "JFIF 0": jfif(0),
    "JFIF 3": jfif(3),
    "JFIF 255, progressive": jfif(255, PROGRESSIVE),
    "unknown density unit": BASELINE[:13] + b"\x09" + BASELINE[14:],
    "claims a JFIF thumbnail": BASELINE[:18] + b"\x50\x50" + BASELINE[20:],
    "unknown Adobe transform": BASELINE[:2] + ADOBE + b"\x05" + BASELINE[20:],
    "unknown Adobe transform beside JFIF": BASELINE[:20] + ADOBE + b"\x05" + BASELINE[20:],
    "wrong profile segment": BASELINE[:20] + ICC + BASELINE[20:],
    "garbage after the end": BASELINE + GARBAGE * 100,
    "another file after the end": BASELINE + PROGRESSIVE,
    "fill bytes": before(BASELINE, 0xDA, inserted=b"\xff" * 9),
    "several mistakes": before(jfif(7), 0xC4),
    "CMYK": CMYK,
    "CMYK with bytes before the frame": before(CMYK, 0xC0),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_mistakes_give_pillows_pixels(kind: str) -> None:
    with Image.open(io.BytesIO(HARMLESS[kind])) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(HARMLESS[kind]), expected)
    assert read_size(HARMLESS[kind]) == (120, 60)


def test_sound_files_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    for data in (BASELINE, PROGRESSIVE, RESTARTS):
        assert decode_image(data).shape == (120, 60, 3)


MISTAKES: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "JFIF 3": lambda data: jfif(3, data),
    "bytes before a table": lambda data: before(data, 0xDB),
    "wrong profile segment": lambda data: data[:20] + ICC + data[20:],
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("data", [BASELINE, PROGRESSIVE, RESTARTS], ids=["baseline", "progressive", "restarts"])
def test_lost_data_is_refused_whatever_else_is_wrong(data: bytes, mistake: str) -> None:
    whole = MISTAKES[mistake](data)
    decode_image(whole)
    for length in [*range(2, len(whole), 53), len(whole) - 2, len(whole) - 1]:
        with pytest.raises(ValueError, match="^image: "):
            decode_image(whole[:length])
    middle = (scan_start(whole) + len(whole)) // 2
    with pytest.raises(ValueError, match=r"[Pp]remature end|Huffman|RST"):
        decode_image(whole[:middle] + b"\xff\xd9")


def test_a_scan_that_ends_early_behind_a_harmless_mistake_is_refused() -> None:
    """The first warning is the harmless one, and libjpeg reports no other."""
    place = PROGRESSIVE.rindex(b"\xff\xda")
    later = place + (len(PROGRESSIVE) - place) // 2
    data = before(PROGRESSIVE, 0xDA, 1)
    cut = data[: later + len(GARBAGE)] + b"\xff\xd9"
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(cut, "RGB", strict=True)
    with pytest.raises(ValueError, match="premature end"):
        decode_image(cut)


def test_a_lost_restart_interval_is_refused() -> None:
    first, second = (RESTARTS.index(bytes([0xFF, number]), scan_start(RESTARTS)) for number in (0xD1, 0xD2))
    with pytest.raises(ValueError, match="corrupt image"):
        decode_image(RESTARTS[:first] + RESTARTS[second:])


def test_cmyk_is_checked_for_lost_data_too() -> None:
    """Pillow alone fills what is missing before an end marker with grey."""
    middle = (scan_start(CMYK) + len(CMYK)) // 2
    cut = CMYK[:middle] + b"\xff\xd9"
    with Image.open(io.BytesIO(cut)) as image:
        image.load()
    with pytest.raises(ValueError, match="premature end"):
        decode_image(cut)


def test_segments_end_at_the_end_marker() -> None:
    found = list(segments(BASELINE + b"\xff\xdb\0\4ab\xff\xd9"))
    assert [segment.marker for segment in found if segment.scan] == [0xDA]
    assert sum(segment.marker == 0xDB for segment in found) == BASELINE.count(b"\xff\xdb")
    with pytest.raises(ValueError, match="Premature end"):
        list(segments(BASELINE[:-2]))
    assert list(segments(b"\xff\xd8" + b"\xff" * 100_000 + b"\xd9")) == []
