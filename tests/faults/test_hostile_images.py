"""Pictures that are unusual, corrupt or mean ill, through every reader: one line, or the pixels; little memory."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hostile import SECONDS, in_a_process, limited, taken_or_refused
from hostile_images import (
    EXIF_TURNS,
    black_png,
    bmp_of_runs,
    chunk,
    claiming,
    encoded,
    grey_jpeg,
    jpeg_of_scans,
    picture,
    png,
    tiff,
    turned,
    zeros,
)  # fmt: skip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import cskt
from cskt.data.images import ImageReader
from cskt.data.loading import cached_images
from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing.encoding import prepare
from cskt.image_files.decode import decode_image
from cskt.image_files.limits import MAX_PIXELS
from cskt.report.pictured_results import load_crop
from cskt.service.http_errors import ServiceError
from cskt.service.settings import ServiceSettings
from cskt.service.uploads import decode_query
from fault_tries import LONG, record

TEST = "tests/faults/test_hostile_images.py"
# As for the commands, which let no warning of Pillow's onto the terminal.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

RGB = picture()
ALPHA = picture()
ALPHA.putalpha(100)
PALETTE = RGB.quantize(16)
GREY16 = Image.fromarray(np.linspace(0, 65535, 40 * 16).reshape(40, 16).astype(np.uint16))
FRAMES = {"save_all": True, "append_images": [ImageOps.flip(RGB), ImageOps.mirror(RGB)]}
JPEG, PNG, CMYK_JPEG = encoded(RGB, "JPEG"), encoded(RGB, "PNG"), encoded(RGB.convert("CMYK"), "JPEG")

TAKEN: dict[str, bytes] = {
    "1 x 1 JPEG": encoded(picture(1, 1), "JPEG"),
    "1 x 1 PNG": encoded(picture(1, 1), "PNG"),
    "1 x 1 GIF": encoded(picture(1, 1), "GIF"),
    "1 x 50 PNG": black_png(1, 50),
    "30,000 x 600 PNG": black_png(30_000, 600),
    "grey JPEG": encoded(RGB.convert("L"), "JPEG"),
    "CMYK JPEG": encoded(RGB.convert("CMYK"), "JPEG"),
    "progressive JPEG": encoded(RGB, "JPEG", progressive=True),
    "JPEG of 400 scans": jpeg_of_scans(160, 160, 400),
    "16-bit PNG": encoded(GREY16, "PNG"),
    "16-bit TIFF": encoded(GREY16, "TIFF"),
    "16-bit colour PNG": png(2, 2, depth=16, colour=2, pixels=zlib.compress((b"\0" + bytes(range(240, 252))) * 2)),
    "1-bit PNG": encoded(RGB.convert("1"), "PNG"),
    "32-bit whole numbers of 8 bits": encoded(Image.new("I", (8, 8), 200), "TIFF"),
    "PPM of 12 bits": b"P5 2 2 4095\n" + bytes(range(8)),
    "transparent PNG": encoded(ALPHA, "PNG"),
    "transparent grey PNG": encoded(RGB.convert("LA"), "PNG"),
    "palette": encoded(PALETTE, "PNG"),
    "palette with transparency": encoded(PALETTE, "PNG", transparency=bytes(range(16))),
    "transparent colour": encoded(RGB, "PNG", transparency=(0, 0, 0)),
    "animated GIF": encoded(RGB, "GIF", **FRAMES),
    "animated WebP": encoded(RGB, "WEBP", **FRAMES),
    "animated PNG": encoded(RGB, "PNG", **FRAMES),
    "TIFF of several pages": encoded(RGB, "TIFF", **FRAMES),
    "CMYK TIFF": encoded(RGB.convert("CMYK"), "TIFF"),
    "Lab TIFF": encoded(Image.new("LAB", (8, 8)), "TIFF"),
    "JPEG in a TIFF": encoded(RGB, "TIFF", compression="jpeg"),
    "picture of the size limit": black_png(8_000, 400),
    "JPEG and a zip": JPEG + b"PK\x03\x04" + bytes(100) + b"PK\x05\x06" + bytes(18),
    "PNG and a script": PNG + b"<script>alert(1)</script>",
    "JPEG with a program for a comment": JPEG[:2] + b"\xff\xfe\0\x1b<?php system($_GET['x']);" + JPEG[2:],
    "EXIF of noise": JPEG[:2] + b"\xff\xe1\0\x40Exif\0\0" + bytes(range(56)) + JPEG[2:],
    "PNG whose last chunk claims 2 GB": PNG[:33] + struct.pack(">I", 2**31 - 1) + PNG[37:],
    "EXIF turn 9": turned("JPEG", 9),
    "EXIF turn 0": turned("PNG", 0),
    "PNG with an unknown chunk": png(8, 8, pixels=zeros(16), before=chunk(b"teSt", bytes(1000))),
}
"""Unusual, but pictures."""
REFUSED: dict[str, tuple[bytes, str]] = {
    "1 x 60,000 PNG": (black_png(1, 60_000), "at most 30,000 pixels"),
    "60,000 x 1 PNG": (black_png(60_000, 1), "at most 30,000 pixels"),
    "1 x 23,900,000 PNG": (black_png(1, 23_900_000), "at most 30,000 pixels"),
    "1 x 51 PNG": (black_png(1, 51), "at most 50 times the short side"),
    "1 x 65,000 JPEG": (encoded(Image.new("RGB", (1, 65_000)), "JPEG"), "at most 30,000 pixels"),
    "a plain-text PPM": (b"P3 1 1 255 1 2 3", "plain-text"),
    "a plain-text PPM of comments": (b"P1\n" + b"#\n" * 1_000_000 + b"1 1 1", "plain-text"),
    "a PPM with a long header": (b"P6 #" + b" " * 1_000_000 + b"\n1 1 255\n123", "no PPM header"),
    "a PNG of a million chunks": (
        png(8, 8, pixels=zeros(16), before=chunk(b"teSt", b"") * 60_000), "more than 50,000 PNG chunks",
    ),
    "a CMYK JPEG of many segments": (
        CMYK_JPEG[:2] + b"\xff\xfe\0\2" * 60_000 + CMYK_JPEG[2:], "more than 50,000 JPEG segments",
    ),
    "a GIF of many blocks": (encoded(RGB, "GIF")[:781] + b"!\xfe\0" * 60_000 + b";", "more than 50,000 GIF blocks"),
    "a TIFF of many strips": (tiff({273: (4, 10**6), 279: (4, 10**6)}), "more than 50,000 strips"),
    "a TIFF of huge tiles": (tiff({322: (4, 60_000), 323: (4, 60_000)}), "scale it down"),
    "a WebP that claims 16 million pixels a side": (
        b"RIFF\x1e\0\0\0WEBPVP8X\n\0\0\0\0\0\0\0" + b"\xff" * 6, "scale it down",
    ),
    "a large BMP of run lengths": (bmp_of_runs(1_000, 1_000), "rare compression"),
    "32-bit whole numbers": (encoded(Image.new("I", (8, 8), 70_000), "TIFF"), "32-bit integers of unknown range"),
    "zero bytes": (b"", "the file is empty"),
    "one byte": (b"\xff", "not an image"),
    "zeros": (bytes(10_000), "not an image"),
    "noise": (np.random.default_rng(1).bytes(10_000), "not an image"),
    "noise that begins as a JPEG": (b"\xff\xd8\xff\xe0" + np.random.default_rng(2).bytes(10_000), "corrupt image"),
    "noise that begins as a PNG": (PNG[:8] + np.random.default_rng(3).bytes(10_000), "image"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "not an image"),
    "SVG of entities": (b'<!DOCTYPE s [<!ENTITY a "aaaa">]><svg>&a;&a;</svg>', "not an image"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file closefile\n", "not an image"),
    "PDF": (encoded(RGB, "PDF"), "not an image"),
    "icon": (encoded(RGB, "ICO"), "not an image"),
    "XPM": (b"/* XPM */\nstatic char *x[] = {\"1 1 1 1\", \"a c #000000\", \"a\"};", "not an image"),
    "JPEG 2000": (encoded(RGB, "JPEG2000"), "not an image"),
    "PSD": (b"8BPS\0\1" + bytes(20), "not an image"),
    "zip": (b"PK\x03\x04" + bytes(1000), "not an image"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not an image"),
    "20,000 x 20,000 PNG": (black_png(20_000, 20_000), "scale it down"),
    "20,000 x 20,000 JPEG": (grey_jpeg(20_000, 20_000), "scale it down"),
    "12,000 x 12,000 PNG": (black_png(12_000, 12_000), "scale it down"),
    "9,000 x 9,000 JPEG": (grey_jpeg(8_960, 8_960), "scale it down"),
    "a PNG that claims 2^31 pixels a side": (png(2**31 - 1, 2**31 - 1, pixels=zeros(10)), "scale it down"),
    "a JPEG that claims 65,500 x 65,500": (claiming(JPEG, 65_500, 65_500), "scale it down"),
    "a GIF that claims 65,535 x 65,535": (claiming(encoded(RGB, "GIF"), 65_535, 65_535), "scale it down"),
    "a BMP that claims 30,000 x 30,000": (claiming(encoded(RGB, "BMP"), 30_000, 30_000), "scale it down"),
    "a TIFF that claims 10^6 x 10^6": (claiming(encoded(RGB, "TIFF"), 10**6, 10**6), "scale it down"),
    "a PPM that claims 10^9 x 10^9": (b"P6 1000000000 1000000000 255\n", "scale it down"),
    "a PPM whose width has a thousand digits": (b"P6 " + b"9" * 1000 + b" 1 255\n", "corrupt image"),
    "a PPM without pixels": (b"P6 4000 4000 255\n", "corrupt image"),
    "a PNG without pixels": (png(4000, 4000, pixels=zeros(10)), "corrupt image"),
    "a JPEG that claims more rows": (claiming(JPEG, 40, 1_900), "corrupt image"),
    "a PNG of no width": (png(0, 10, pixels=zeros(10)), "image"),
    "a JPEG of no height": (claiming(JPEG, 40, 0), "image"),
    "a BMP of negative width": (claiming(encoded(RGB, "BMP"), -40, 96), "Image size"),
    "a JPEG of ten million scans' worth": (jpeg_of_scans(8_000, 8_000, 1_000), "take too long"),
    "a text bomb in a PNG": (
        png(8, 8, pixels=zeros(16), before=chunk(b"zTXt", b"a\0\0" + zeros(50_000_000)) * 3), "corrupt image",
    ),
    "a profile bomb in a PNG": (
        png(8, 8, pixels=zeros(16), before=chunk(b"iCCP", b"a\0\0" + zeros(50_000_000))), "corrupt image",
    ),
    "a PNG of a wrong checksum": (PNG[:40] + bytes([PNG[40] ^ 1]) + PNG[41:], "image"),
    "real numbers": (encoded(Image.new("F", (8, 8)), "TIFF"), "real numbers"),
    "a JPEG without its end": (JPEG[:-2], "Premature end"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "Premature end"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated"),
    "half a CMYK JPEG": (TAKEN["CMYK JPEG"][: len(TAKEN["CMYK JPEG"]) // 2], "truncated"),
    "half a WebP": (encoded(RGB, "WEBP")[:200], "image"),
}  # fmt: skip
"""No pictures; with what the line says."""


def train_reads(path: Path) -> object:
    return ImageReader(32, 16).read(path)


def gallery_reads(path: Path) -> object:
    read = prepare(path.read_bytes(), 32, 16)
    assert read.pixels.shape == (3, 32, 16) and len(read.thumbnail) > 100
    return read


def cache_reads(path: Path) -> object:
    return cached_images(path.parent / "cache", [path], ImageReader(32, 16), 0)


def service_reads(path: Path) -> object:
    try:
        return decode_query(path.read_bytes(), ServiceSettings(image_pixels=MAX_PIXELS))
    except ServiceError as error:
        assert error.status_code == 422
        raise CsktError(str(error)) from None


READERS: dict[str, Callable[[Path], object]] = {
    "training": train_reads, "gallery": gallery_reads, "cache": cache_reads, "service": service_reads,
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_every_reader(reader: str, tmp_path: Path) -> None:
    """Each case is called x.jpg, whatever it is."""
    path = tmp_path / "x.jpg"
    for kind, content in TAKEN.items():
        path.write_bytes(content)
        assert taken_or_refused(lambda: READERS[reader](path)) == "", kind
    for kind, (content, words) in REFUSED.items():
        path.write_bytes(content)
        message = taken_or_refused(lambda: READERS[reader](path))
        assert words in message or (reader == "service" and message), f"{kind}: {message or 'taken'}"
        assert reader in ("gallery", "service") or str(path) in message, f"{kind}: does not say which: {message}"
    assert not (tmp_path / "canary").exists() and not Path("canary").exists()
    record("pictures unusual, corrupt or turned", tried=len(TAKEN) + len(REFUSED), test=TEST)


CUT = {
    kind: encoded(RGB, kind, **options)
    for kind, options in {
        "JPEG": {"progressive": True}, "PNG": {}, "WEBP": {}, "GIF": {}, "BMP": {}, "PPM": {},
        "TIFF": {"compression": "tiff_deflate"},
    }.items()
}  # fmt: skip


@settings(
    max_examples=5000 if LONG else 300, derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    kind=st.sampled_from(sorted(CUT)),
    cut=st.none() | st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
def test_cut_and_altered_anywhere(kind: str, cut: float | None, changes: list[tuple[float, int]]) -> None:
    data = bytearray(CUT[kind])
    for share, value in changes:
        data[int(share**2 * len(data))] = value  # most of them in the header
    content = bytes(data[: None if cut is None else int(cut * len(data))])
    refused = taken_or_refused(lambda: prepare(content, 32, 16))
    assert refused or content, kind


def test_cut_at_every_byte() -> None:
    num_tried = 0
    for kind, data in CUT.items():
        step = 1 if LONG else max(1, len(data) // 60)
        for length in range(0, len(data) - 24, step):  # the end of a PNG is sums and a mark: all pixels are there
            message = taken_or_refused(lambda cut=data[:length]: decode_image(cut))
            assert message or kind in ("GIF", "TIFF", "BMP"), f"{kind}: taken, though cut after {length} bytes"
            num_tried += 1
    record("pictures cut short, at every byte", tried=num_tried, test=TEST)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_for_display_only(kind: str, tmp_path: Path) -> None:
    """Models see the pixels as they lie, as the published code does; reports show them upright. (Pillow itself turns
    TIFF, for both.)"""
    path = tmp_path / "x.jpg"
    for orientation in EXIF_TURNS:
        path.write_bytes(turned(kind, orientation))
        plain = np.asarray(Image.open(path).convert("RGB"))
        assert np.array_equal(decode_image(path), plain) and plain.shape == (96, 40, 3)
        shown = load_crop(path)
        assert shown is not None
        assert shown.size == ((40, 96) if orientation < 5 else (96, 40))
        upright = {
            1: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1],
            5: plain.transpose(1, 0, 2), 6: plain[::-1].transpose(1, 0, 2),
            7: plain[::-1, ::-1].transpose(1, 0, 2), 8: plain[:, ::-1].transpose(1, 0, 2),
        }[orientation]  # fmt: skip
        assert np.array_equal(np.asarray(shown), upright), orientation
    record("pictures unusual, corrupt or turned", tried=len(EXIF_TURNS), test=TEST)


@pytest.mark.skipif(sys.platform == "win32", reason="makes pipes and links")
def test_folders_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    """A pipe that nobody writes into would be waited for; /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "pipe-by-link.jpg").symlink_to("pipe.jpg")
    with (tmp_path / "sparse.jpg").open("wb") as stream:
        stream.truncate(2**40)
    places = sorted(tmp_path.glob("*.jpg"))
    for path in [*places, tmp_path / ("x" * 300 + ".jpg"), tmp_path / "a.jpg" / "b.jpg"]:
        for reader in (train_reads, cache_reads):
            message = taken_or_refused(partial(reader, path))
            assert str(path)[:200] in message, f"{path.name}: {message or 'taken'}"  # long ones are cut
    record("pictures that are no files, or would fill the memory", tried=len(places) + 2, test=TEST)


