"""Every mode and bit depth: Pillow's conversion, or an error; never black or white without a word."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from cskt.image_files.decode import decode_image
from cskt.image_files.formats import to_rgb

COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8))
RAMP = np.linspace(0, 1, 96).reshape(12, 8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(
    values: np.ndarray, bits: int, sample_format: int = 1, channels: int = 1, data: bytes = b"", white: int = 1
) -> bytes:
    """An uncompressed TIFF file; sample format 1 unsigned, 2 signed, 3 real; `white` 0: zero means white."""
    data = data or values.tobytes()
    height, width = values.shape[:2]
    tags: list[tuple[int, int, int]] = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 2 if channels == 3 else white),
        (273, 4, 0), (277, 3, channels), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    bits_at = start
    start += 2 * channels
    entries = b""
    for tag, kind, value in tags:
        if tag in (258, 339) and channels == 3:
            entries += (
                struct.pack("<HHII", tag, 3, 3, bits_at) if tag == 258 else struct.pack("<HHIHH", tag, 3, 1, 1, 0)
            )
        else:
            entries += struct.pack("<HHII", tag, kind, 1, start if tag == 273 else value)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + struct.pack("<H", bits) * channels + data


DOCUMENTED = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "RGBa"]


@pytest.mark.parametrize("mode", DOCUMENTED)
def test_documented_modes_are_converted_as_pillow_converts_them(mode: str) -> None:
    through = {"LAB": "RGB", "HSV": "RGB", "PA": "P", "RGBa": "RGBA"}.get(mode, "RGB")
    image = COLOURS.convert(through)
    if mode == "LAB":
        image = Image.frombytes("LAB", COLOURS.size, COLOURS.tobytes())
    elif mode != through:
        image = image.convert(mode)
    assert image.mode == mode
    assert np.array_equal(to_rgb(image), np.asarray(image.convert("RGB")))
    assert to_rgb(image).any()


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("1", "PNG", {}), ("1", "TIFF", {}), ("1", "TIFF", {"compression": "group4"}), ("1", "BMP", {}),
        ("1", "PPM", {}), ("L", "PNG", {"bits": 2}), ("L", "GIF", {}), ("P", "PNG", {"bits": 1}),
        ("P", "PNG", {"bits": 2}), ("P", "PNG", {"bits": 4}), ("P", "GIF", {}), ("P", "BMP", {}), ("P", "TIFF", {}),
        ("LA", "PNG", {}), ("LA", "TIFF", {}), ("PA", "TIFF", {}), ("CMYK", "JPEG", {}), ("CMYK", "TIFF", {}),
        ("CMYK", "TIFF", {"compression": "tiff_lzw"}), ("YCbCr", "JPEG", {}), ("YCbCr", "TIFF", {}),
        ("LAB", "TIFF", {}), ("RGBX", "TIFF", {}), ("RGBA", "TIFF", {}), ("RGBA", "WEBP", {"lossless": True}),
        ("L", "JPEG", {}),
    ],
)  # fmt: skip
def test_files_give_pillows_conversion(mode: str, kind: str, options: dict[str, object]) -> None:
    if mode == "P":
        image = COLOURS.quantize(2 ** int(str(options.get("bits", 8))))
    elif mode == "LAB":
        image = Image.frombytes("LAB", COLOURS.size, COLOURS.tobytes())
    else:
        image = COLOURS.convert("P").convert(mode) if mode == "PA" else COLOURS.convert(mode)
    data = encoded(image, kind, **options)
    with Image.open(io.BytesIO(data)) as reopened:
        expected = np.asarray(reopened.convert("RGB"))
    assert np.array_equal(decode_image(data), expected)
    assert np.array_equal(decode_image(Image.open(io.BytesIO(data))), expected)


def test_premultiplied_grey_is_converted_although_pillow_has_no_direct_way() -> None:
    image = COLOURS.convert("LA")
    assert np.array_equal(to_rgb(image.convert("La")), np.asarray(image.convert("RGB")))


EIGHT_BITS = (RAMP * 255).round()


@pytest.mark.parametrize(
    "data",
    [
        tiff(EIGHT_BITS.astype("<u2"), 16),
        tiff(EIGHT_BITS.astype("<i2"), 16, 2),
        tiff(EIGHT_BITS.astype("<u4"), 32),
        tiff(EIGHT_BITS.astype("<i4"), 32, 2),
        encoded(Image.fromarray(EIGHT_BITS.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray(EIGHT_BITS.astype(np.uint16)), "TIFF", compression="tiff_deflate"),
        encoded(Image.fromarray(EIGHT_BITS.astype(np.uint16)), "PNG"),
    ],
    ids=["uint16", "int16", "uint32", "int32", "Pillow's int32", "Pillow's uint16", "16-bit PNG"],
)
def test_eight_bit_values_in_wider_integers_are_taken_as_they_are(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(data), expected) and expected.max() == 255
    assert np.array_equal(decode_image(Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_sixteen_bits_that_are_used_keep_their_upper_eight(mode: str) -> None:
    values = (RAMP * 65535).astype(np.uint16)
    stored = values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    found = to_rgb(Image.frombytes(mode, (8, 12), stored))
    assert np.array_equal(found, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_twelve_bits_keep_their_upper_eight() -> None:
    values = (RAMP * 4095).astype(np.uint16)
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    found = decode_image(tiff(values, 12, data=packed.astype(np.uint8).tobytes()))
    assert np.array_equal(found[..., 0], (values >> 4).astype(np.uint8))


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff((RAMP * 4095).astype("<u2"), 16), "at most 4095 and would be nearly black"),
        (tiff((RAMP * 1023).astype("<u2"), 16), "at most 1023 and would be nearly black"),
        (encoded(grey((RAMP * 4095).astype(np.uint16)), "PNG"), "at most 4095 and would be nearly black"),
        (tiff((RAMP * 4095).astype("<i2"), 16, 2), "unknown range, up to 4095"),
        (tiff((RAMP * 65535).astype("<i4"), 32, 2), "unknown range, up to 65535"),
        (tiff((RAMP * 70000).astype("<u4"), 32), "unknown range, up to 70000"),
        (tiff((RAMP * 255 - 1).astype("<i2"), 16, 2), "negative, down to -1"),
        (tiff((RAMP * 255 - 200).astype("<i4"), 32, 2), "negative, down to -200"),
        (tiff(np.full((4, 4), 2**32 - 1, "<u4"), 32), "negative, down to -1"),
        (tiff(RAMP.astype("<f4"), 32, 3), "real numbers of unknown range"),
        (
            tiff(EIGHT_BITS.repeat(3, 1).reshape(12, 8, 3).astype("<u2"), 16, channels=3),
            "below 4096 and would be black",
        ),
    ],
)
def test_values_of_unknown_range_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        decode_image(data)
    assert "save it with 8 bits per channel" in str(caught.value) and "\n" not in str(caught.value)


def test_sixteen_bits_of_colour_that_are_used_are_pillows() -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (12, 8, 3)).astype("<u2")
    data = tiff(values, 16, channels=3)
    assert np.array_equal(decode_image(data), (values >> 8).astype(np.uint8))


def test_black_pictures_stay_black() -> None:
    for mode in ("1", "L", "I;16", "I", "RGB"):
        assert not decode_image(encoded(Image.new(mode, (8, 8)), "TIFF")).any(), mode


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_files_where_zero_means_white(bits: int) -> None:
    values = np.rint(RAMP * (2**bits - 1)).astype(f"<u{bits // 8}")
    pixels = decode_image(tiff(values, bits, white=0))
    assert np.array_equal(pixels[..., 0], 255 - (values >> (bits - 8)))
