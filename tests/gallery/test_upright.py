"""Crops with an EXIF orientation: upright in every method of a gallery, and corrected in older galleries."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing import encoding
from cskt.gallery.manifest import MANIFEST
from cskt.gallery.query import Query
from cskt.gallery.stores.base import check_sha256
from cskt.image_files.decode import decode_image

LYING = 6
"""The orientation of a picture whose camera was held upright: to be turned by a quarter."""


def picture(number: int) -> Image.Image:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 96), Image.Resampling.BICUBIC)


def write(path: Path, number: int, kind: str = "PNG") -> Path:
    """The file of a phone: pixels lie, and a tag says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = LYING
    stored = picture(number).transpose(Image.Transpose.ROTATE_90)
    stored.save(path, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return path


@contextmanager
def older_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Encode as the versions before this one did."""
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "decode_image", lambda source, *_, **__: decode_image(source))
        yield


def forget_upright(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    del content["upright"]
    (folder / MANIFEST).write_text(json.dumps(content))


def is_upright(gallery: Gallery, name: str, number: int) -> bool:
    facts = gallery.crop(name)
    thumbnail = Image.open(io.BytesIO(gallery.thumbnail(name)))
    vector = torch.from_numpy(gallery._state.store.vectors([name])[name])
    standing = picture(number)
    upright, lying = vector @ gallery.encoder.encode_image([standing, standing.transpose(Image.Transpose.ROTATE_90)]).T
    found = {
        (facts.width, facts.height) == (48, 96),
        thumbnail.height > thumbnail.width,
        bool(upright > lying),
    }
    assert len(found) == 1, "size, thumbnail and vector agree"
    return found.pop()


@pytest.fixture
def empty(tmp_path: Path, encoder: Encoder, tiny_backbone: Path) -> Path:
    with Gallery.create(tmp_path / "gallery", encoder) as made:
        return made.folder


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_source_is_upright(kind: str, empty: Path, encoder: Encoder, tmp_path: Path) -> None:
    lying = write(tmp_path / "crops" / "a.jpg", 1, kind)
    upright = encoder.encode_image([picture(1)])[0]
    with Gallery.open(empty, encoder=encoder) as gallery:
        assert gallery.manifest.upright
        gallery.index(tmp_path / "crops")
        with Image.open(lying) as opened:
            gallery.add([lying, lying.read_bytes(), opened], ["path", "bytes", "opened"])
        for name in ("a.jpg", "path", "bytes", "opened"):
            assert is_upright(gallery, name, 1), name
        with Image.open(lying) as opened:
            queries = [Query(image=image) for image in (lying, lying.read_bytes(), opened)]
            queries.append(Query(image=gallery.resize(decode_image(lying, apply_orientation=True))))
            lying_down = encoder.encode_image([picture(1).transpose(Image.Transpose.ROTATE_90)])[0]
            vectors = gallery.encode(queries)
            assert (vectors @ upright > vectors @ lying_down).all() and (vectors @ upright > 0.999).all()
        by_path = gallery.search(image=str(lying), k=4)
        assert by_path[0].score > 0.999
        explained = gallery.explain("a.jpg", "a red bag")
        assert explained.score == pytest.approx(float(upright @ encoder.encode_text(["a red bag"])[0]), abs=0.02)


def test_an_older_gallery_is_brought_up_to_date_once(
    empty: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = tmp_path / "crops"
    lying = [write(crops / f"{number}.jpg", number, "JPEG") for number in range(3)]
    picture(9).save(crops / "standing.png")
    with older_version(monkeypatch), Gallery.open(empty, encoder=encoder) as gallery:
        gallery.index(crops, metadata={"0.jpg": {"camera": "c1"}})
        gallery.add([lying[0]], ["handed/over"])
    forget_upright(empty)
    with Gallery.open(empty, encoder=encoder) as gallery:
        assert not gallery.manifest.upright
        standing = gallery.crop("standing.png"), gallery._state.store.vectors(["standing.png"])["standing.png"]
        for name, number in (("0.jpg", 0), ("2.jpg", 2), ("handed/over", 0)):
            assert not is_upright(gallery, name, number)
        report = gallery.index()
        assert (report.turned, report.added, report.replaced, report.unchanged) == (4, 0, 0, 4)
        assert report.unreadable == [] and gallery.count() == 5
        for name, number in (("0.jpg", 0), ("1.jpg", 1), ("2.jpg", 2), ("handed/over", 0)):
            assert is_upright(gallery, name, number)
        assert dict(gallery.crop("0.jpg").metadata) == {"camera": "c1"}
        assert gallery.crop("handed/over").kept and gallery.original("handed/over").is_file()
        assert gallery.crop("standing.png") == standing[0]
        assert np.array_equal(gallery._state.store.vectors(["standing.png"])["standing.png"], standing[1])
        assert gallery.manifest.upright
        monkeypatch.setattr("cskt.gallery.indexing.reencoding.read_bytes", None)  # files are not read again
        assert gallery.index().turned == 0
    with Gallery.open(empty, encoder=encoder) as gallery:
        assert gallery.manifest.upright


def test_a_gallery_without_a_folder_is_brought_up_to_date(
    empty: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with older_version(monkeypatch), Gallery.open(empty, encoder=encoder) as gallery:
        gallery.add([write(tmp_path / "a.jpg", 3).read_bytes()], ["a"])
    forget_upright(empty)
    with Gallery.open(empty, encoder=encoder) as gallery:
        assert gallery.index().turned == 1
        assert is_upright(gallery, "a", 3) and gallery.manifest.upright
        with pytest.raises(ValueError, match="has no folder of crops yet"):
            gallery.index()


def test_unreadable_crops_are_tried_again(
    empty: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = tmp_path / "crops"
    write(crops / "a.jpg", 1)
    away = write(crops / "b.jpg", 2)
    with older_version(monkeypatch), Gallery.open(empty, encoder=encoder) as gallery:
        gallery.index(crops)
    forget_upright(empty)
    state = away.stat()
    content = away.read_bytes()
    away.unlink()
    with Gallery.open(empty, encoder=encoder) as gallery:
        report = gallery.index()
        assert (report.turned, report.vanished) == (1, 1)
        assert is_upright(gallery, "a.jpg", 1) and not gallery.manifest.upright
        away.write_bytes(content)
        os.utime(away, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert gallery.index().turned == 2, "and those that were turned already, which does no harm"
        assert is_upright(gallery, "b.jpg", 2) and gallery.manifest.upright


def test_reindexing_with_another_model_is_upright(
    empty: Path, encoder: Encoder, other_model: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with older_version(monkeypatch), Gallery.open(empty, encoder=encoder) as gallery:
        gallery.index(write(tmp_path / "crops" / "a.jpg", 1).parent)
    forget_upright(empty)
    with Gallery.open(empty, encoder=encoder) as gallery:
        gallery.reindex(other_model)
        assert is_upright(gallery, "a.jpg", 1) and gallery.manifest.upright


def test_uploads_are_stored_unchanged(empty: Path, encoder: Encoder, tmp_path: Path) -> None:
    """The stored upload is the file as it was uploaded, with its EXIF tag."""
    data = write(tmp_path / "a.jpg", 1).read_bytes()
    with Gallery.open(empty, encoder=encoder) as gallery:
        gallery.add([data], ["a"])
        assert gallery.original("a").read_bytes() == data and check_sha256(gallery.crop("a").sha256)
