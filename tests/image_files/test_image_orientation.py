"""EXIF orientation of every format: left alone by default, applied once where asked for."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from cskt.image_files.decode import decode_image, stored_orientation, turned
from cskt.image_files.formats import formats, reads_avif

TAG = 0x0112
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)).resize((24, 40), 0)


def tagged(kind: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[TAG] = orientation
    buffer = io.BytesIO()
    PICTURE.convert(str(options.pop("mode", "RGB"))).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def pillows(data: bytes, *, upright: bool) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        return np.asarray((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))


KINDS = [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"mode": "L"}), ("JPEG", {"mode": "CMYK"}), ("PNG", {}),
    ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}), ("AVIF", {}),
]  # fmt: skip


CASES = [
    (kind, options, orientation)
    for kind, options in KINDS
    for orientation in (range(1, 9) if "compression" in options else range(10))  # libtiff writes no other number
]


@pytest.mark.parametrize(("kind", "options", "orientation"), CASES)
def test_every_orientation_of_every_format(kind: str, options: dict[str, object], orientation: int) -> None:
    if kind == "AVIF" and not reads_avif():
        pytest.skip("this Pillow has no AVIF")
    data = tagged(kind, orientation, **options)
    assert np.array_equal(decode_image(data), pillows(data, upright=False))
    upright = pillows(data, upright=True)
    assert np.array_equal(decode_image(data, apply_orientation=True), upright)
    assert upright.shape == ((24, 40, 3) if 5 <= orientation <= 8 else (40, 24, 3))
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        assert np.array_equal(decode_image(image, apply_orientation=True), upright)
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        assert np.array_equal(decode_image(ImageOps.exif_transpose(image), apply_orientation=True), upright)
    known = orientation if 1 <= orientation <= 8 and kind != "TIFF" else 1
    assert stored_orientation(data) == known


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillows(orientation: int) -> None:
    image = PICTURE.copy()
    image.getexif()[TAG] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(turned(np.asarray(PICTURE), orientation), expected)
    assert turned(np.asarray(PICTURE), orientation).flags.c_contiguous


def test_metadata_of_two_segments_and_of_xmp() -> None:
    jpeg = tagged("JPEG", 6)
    start = jpeg.index(b"\xff\xe1")
    length = int.from_bytes(jpeg[start + 2 : start + 4], "big")
    exif = jpeg[start : start + 2 + length]
    assert stored_orientation(jpeg[:start] + exif + jpeg[start:]) == 6
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="8"/>'
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
    data = jpeg[:start] + segment + jpeg[start + 2 + length :]
    assert stored_orientation(data) == 8
    assert np.array_equal(decode_image(data, apply_orientation=True), pillows(data, upright=True))


def test_orientation_behind_the_pixels_of_a_png() -> None:
    png = tagged("PNG", 6)
    start = png.index(b"eXIf") - 4
    length = 12 + int.from_bytes(png[start : start + 4], "big")
    chunk, rest = png[start : start + length], png[:start] + png[start + length :]
    data = rest[:-12] + chunk + rest[-12:]
    assert stored_orientation(data) == 6
    assert decode_image(data, apply_orientation=True).shape == (24, 40, 3)


@pytest.mark.filterwarnings("error")
def test_damaged_metadata_is_no_reason_to_refuse_a_picture() -> None:
    jpeg = tagged("JPEG", 6)
    start = jpeg.index(b"Exif\0\0") + 6
    for place in range(start, start + 26):
        for value in (0, 255):
            data = jpeg[:place] + bytes([value]) + jpeg[place + 1 :]
            assert decode_image(data, apply_orientation=True).shape in ((40, 24, 3), (24, 40, 3))
            assert stored_orientation(data) in range(1, 9)
    assert [stored_orientation(data) for data in (b"", b"Exif", b"\xff\xd8\xffExif", b"\x89PNG\r\n\x1a\neXIf")] == [
        1
    ] * 4


def test_files_without_a_tag_are_not_searched_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG")
    monkeypatch.setattr("cskt.image_files.decode.jpeg_orientation", None)
    assert decode_image(buffer.getvalue(), apply_orientation=True).shape == (40, 24, 3)
