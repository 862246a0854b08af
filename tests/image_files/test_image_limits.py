"""Limits that are checked before decoding, and how often an image is resized."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import cskt.image_files.decode as decode_module
from cskt.data.images import BOX_REDUCE_FROM, BOX_REDUCE_TO, resize
from cskt.image_files.decode import decode_image, image_size
from cskt.image_files.limits import (
    MAX_ASPECT_RATIO,
    MAX_INTERPRETED_PIXELS,
    MAX_PIXELS,
    MAX_SIDE_PIXELS,
    check_parts,
    check_scans,
    check_size,
    read_ppm_header,
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (1, 50), (50, 1), (3, 150), (128, 384), (8_000, 8_000), (20_000, 3_000), (30_000, 600), (16_000, 4_000)],
)
def test_crops_photographs_and_panoramas_are_taken(width: int, height: int) -> None:
    check_size(height, width)


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        (1, 51, "at most 50 times the short side"),
        (102, 2, "at most 50 times the short side"),
        (599, 30_000, "at most 50 times the short side"),
        (1, 23_900_000, "at most 30,000 pixels"),
        (1, 64_000_000, "at most 30,000 pixels"),
        (30_001, 2_000, "at most 30,000 pixels"),
        (8_001, 8_000, "limit of 64000000"),
    ],
)
def test_others_are_refused_with_the_limit(width: int, height: int, words: str) -> None:
    with pytest.raises((ValueError, Image.DecompressionBombError), match=words):
        check_size(height, width)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_the_header_alone_refuses_a_sliver(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (3, 900)), kind)

    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(decode_module, "to_rgb", never)
    monkeypatch.setattr("cskt.image_files.jpeg.simplejpeg.decode_jpeg", never)
    for read in (decode_image, image_size):
        with pytest.raises(ValueError, match=r"^image: .*3 x 900 pixels; the long side is at most 50 times"):
            read(data)


def test_size_is_read_from_the_header() -> None:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        assert image_size(encoded(Image.new("RGB", (40, 96)), kind)) == (96, 40), kind


@pytest.mark.parametrize(
    ("width", "height", "most_passes"),
    [(50, 120, 1), (300, 700, 1), (600, 30_000, 2), (30_000, 600, 2), (1, 50, 1), (8_000, 400, 2)],
)
def test_no_resize_is_larger_than_its_image(
    width: int, height: int, most_passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass of a resize gives the image's height at the new width: that is what a sliver made gigabytes of."""
    passes: list[tuple[int, ...]] = []

    def recording(images: torch.Tensor, size: tuple[int, int], **options: object) -> torch.Tensor:
        passes.append(tuple(images.shape[2:]))
        return resized(images, size, **options)  # type: ignore[arg-type]

    def reducing(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        assert resample == Image.Resampling.BOX
        passes.append((image.height, image.width))
        return reduced(image, size, resample)

    resized, reduced = F.interpolate, Image.Image.resize
    monkeypatch.setattr(F, "interpolate", recording)
    monkeypatch.setattr(Image.Image, "resize", reducing)
    assert resize(np.zeros((height, width, 3), np.uint8), 384, 128).shape == (3, 384, 128)
    assert 1 <= len(passes) <= most_passes
    rows, columns = passes[-1]
    assert rows <= BOX_REDUCE_FROM * 384 and columns <= BOX_REDUCE_FROM * 128
    assert rows * 128 <= MAX_SIDE_PIXELS * 128


def test_ordinary_images_are_resized_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "resize", None)
    pixels = np.random.default_rng(0).integers(0, 256, (BOX_REDUCE_FROM * 24, BOX_REDUCE_FROM * 8, 3), dtype=np.uint8)
    expected = F.interpolate(
        torch.from_numpy(pixels)[None].permute(0, 3, 1, 2), (24, 8), mode="bilinear", antialias=True
    )[0]
    assert torch.equal(resize(pixels, 24, 8), expected)