@pytest.mark.slow
def test_gallery_reports_what_it_cannot_read_and_takes_the_rest(
    tmp_path: Path, dolls: Path, tiny_backbone: Path
) -> None:
    crops = tmp_path / "crops"
    crops.mkdir()
    good = sorted(dolls.rglob("*.jpg"))[:3]
    for number, source in enumerate(good):
        shutil.copyfile(source, crops / f"good{number}.jpg")
    for number, (content, _) in enumerate(REFUSED.values()):
        (crops / f"bad{number:02}.jpg").write_bytes(content)
    for number, content in enumerate(TAKEN.values()):
        (crops / f"odd{number:02}.png").write_bytes(content)
    if sys.platform != "win32":
        os.mkfifo(crops / "pipe.jpg")
        (crops / "outside.jpg").symlink_to("/etc/passwd")
        (crops / "loop").symlink_to(crops, target_is_directory=True)
    (crops / "folder.jpg").mkdir()
    with (
        limited(6 * SECONDS),
        Gallery.create(tmp_path / "gallery", cskt.load(tiny_backbone, device="cpu", num_workers=2)) as gallery,
    ):
        report = gallery.index(crops)
        assert report.added == gallery.count() == len(good) + len(TAKEN)
        assert sorted(name for name, _ in report.unreadable) == [f"bad{n:02}.jpg" for n in range(len(REFUSED))]
        assert all(reason and "\n" not in reason for _, reason in report.unreadable)
    record("pictures that are no files, or would fill the memory", tried=1, test=TEST)


