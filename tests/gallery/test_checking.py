"""`Gallery.info`, `check` and `repair`: every kind of damage is found, and only what nothing needs is deleted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import lancedb
import pytest
from noise_pictures import picture

import cskt
from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery

INDEXED = ["a/1.png", "a/2.png", "b/3.png"]
UPLOADS = ["live/1", "live/2"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, clip_tiny: cskt.Encoder) -> Path:
    place = tmp_path_factory.mktemp("checked")
    for number, name in enumerate(INDEXED):
        path = place / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    with Gallery.create(place / "gallery", clip_tiny) as gallery:
        gallery.index(place / "images", metadata={INDEXED[0]: {"camera": "c1"}})
        gallery.add([picture(10), picture(11)], UPLOADS)
    return place


@pytest.fixture
def gallery(filled: Path, tmp_path: Path, clip_tiny: cskt.Encoder) -> Iterator[Gallery]:
    shutil.copytree(filled, tmp_path / "own", copy_function=shutil.copy2)
    with Gallery.open(tmp_path / "own" / "gallery", encoder=clip_tiny) as opened:
        yield opened


def change_row(gallery: Gallery, name: str, **values: object) -> None:
    """Change a row as no function of this program does."""
    table = lancedb.connect(str(gallery.folder / "vectors" / gallery.manifest.generation)).open_table("crops")
    table.update(f"image_id = '{name}'", values)


def found(gallery: Gallery) -> list[tuple[str, str]]:
    return [(finding.place, finding.problem) for finding in gallery.check().findings]


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_facts(gallery: Gallery) -> None:
    info = gallery.info()
    assert (info.crops, info.uploads, dict(info.columns)) == (5, 2, {"camera": "text"})
    assert (info.model, info.store, info.min_score) == ("clip-tiny", "lance", None)
    assert info.images == str(gallery.folder.parent / "images")
    originals = [path.stat().st_size for path in (gallery.folder / "originals").rglob("*") if path.is_file()]
    assert info.num_bytes["originals"] == sum(originals) > 0 and info.num_bytes["audit.jsonl"] == 0
    json.dumps(vars(info))


def test_an_intact_gallery_has_no_findings_and_is_not_changed(gallery: Gallery) -> None:
    before = files(gallery.folder)
    report = gallery.check()
    assert (report.crops, report.uploads, report.findings) == (5, 2, [])
    assert files(gallery.folder) == before
    assert gallery.repair().remaining == []
    assert gallery.count() == 5


def test_a_missing_and_a_changed_upload(gallery: Gallery) -> None:
    first, second = map(gallery.original, UPLOADS)
    first.unlink()
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    second.write_bytes(data)
    places = [
        f"{name}: {path.relative_to(gallery.folder)}" for name, path in zip(UPLOADS, (first, second), strict=True)
    ]
    expected = [(places[0], "its uploaded file is missing"), (places[1], "its uploaded file has changed")]
    assert found(gallery) == expected
    assert [(finding.place, finding.problem) for finding in gallery.repair().remaining] == expected
    assert gallery.count() == 5, "searches do not need the files"


def test_files_of_the_indexed_folder_that_are_gone_or_changed(gallery: Gallery) -> None:
    images = gallery.folder.parent / "images"
    (images / INDEXED[0]).unlink()
    os.utime(images / INDEXED[2], ns=(1, 1))
    expected = [
        (INDEXED[0], "its file in the indexed folder cannot be read, or is gone"),
        (INDEXED[2], "its file has changed since it was indexed"),
    ]
    assert found(gallery) == expected
    before = files(images)
    assert len(gallery.repair().remaining) == 2 and files(images) == before
    gallery.index(prune=True)
    assert found(gallery) == []
    shutil.rmtree(images)
    assert found(gallery) == [(str(images), "the indexed folder is missing")]


def test_leftovers_are_deleted_and_files_of_others_stay(gallery: Gallery) -> None:
    folder = gallery.folder
    upload = gallery.original(UPLOADS[0])
    unused = folder / "originals" / "ab" / f"ab{'0' * 62}"
    leftovers = [
        folder / ".calibration.json.1.2.tmp", upload.with_name(f".{upload.name}.1.2.tmp"),
        folder / "originals.unsettled", unused,
    ]  # fmt: skip
    own = [folder / "notes.txt", folder / "originals" / "mine.jpg"]
    for path in (*leftovers, *own):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    (folder / "vectors" / "0123456789ab").mkdir()
    problems = dict(found(gallery))
    assert problems.keys() == {
        *(path.relative_to(folder).as_posix() for path in leftovers), "originals/mine.jpg", "vectors/0123456789ab",
    }  # fmt: skip
    report = gallery.repair()
    assert sorted(report.files) == sorted(path.relative_to(folder).as_posix() for path in leftovers)
    assert [finding.place for finding in report.remaining] == ["vectors/0123456789ab", "originals/mine.jpg"]
    assert not any(path.exists() for path in leftovers) and all(path.is_file() for path in own) and upload.is_file()


@pytest.mark.parametrize(
    ("values", "problem"),
    [({"sha256": "x"}, "'sha256' must be 64"), ({"width": -1.0}, "'width' must be a whole number")],
)
def test_rows_that_cannot_be_read_are_deleted(gallery: Gallery, values: dict[str, object], problem: str) -> None:
    change_row(gallery, INDEXED[1], **values)
    [finding] = gallery.check().findings
    assert finding.place == f"row {INDEXED[1]}" and finding.problem.startswith(problem) and finding.is_repairable
    report = gallery.repair()
    assert (report.rows, report.files, report.remaining) == (1, [], []) and gallery.count() == 4
    assert gallery.index().added == 1


def test_a_thumbnail_that_is_no_picture(gallery: Gallery) -> None:
    change_row(gallery, UPLOADS[1], thumbnail=b"<script>")
    assert found(gallery) == [(UPLOADS[1], "its thumbnail is no small JPEG")]
    assert [finding.place for finding in gallery.repair().remaining] == [UPLOADS[1]]


def test_a_store_that_cannot_be_read(gallery: Gallery) -> None:
    for path in (gallery.folder / "vectors").rglob("*.lance"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:100])
    with Gallery.open(gallery.folder, encoder=gallery.encoder) as opened:
        [finding] = opened.check().findings
        assert finding.place == "vectors" and finding.remedy == "restore it from a backup"
        assert opened.check().crops == 0
        with pytest.raises(CsktError):
            opened.repair()
    assert len([path for path in (gallery.folder / "originals").rglob("*") if path.is_file()]) == 2


def test_a_model_that_has_moved(gallery: Gallery, tmp_path: Path) -> None:
    path = gallery.folder / "gallery.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["path"] = str(tmp_path / "gone")
    path.write_text(json.dumps(content), encoding="utf-8")
    [(place, problem)] = found(gallery)
    assert place == "gallery.json" and "its model is no longer at" in problem and "cskt reindex" in problem