def test_reducing_first_changes_little() -> None:
    height, width = 24, 8
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 5, 3), dtype=np.uint8))
    pixels = np.asarray(smooth.resize((BOX_REDUCE_FROM * width + 9, BOX_REDUCE_FROM * height + 7), 3))
    expected = F.interpolate(
        torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True
    )[0]
    assert (resize(pixels, height, width).int() - expected.int()).abs().max() <= 3
    assert BOX_REDUCE_TO < BOX_REDUCE_FROM


def test_scans_are_bounded_together_with_pixels() -> None:
    check_scans(16, 8_000, 8_000)
    check_scans(400, 160, 160)
    with pytest.raises(ValueError, match="17 scans of 8000 x 8000 pixels would take too long"):
        check_scans(17, 8_000, 8_000)


@pytest.mark.parametrize("maximum", [1, 7, 255, 254, 300, 4095, 65535])
@pytest.mark.parametrize("kind", [5, 6])
def test_binary_ppm_is_read_as_pillow_reads_it(kind: int, maximum: int) -> None:
    width, height = 7, 5
    stored = np.dtype("u1" if maximum < 256 else ">u2")
    channels = 3 if kind == 6 else 1
    values = np.random.default_rng(0).integers(0, maximum + 1, width * height * channels).astype(stored)
    values[0] = maximum
    data = b"P%d\n# a comment\n%d %d\n%d\n" % (kind, width, height, maximum) + values.tobytes()
    with Image.open(io.BytesIO(data)) as image:
        wide = image.mode == "I"
        expected = np.asarray(image) >> 8 if wide else np.asarray(image.convert("RGB"))
    found = decode_image(data)
    assert np.array_equal(found[..., 0] if wide else found, expected)


def test_ppm_that_pillow_decodes_in_python_is_not_given_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    assert decode_image(b"P6 2 1 254\n" + bytes([254, 127, 0] * 2)).tolist() == [[[255, 128, 0]] * 2]


@pytest.mark.parametrize(
    "data",
    [b"P5 2 2 0\n1234", b"P5 2 2 70000\n1234", b"P5 2 x 255\n", b"P6 1 1", b"P6 #" + b"x" * 5000 + b"\n1 1 255 123"],
)
def test_bad_ppm_headers_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="PPM header"):
        read_ppm_header(data)
    with pytest.raises(ValueError, match="^image: "):
        decode_image(data)


def test_ppm_cut_short_is_refused() -> None:
    data = b"P6 20 20 200\n" + bytes(1200)
    decode_image(data)
    for length in range(13, len(data), 97):
        with pytest.raises(ValueError, match="truncated"):
            decode_image(data[:length])


def test_what_pillow_decodes_in_python_is_bounded() -> None:
    def bmp(width: int, height: int) -> bytes:
        pixels = (b"\xff\0" * (width // 255) + bytes([width % 255, 0]) + b"\0\0") * height + b"\0\1"
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
        return b"BM" + struct.pack("<IHHI", 1078 + len(pixels), 0, 0, 1078) + header + bytes(1024) + pixels

    assert decode_image(bmp(128, 384)).shape == (384, 128, 3)
    assert MAX_INTERPRETED_PIXELS < 800 * 700
    with pytest.raises(ValueError, match="at most 500,000 pixels and 1,000,000 bytes"):
        decode_image(bmp(800, 700))


def test_plain_and_other_files_have_no_parts_to_count(tmp_path: Path) -> None:
    for data in (
        b"",
        b"P",
        b"GIF8",
        b"II*\0",
        b"MM\0*\xff\xff\xff\xff",
        b"RIFF....WEBP",
        b"\x89PNG\r\n\x1a\n",
        bytes(99),
    ):
        check_parts(data)
    big = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + struct.pack("<HHQQ", 273, 16, 10**6, 16) + bytes(8)
    with pytest.raises(ValueError, match="strips or tiles"):
        check_parts(big)
    assert MAX_ASPECT_RATIO * MAX_SIDE_PIXELS < MAX_PIXELS
