"""AVIF and HEIC: read where Pillow and the extra bring them, and named where they do not."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cskt.errors import CsktError, FileSystemError
from cskt.image_files import decode
from cskt.image_files import formats as image_formats
from cskt.image_files.decode import decode_image, image_size

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)).resize((64, 96), 3)
KINDS = ["AVIF", "HEIF"]


def encoded(kind: str, **options: object) -> bytes:
    assert kind in image_formats.formats()
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_pillows(kind: str) -> None:
    data = encoded(kind)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(data), expected) and image_size(data) == (96, 64)
    assert np.abs(expected.astype(int) - np.asarray(PICTURE)).mean() < 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_is_one_line(kind: str) -> None:
    data, draw = encoded(kind), np.random.default_rng(0)
    for length in range(12, len(data), max(1, len(data) // 20)):
        with pytest.raises(ValueError, match="^image: "):
            decode_image(data[:length])
    for _ in range(40):
        corrupt = bytearray(data)
        for position in draw.integers(0, len(corrupt), 5):
            corrupt[position] = draw.integers(256)
        try:
            assert decode_image(bytes(corrupt), apply_orientation=True).shape[2] == 3
        except ValueError as error:
            assert str(error).startswith("image: ") and "\n" not in str(error)


def test_heic_is_turned_once() -> None:
    """pillow-heif applies the rotation of the file, and takes it out of the metadata."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("HEIF", exif=exif)
    assert np.array_equal(decode_image(data), decode_image(data, apply_orientation=True))


def test_heic_without_the_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("HEIF")
    monkeypatch.setattr(image_formats, "reads_heic", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'cskt\[heic\]'"):
        decode_image(data)


def test_suffixes_follow_what_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {".avif", ".heic", ".heif", ".jpg"} <= image_formats.suffixes()
    monkeypatch.setattr(image_formats, "reads_heic", lambda: False)
    monkeypatch.setattr(image_formats, "reads_avif", lambda: False)
    assert image_formats.suffixes() == image_formats.COMMON_SUFFIXES


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    PICTURE.save(path)

    def deny(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(FileSystemError) as caught:
        decode_image(path)
    assert str(caught.value) == f"{path}: permission denied; make it readable or leave it out"


def test_an_error_of_our_own_code_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(decode, "_decode_opened", broken)
    with pytest.raises(ValueError, match="^operands could not be broadcast") as caught:
        decode_image(encoded("AVIF"))
    assert not isinstance(caught.value, CsktError)
