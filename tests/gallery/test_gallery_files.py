"""Image files on their way into a gallery."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cskt.data.images import ImageReader
from cskt.gallery.indexing.encoding import THUMBNAIL_SIZE, bytes_of, prepare
from cskt.gallery.indexing.ignoring import IgnorePatterns
from cskt.gallery.indexing.scanning import ImageSource, Scan, walk
from cskt.gallery.stores.base import check_image_id


def picture(path: Path, size: tuple[int, int] = (40, 100)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 80).convert("RGB").save(path)
    return path


def test_walk_is_in_order_and_follows_no_link(tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    for name in ("b/2.PNG", "b/1.jpg", "a.webp", "c/d/e.bmp"):
        picture(folder / name)
    picture(tmp_path / "outside" / "secret.png")
    (folder / ".hidden").mkdir()
    picture(folder / ".hidden" / "x.png")
    picture(folder / ".dot.png")
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / "way-out").symlink_to(tmp_path / "outside")
    (folder / "circle").symlink_to(folder)
    (folder / "link.png").symlink_to(tmp_path / "outside" / "secret.png")

    files = ImageSource(folder).scan().files
    assert list(files) == ["a.webp", "b/1.jpg", "b/2.PNG", "c/d/e.bmp"]
    assert files["a.webp"][0] == (folder / "a.webp").stat().st_size


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(ValueError, match="locked: Permission denied; make it readable"):
        ImageSource(tmp_path / "locked").scan()


def test_a_folder_deleted_during_the_walk_is_skipped(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/2.jpg"):
        picture(tmp_path / name)
    found = []
    for name, _ in walk(tmp_path, Scan(), IgnorePatterns(), None):
        found.append(name)
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
    assert found == ["a/1.jpg"]
    with pytest.raises(ValueError, match="no such folder of crops"):
        ImageSource(tmp_path / "nowhere").scan()


def test_an_image_is_read_once_for_all_uses(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", (300, 900))
    read = prepare(path.read_bytes(), 64, 32)
    assert (read.width, read.height, read.num_bytes) == (300, 900, path.stat().st_size)
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (read.pixels == ImageReader(64, 32).read(path)).all()
    with Image.open(io.BytesIO(read.thumbnail)) as thumbnail:
        assert thumbnail.format == "JPEG"
        assert thumbnail.size[0] <= THUMBNAIL_SIZE[0]
        assert thumbnail.size[1] == THUMBNAIL_SIZE[1]
        assert abs(thumbnail.size[0] / thumbnail.size[1] - 1 / 3) < 0.02


def test_a_small_image_is_not_enlarged(tmp_path: Path) -> None:
    read = prepare(picture(tmp_path / "a.png", (20, 50)).read_bytes(), 64, 32)
    with Image.open(io.BytesIO(read.thumbnail)) as thumbnail:
        assert thumbnail.size == (20, 50)


def test_an_image_in_memory_keeps_its_pixels(tmp_path: Path) -> None:
    image = Image.open(picture(tmp_path / "a.png"))
    with Image.open(io.BytesIO(bytes_of(image))) as back:
        assert np.array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize("name", ["a.jpg", "cam 3/ö/東京.png", ".a", "a..b/c", "x" * 512, "'; DROP TABLE crops; --"])
def test_valid_names(name: str) -> None:
    assert check_image_id(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../a.jpg", "a/../b.jpg", "/etc/passwd", "a//b", "a/", "./a", "a\\b", "C:\\a", "x" * 513, "a\nb",
     "a\x00b", "a\x7f", "\ud800", " ", "a/ /b", "a\u202egpj.exe"],
)  # fmt: skip
def test_invalid_names(name: str) -> None:
    with pytest.raises(ValueError, match="is no name for a crop"):
        check_image_id(name)
