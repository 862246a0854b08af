"""Faults of a gallery: processes killed at any moment, full disks, several writers and readers, a read-only folder."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing import commits
from cskt.gallery.indexing.encoding import digest
from cskt.gallery.opening import source_to_index
from cskt.gallery.stores.base import VectorStore
from disks import enlarge, mounted, without_rights
from fault_tries import chance, record, tries, wait_until

NUM_KILLS = {"lance": tries(2, 30), "milvus": tries(1, 10)}
STORES = ["lance", pytest.param("milvus", marks=pytest.mark.milvus)]
NUM_CROPS = 240
NUM_READERS = 10
SENTENCE = "a man with a backpack"


def start(*words: str | Path) -> subprocess.Popen[bytes]:
    program = Path(__file__).with_name("filling_process.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(program), *map(str, words)], env=environment)


def many_crops(folder: Path, dolls: Path) -> None:
    """Write `NUM_CROPS` small crops with different pixels."""
    folder.mkdir()
    drawn = [Image.open(path).resize((24, 56)) for path in sorted(dolls.rglob("*.jpg"))]
    for number in range(NUM_CROPS):
        image = drawn[number % len(drawn)].copy()
        image.putpixel((0, 0), (number % 256, number // 256, 0))
        image.save(folder / f"{number:03}.png")


def check_whole(gallery: Gallery, crops: Path) -> None:
    """Check that every row has its vector, its thumbnail, and the digest of its file."""
    store: VectorStore = gallery._state.store
    files = store.files()
    vectors = store.vectors(list(files))
    assert vectors.keys() == files.keys()
    assert np.allclose([np.linalg.norm(vector) for vector in vectors.values()], 1, atol=1e-5)
    for name, state in files.items():
        assert state.sha256 == digest((crops / name).read_bytes())
        with Image.open(io.BytesIO(gallery.thumbnail(name))) as thumbnail:
            thumbnail.load()


def started_gallery(tmp_path: Path, dolls: Path, encoder: Encoder, backbone: Path, store: str) -> Path:
    """Return the folder of an empty gallery of `tmp_path / "crops"`, which are many."""
    many_crops(tmp_path / "crops", dolls)
    place = "lance" if store == "lance" else f"milvus:{tmp_path}/crops.db"
    with Gallery.create(tmp_path / "gallery", encoder, store=place) as gallery:
        source = source_to_index(gallery.folder, gallery.manifest, tmp_path / "crops")
        gallery._state.remember_source(source)
    return tmp_path / "gallery"


def num_acknowledged(log: Path) -> int:
    """Return the last complete number in a log."""
    lines = log.read_text(encoding="ascii").splitlines(keepends=True)
    return next((int(line) for line in reversed(lines) if line.endswith("\n")), 0)


@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * NUM_KILLS["lance"])
@pytest.mark.parametrize("store", STORES)
def test_indexing_that_is_killed_loses_no_commit(
    tmp_path: Path, dolls: Path, encoder: Encoder, tiny_backbone: Path, store: str
) -> None:
    """Each kill strikes when a random number of crops is committed, while the program encodes and commits others."""
    folder = started_gallery(tmp_path, dolls, encoder, tiny_backbone, store)
    crops, log = tmp_path / "crops", tmp_path / "log"
    random, num_tries, reached, most = chance(f"indexing, {store}"), NUM_KILLS[store], 0, 0
    for _ in range(num_tries):
        remaining = NUM_CROPS - reached
        if remaining < 24:  # from the start
            with Gallery.open(folder, encoder=encoder) as gallery:
                gallery.remove([path.name for path in crops.iterdir()])
            reached, remaining = 0, NUM_CROPS
        before, goal = reached, random.randint(1, remaining // 6)
        log.write_text("", encoding="ascii")
        process = start("index", folder, tiny_backbone, log, str(remaining - 10))
        wait_until(lambda goal=goal: num_acknowledged(log) >= goal, process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        with Gallery.open(folder, encoder=encoder) as gallery:
            reached = gallery.count()
            most = max(most, reached)
            assert before + num_acknowledged(log) <= reached <= NUM_CROPS
            assert len(gallery.search(SENTENCE, k=1000)) == reached
            check_whole(gallery, crops)
    assert most > 0
    with Gallery.open(folder, encoder=encoder) as gallery:
        report = gallery.index()
        assert (report.unchanged, report.added, report.replaced) == (reached, NUM_CROPS - reached, 0)
        assert gallery.count() == NUM_CROPS
        assert len({hit.image_id for hit in gallery.search(SENTENCE, k=1000)}) == NUM_CROPS
    where = "" if store == "lance" else "into Milvus "
    record(f"indexing {where}killed (kill -9)", tried=num_tries, test="tests/gallery/test_faults.py")


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_indexing_on_a_full_disk_ends_in_one_line_and_is_resumed(
    tmp_path: Path, dolls: Path, encoder: Encoder, tiny_backbone: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_crops(tmp_path / "crops", dolls)
    monkeypatch.setattr(commits, "COMMIT_SECONDS", 0.0)
    num_full, most = 0, 0
    for attempt in range(tries(2, 10)):
        with mounted(tmp_path / f"disk-{attempt}", 250 + 50 * attempt) as disk:
            where = "lance" if store == "lance" else f"milvus:{disk}/crops.db"
            acknowledged = [0]
            with Gallery.create(disk / "gallery", encoder, store=where) as gallery:
                try:
                    gallery.index(tmp_path / "crops", on_progress=lambda done, _, log=acknowledged: log.append(done))
                except CsktError as error:
                    num_full += 1
                    assert "No space left" in str(error) and "\n" not in str(error)
                assert acknowledged[-1] <= gallery.count() <= NUM_CROPS
                check_whole(gallery, tmp_path / "crops")
                assert len(gallery.search(SENTENCE, k=1000)) == gallery.count()
                enlarge(disk, 10)
                num_stored = gallery.count()
                most = max(most, num_stored)
                report = gallery.index()
                assert (report.unchanged, report.added) == (num_stored, NUM_CROPS - num_stored)
    assert num_full > 0 and most > 0
    name = "LanceDB" if store == "lance" else "Milvus"
    record(f"disk full while indexing ({name})", tried=num_full, test="tests/gallery/test_faults.py")


@pytest.mark.slow
def test_ten_readers_see_whole_commits_of_two_writers(gallery: Gallery, crops: Path, tiny_backbone: Path) -> None:
    images = sorted(crops.rglob("*.jpg"))[:8]
    writers = [start("add", gallery.folder, tiny_backbone, name, *images) for name in ("left", "right")]
    errors: list[Exception] = []
    seen: list[list[int]] = [[] for _ in range(NUM_READERS)]
    stop = threading.Event()

    def read(counts: list[int]) -> None:
        try:
            with Gallery.open(gallery.folder, encoder=gallery.encoder) as reader:
                while not stop.is_set():
                    hits = reader.search(SENTENCE, k=100)
                    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
                    assert len({hit.image_id for hit in hits}) == len(hits)
                    counts.append(len(hits))
        except Exception as error:  # noqa: BLE001  (checked below, on the test's own thread)
            errors.append(error)

    readers = [threading.Thread(target=read, args=(counts,)) for counts in seen]
    for reader in readers:
        reader.start()
    codes = [writer.wait() for writer in writers]
    stop.set()
    for reader in readers:
        reader.join()
    assert (codes, errors) == ([0, 0], [])
    for counts in seen:
        assert counts == sorted(counts), "a crop that was found is missing later"
        assert counts[0] >= 12
        assert counts[-1] <= 28
    assert gallery.count() == 28
    assert gallery.count("writer = 'left' and number >= 4") == 4
    assert len(gallery.search(SENTENCE, k=100)) == 28


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights")
def test_a_read_only_gallery_is_searched_and_not_changed(gallery: Gallery, crops: Path) -> None:
    before = gallery.search(SENTENCE, k=20)
    data = next(crops.rglob("*.jpg")).read_bytes()
    gallery.close()
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to other users
        folder = Path(shutil.copytree(gallery.folder, Path(scratch) / "gallery"))
        Path(scratch).chmod(0o755)
        with without_rights(folder), Gallery.open(folder, encoder=gallery.encoder) as reader:
            assert reader.search(SENTENCE, k=20) == before
            for change in (lambda: reader.add([data], ["new"]), lambda: reader.remove([before[0].image_id])):
                with pytest.raises((OSError, CsktError), match="denied"):
                    change()
            assert reader.count() == 12
    record("a read-only gallery is written to", tried=2, test="tests/gallery/test_faults.py")