MEMORY = {
    "20,000 x 20,000 PNG": (lambda: black_png(20_000, 20_000), 40e6),
    "20,000 x 20,000 JPEG": (lambda: grey_jpeg(20_000, 20_000), 40e6),
    "8,000 x 8,000 JPEG": (lambda: grey_jpeg(8_000, 8_000), 700e6),
    "8,000 x 8,000 PNG": (lambda: black_png(8_000, 8_000), 900e6),
    "a PNG without pixels": (lambda: png(8_000, 8_000, depth=8, colour=6, pixels=zeros(10)), 700e6),
    "a text bomb": (lambda: png(8, 8, pixels=zeros(16), before=chunk(b"zTXt", b"a\0\0" + zeros(10**8))), 40e6),
    "16-bit TIFF": (lambda: claiming(encoded(GREY16, "TIFF"), 8_000, 8_000), 900e6),
}
"""Maker of each file, and the limit of bytes for reading it: the file, and 64 megapixels in a few forms."""
IN_FAST = ("20,000 x 20,000 PNG", "20,000 x 20,000 JPEG")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="measures with the module resource")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """A file's claims do not raise the memory that reading it takes.

    Only a new maximum of the process is visible, so the readings are in ascending order; those of the long part have a
    process each.
    """
    path = tmp_path / "x.jpg"
    preparation = "from cskt.gallery.indexing.encoding import bytes_of, prepare"
    groups = [[kind] for kind in MEMORY] if LONG else [list(IN_FAST)]
    for group in groups:
        readings = []
        for number, kind in enumerate(group):
            path = tmp_path / f"{number}.jpg"
            path.write_bytes(MEMORY[kind][0]())
            readings.append(f"prepare(bytes_of(Path({str(path)!r})), 384, 128)")
        for kind, used in zip(group, in_a_process(preparation, readings), strict=True):
            assert used.more_bytes < MEMORY[kind][1], f"{kind}: {used.more_bytes / 1e6:.0f} MB"
            assert used.seconds < SECONDS, kind
            assert kind.startswith("8,000") or used.reason, kind
    record("pictures that are no files, or would fill the memory", tried=sum(map(len, groups)), test=TEST)
