"""Crops erased: no file of the gallery contains anything of them, and nothing else is lost."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from erasing_process import CALLS
from noise_pictures import picture

import cskt
from cskt.gallery.conditions import Missing
from cskt.gallery.gallery import Gallery
from cskt.gallery.stores.base import VectorStore
from cskt.gallery.stores.lance.lance_store import LanceStore, open_lance
from cskt.gallery.stores.lance.versions import Version

NAMES = [f"camera-{number % 3}/picture-{number:03d}.jpg" for number in range(12)]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, clip_tiny: cskt.Encoder) -> Path:
    """Twelve crops: six of an indexed folder, which is beside the gallery, and six uploads."""
    place = tmp_path_factory.mktemp("erasing")
    for number, name in enumerate(NAMES[:6]):
        path = place / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    with Gallery.create(place / "gallery", clip_tiny) as gallery:
        rows = {name: {"time": f"20{20 + number}-01-31"} for number, name in enumerate(NAMES[:5])}
        gallery.index(place / "images", metadata=rows)
        uploads = [picture(number) for number in range(6, 12)]
        gallery.add(uploads, NAMES[6:], [{"time": "2020-06-30"}] * 6)
        # Older versions of the store contain the same crop under the same name, with other values.
        gallery.index(place / "images", metadata={NAMES[0]: {"note": "changed"}})
    return place


@pytest.fixture
def gallery(filled: Path, tmp_path: Path, clip_tiny: cskt.Encoder) -> Iterator[Gallery]:
    shutil.copytree(filled, tmp_path / "own")
    with Gallery.open(tmp_path / "own" / "gallery", encoder=clip_tiny) as opened:
        yield opened


def everything(gallery: Gallery, name: str) -> dict[str, bytes]:
    """Bytes that only this crop has: its name, its vector, its thumbnail, its file."""
    vector = gallery._state.store.vectors([name])[name]  # a query would normalise it once more, which may round
    return {
        "name": name.encode(),
        "vector": vector.tobytes(),
        "thumbnail": gallery.thumbnail(name)[-200:],
        "file": gallery.original(name).read_bytes()[-200:],
    }


def store_folder(gallery: Gallery) -> Path:
    return gallery.folder / "vectors" / gallery.manifest.generation


def places_of(folder: Path, part: bytes) -> list[str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [str(path.relative_to(folder)) for path in files if part in path.read_bytes()]


@pytest.mark.parametrize("number", [0, 8])
def test_no_file_contains_anything_of_an_erased_crop(gallery: Gallery, number: int) -> None:
    name, other = NAMES[number], NAMES[number + 1]
    log = gallery.folder / "audit.jsonl"
    lines = [json.dumps({"action": "image", "image_id": each}) + "\n" for each in (name, other)]
    log.write_text("".join(lines), encoding="ascii")
    gone, stays = everything(gallery, name), everything(gallery, other)
    before = {each: (gallery.crop(each), gallery.thumbnail(each)) for each in NAMES if each != name}
    vectors = gallery.encode([cskt.Query(like=each) for each in before])
    for what in ("name", "vector", "thumbnail"):
        assert places_of(gallery.folder, gone[what]), f"the test must be able to find the {what}"
    assert bool(places_of(gallery.folder, gone["file"])) == (number == 8), "uploads are in the gallery"
    with Gallery.open(gallery.folder, encoder=gallery.encoder) as reader:
        reader.search(like=other)  # vectors of all crops are in its memory
        gallery.remove(name)
        assert places_of(gallery.folder, gone["vector"]), "removing alone leaves it on the disk"
        report = gallery.erase(name)
        assert (report.unknown, report.purged, report.found) == ([name], True, [])
        assert {what: places_of(gallery.folder, part) for what, part in gone.items()} == {what: [] for what in gone}
        assert all(places_of(gallery.folder, stays[what]) for what in ("name", "vector", "thumbnail"))
        for opened in (reader, gallery):
            assert {hit.image_id for hit in opened.search(like=other, k=50)} == before.keys()
            assert opened.search(like=other, k=1)[0].image_id == other
    assert {each: (gallery.crop(each), gallery.thumbnail(each)) for each in before} == before
    assert np.array_equal(gallery.encode([cskt.Query(like=each) for each in before]), vectors)
    noted = [json.loads(line)["image_id"] for line in log.read_text(encoding="ascii").splitlines()]
    assert noted == ["*" * len(name), other]


def test_names_in_the_sentences_and_filters_of_the_audit_log_become_asterisks(gallery: Gallery) -> None:
    names = ['live/O\'Brien \u00e4 "1"', 'live/O\'Brien \u00e4 "1" again', "x'1", "1999-11-30"]
    gallery.add([picture(60 + number) for number in range(len(names))], names)
    quoted = [name.replace("'", "''") for name in names]
    facts: list[Mapping[str, object]] = [
        *({"text": f"as {name}", "where": f"image_id = '{part}'"} for name, part in zip(names, quoted, strict=True)),
        {"where": f"image_id IN ('{quoted[0]}', '{quoted[2]}') OR image_id LIKE '%{quoted[1]}%'", "1999-11-30": 1},
        {"text": "the y'all x'1", "like": NAMES[0]},
    ]
    head = {"time": "1999-11-30T12:00:00+00:00", "client": "::1", "action": "search"}
    log = gallery.folder / "audit.jsonl"
    log.write_text("".join(json.dumps({**head, **each}) + "\n" for each in facts), encoding="ascii")
    report = gallery.erase(names)
    assert report.found == [("audit.jsonl", "the name 1999-11-30")], "times and fields stay"
    lines = [json.loads(line) for line in log.read_text(encoding="ascii").splitlines()]
    assert all(line.items() >= head.items() for line in lines)
    assert [line["where"].replace("*", "") for line in lines if "where" in line] == [
        *["image_id = ''"] * 4, "image_id IN ('', '') OR image_id LIKE '%%'",
    ]  # fmt: skip
    assert [line["text"].replace("*", "") for line in lines if "text" in line] == [
        "as ", "as ", "as x'1", "as ", "the y'all x'1",
    ]  # fmt: skip
    assert lines[4]["1999-11-30"] == 1 and lines[5]["like"] == NAMES[0]


def test_the_report_says_what_was_erased_and_what_is_left(gallery: Gallery) -> None:
    indexed, upload = NAMES[1], NAMES[7]
    contents = [everything(gallery, name) for name in (indexed, upload)]
    (gallery.folder / "notes.txt").write_text("seen: not/in/the/gallery", encoding="utf-8")
    report = gallery.erase([indexed, upload, "not/in/the/gallery"])
    assert report.erased == [indexed, upload] and report.unknown == ["not/in/the/gallery"]
    assert report.files == [gallery.folder.parent / "images" / indexed] and report.files[0].is_file()
    assert report.purged and report.found == [("notes.txt", "the name not/in/the/gallery")]
    assert report.not_searched == ["the vector and the pictures of not/in/the/gallery: it is not in the gallery"]
    files = [path for path in gallery.folder.rglob("*") if path.is_file()]
    assert report.num_files == len(files) and report.num_bytes == sum(path.stat().st_size for path in files)
    for part in (part for content in contents for part in content.values()):
        assert places_of(gallery.folder, part) == []
    assert gallery.index().added == 1, "the file is still there"


def test_what_is_left_is_found(gallery: Gallery) -> None:
    name = NAMES[9]
    copy = gallery.original(name).read_bytes()
    (gallery.folder / "copy.jpg").write_bytes(b"in front" + copy)
    (gallery.folder / "notes.txt").write_text(f"seen: {name}", encoding="utf-8")
    assert gallery.erase(name).found == [
        ("copy.jpg", f"the picture of {name}"), ("notes.txt", f"the name {name}"),
    ]  # fmt: skip


def test_a_name_within_another_is_not_searched_for(gallery: Gallery) -> None:
    gallery.add([picture(50), picture(51)], ["camera-9/1", "camera-9/11"])
    report = gallery.erase("camera-9/1")
    assert report.found == []
    assert report.not_searched == ["the name camera-9/1: it is short, or a part of another crop's name"]


def test_names_beyond_those_searched_for_are_counted(gallery: Gallery) -> None:
    report = gallery.erase([f"not/in/the/gallery/{number}" for number in range(102)])
    assert "2 of 102 names not in the gallery: too many" in report.not_searched


def test_the_last_crop_leaves_nothing(gallery: Gallery) -> None:
    contents = [everything(gallery, name) for name in NAMES]
    report = gallery.erase(NAMES)
    assert len(report.erased) == 12 and report.found == [] and gallery.count() == 0
    for part in (part for content in contents for part in content.values()):
        assert places_of(gallery.folder, part) == []
    assert gallery.add([picture(1)], ["again"]).added == 1


def test_a_dry_run_changes_nothing(gallery: Gallery) -> None:
    gallery.count()
    before = {path: path.read_bytes() for path in gallery.folder.rglob("*") if path.is_file()}
    report = gallery.erase([NAMES[0], NAMES[8]], dry_run=True)
    assert report.erased == [NAMES[0], NAMES[8]] and not report.purged
    after = {path: path.read_bytes() for path in gallery.folder.rglob("*") if path.is_file()}
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {
        gallery.folder / "gallery.lock"
    }


def test_vectors_of_an_interrupted_reindex_are_named(gallery: Gallery) -> None:
    (gallery.folder / "vectors" / "0123456789ab").mkdir()
    with pytest.raises(ValueError, match="0123456789ab: vectors of another model, .*cskt reindex"):
        gallery.erase(NAMES[0])
    assert gallery.count() == 12


def test_old_crops_of_one_camera(gallery: Gallery) -> None:
    names, num_without = gallery.expired(timedelta(days=30))
    assert (names, num_without) == (sorted([*NAMES[:5], *NAMES[6:]]), 1)
    assert gallery.expired(timedelta(days=30), "time >= '2022-01-01' and time < '2023-01-01'")[0] == [NAMES[2]]
    gallery.index(metadata={NAMES[0]: {"seen": "2020-01-01"}, NAMES[1]: {"camera": "c1"}})
    with pytest.raises(ValueError, match=r"several columns of times \(time, seen\); name the one"):
        gallery.expired(timedelta(days=30))
    assert gallery.expired(timedelta(days=30), column="Seen") == ([NAMES[0]], 11)
    with pytest.raises(ValueError, match="the column 'camera' holds a text"):
        gallery.expired(timedelta(days=30), column="camera")


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_after_a_kill_nothing_else_is_lost_and_the_same_command_completes_it(gallery: Gallery, call: str) -> None:
    names = [NAMES[0], NAMES[8]]
    log = gallery.folder / "audit.jsonl"
    log.write_text("".join(json.dumps({"image_id": name}) + "\n" for name in names), encoding="ascii")
    gone = [everything(gallery, name) for name in names]
    del gone[0]["file"]  # is in the indexed folder
    others = [name for name in NAMES if name not in names]
    before = {name: (gallery.crop(name), gallery.thumbnail(name)) for name in others}
    vectors = gallery.encode([cskt.Query(like=name) for name in others])
    program = Path(__file__).with_name("erasing_process.py")
    done = subprocess.run([sys.executable, program, gallery.folder, call, *names], check=False)
    assert done.returncode == -signal.SIGKILL
    with Gallery.open(gallery.folder, encoder=gallery.encoder) as opened:
        assert {hit.image_id for hit in opened.search(like=others[0], k=50)} == set(others)
        report = opened.erase(names)
        assert (report.erased, report.unknown, report.purged, report.found) == ([], names, True, [])
        assert [places_of(gallery.folder, part) for parts in gone for part in parts.values()] == [[]] * 7
        assert {name: (opened.crop(name), opened.thumbnail(name)) for name in others} == before
        assert np.array_equal(opened.encode([cskt.Query(like=name) for name in others]), vectors)
        (gallery.folder.parent / "images" / names[0]).unlink()
        assert opened.check().findings == []


READS: dict[str, Callable[[VectorStore, torch.Tensor], object]] = {
    "count": lambda store, query: store.count(Missing("note")),
    "get": lambda store, query: store.get(NAMES).keys(),
    "vectors": lambda store, query: {name: vector.tolist() for name, vector in store.vectors(NAMES).items()},
    "thumbnails": lambda store, query: store.thumbnails(NAMES),
    "files": lambda store, query: store.files(),
    "facets": lambda store, query: store.facets({"note": "text"}),
    "search": lambda store, query: [hit.image_id for hit in store.search(query[None], 50)[0]],
    "histogram": lambda store, query: store.histogram(query, [-1.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_whose_version_is_purged_reads_the_next(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, read: Callable[[VectorStore, torch.Tensor], object]
) -> None:
    """The purge happens between the pinning of a version and its reading, as in another process."""
    pin, pinned = LanceStore._at, list[int]()
    other = open_lance(store_folder(gallery), gallery.manifest.embed_dim, gallery.manifest.columns)
    query = torch.eye(1, gallery.manifest.embed_dim)[0]
    expected = read(other, query)

    def pin_and_purge(store: LanceStore, number: int) -> Version:
        version = pin(store, number)
        if store is reader:
            pinned.append(number)
            if len(pinned) == 1:
                other.purge()
        return version

    reader = open_lance(store_folder(gallery), gallery.manifest.embed_dim, gallery.manifest.columns)
    monkeypatch.setattr(LanceStore, "_at", pin_and_purge)
    assert read(reader, query) == expected
    assert len(pinned) == 2, "the first version cannot be read any more"
