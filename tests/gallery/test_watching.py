"""A watched folder: what is written, changed and deleted between two looks; kills; drives that are not mounted.

A test states what happens between the looks, so that none depends on time.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cskt.cli.watched_folder import WatchedTable
from cskt.embed import Encoder
from cskt.errors import CsktError, GalleryChangedError
from cskt.gallery.gallery import Gallery

Step = Callable[[], object]


class EndError(Exception):
    """Raised instead of the wait after the last step."""


def nothing() -> None:
    """Change nothing between two looks."""


@pytest.fixture
def empty(tmp_path: Path, encoder: Encoder) -> Iterator[Gallery]:
    with Gallery.create(tmp_path / "gallery", encoder) as made:
        yield made


@pytest.fixture
def new(tmp_path: Path) -> bytes:
    """Return the content of a picture that is not among the crops."""
    Image.effect_noise((40, 90), 60).convert("RGB").save(tmp_path / "new.png")
    return (tmp_path / "new.png").read_bytes()


def watched(gallery: Gallery, images: Path, steps: list[Step], **options: Any) -> list[dict[str, int]]:
    """Return what each indexing did, without zeros; a step is called between two looks."""
    remaining = iter(steps)

    def wait(seconds: float) -> None:
        step = next(remaining, None)
        if step is None:
            raise EndError
        step()

    did = []
    with pytest.raises(EndError):
        for report in gallery.watch(images, wait=wait, **options):
            counts = {name: getattr(report, name) for name in ("added", "replaced", "updated", "vanished", "removed")}
            did.append(
                {name: count for name, count in (counts | {"unreadable": len(report.unreadable)}).items() if count}
            )
    return did


def test_files_are_indexed_once_they_stay_the_same(empty: Gallery, crops: Path, new: bytes) -> None:
    path = crops / "new.png"
    steps: list[Step] = [
        nothing, nothing, lambda: path.write_bytes(new[:50]), lambda: path.write_bytes(new[:900]),
        lambda: path.write_bytes(new), nothing, nothing,
    ]  # fmt: skip
    assert watched(empty, crops, steps) == [{"added": 12}, {"added": 1}]
    assert empty.original("new.png").read_bytes() == new


def test_a_file_whose_writer_pauses_is_read_again(empty: Gallery, crops: Path, new: bytes) -> None:
    path = crops / "new.png"
    steps: list[Step] = [
        nothing, lambda: path.write_bytes(new[:900]), nothing, lambda: path.write_bytes(new), nothing,
    ]  # fmt: skip
    assert watched(empty, crops, steps) == [{"added": 12}, {"unreadable": 1}, {"added": 1}]


@pytest.mark.parametrize("prune", [False, True])
def test_deleted_files(gallery: Gallery, crops: Path, prune: bool) -> None:
    gone, growing = crops / "cam0" / "00.jpg", crops / "cam1" / "01.jpg"

    def delete_one_and_begin_another() -> None:
        gone.unlink()
        growing.write_bytes(growing.read_bytes()[:100])

    other = (crops / "cam2" / "02.jpg").read_bytes()
    steps: list[Step] = [nothing, delete_one_and_begin_another, lambda: growing.write_bytes(other), nothing]
    did = watched(gallery, crops, steps, prune=prune)
    assert did == (
        [{}, {"removed": 1}, {"replaced": 1}] if prune else [{}, {"vanished": 1}, {"replaced": 1, "vanished": 1}]
    )
    assert gallery.count() == (11 if prune else 12) and "cam1/01.jpg" in gallery


def test_a_drive_that_is_not_mounted_removes_nothing(
    gallery: Gallery, crops: Path, new: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = crops.with_name("elsewhere")

    def come_back() -> None:
        crops.rmdir()
        elsewhere.rename(crops)
        (crops / "new.png").write_bytes(new)

    steps: list[Step] = [
        nothing, lambda: crops.rename(elsewhere), nothing, crops.mkdir, nothing, come_back, nothing,
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert watched(gallery, crops, steps, prune=True) == [{}, {"added": 1}]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2, "each reason is logged once"
    assert "no such folder of crops" in messages[0] and "is it mounted?" in messages[1]
    assert gallery.count() == 13


def test_metadata_of_new_rows_and_of_new_files(empty: Gallery, crops: Path, new: bytes) -> None:
    rows: dict[str, dict[str, object]] = {"cam0/00.jpg": {"camera": "c0"}, "new.png": {"camera": "c9"}}
    steps: list[Step] = [
        nothing, lambda: (crops / "new.png").write_bytes(new), nothing,
        lambda: rows.update({"cam1/01.jpg": {"camera": "c1"}}), nothing,
    ]  # fmt: skip
    did = watched(empty, crops, steps, metadata=lambda: dict(rows))
    assert did == [{"added": 12}, {"added": 1}, {"updated": 1}]
    found = {name: empty.crop(name).metadata for name in ("cam0/00.jpg", "cam1/01.jpg", "cam2/02.jpg", "new.png")}
    assert found == rows | {"cam2/02.jpg": {}}


def test_a_table_is_read_once_it_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("image,camera\na.jpg,c1\n")
    table = WatchedTable(path, tmp_path, None)
    assert [table(), table()] == [{}, {"a.jpg": {"camera": "c1"}}]
    path.write_text("image,camera\na.jpg,c1\nb.jp")
    assert table() == {"a.jpg": {"camera": "c1"}}
    path.write_text("image,camera\na.jpg,c1\nb.jpg,c2\n")
    assert table() == {"a.jpg": {"camera": "c1"}}
    assert table() == {"a.jpg": {"camera": "c1"}, "b.jpg": {"camera": "c2"}} == table()
    path.unlink()
    with pytest.raises(CsktError, match=r"table\.csv"):
        [table(), table()]


def test_another_model_ends_the_watch(gallery: Gallery, crops: Path, other_model: Encoder) -> None:
    def reindex() -> None:
        with Gallery.open(gallery.folder) as other:
            other.reindex(other_model)

    steps = iter([nothing, reindex, nothing])
    reports = gallery.watch(crops, wait=lambda _: next(steps)())
    next(reports)
    with pytest.raises(GalleryChangedError, match="was reindexed"):
        next(reports)


def test_errors_before_the_first_indexing_are_raised(empty: Gallery, tmp_path: Path) -> None:
    with pytest.raises(CsktError, match="no such folder of crops"):
        next(empty.watch(tmp_path / "gone"))
    with pytest.raises(CsktError, match="has no folder of crops yet"):
        next(empty.watch())


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 5])
def test_a_kill_between_two_files_loses_and_repeats_nothing(
    empty: Gallery, crops: Path, tiny_backbone: Path, new: bytes, limit: int
) -> None:
    program = Path(__file__).with_name("watching_process.py")
    words = [sys.executable, str(program), str(empty.folder), str(tiny_backbone), str(crops), str(limit)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reached\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert empty.count() == len(empty.search("a man with a backpack", k=20)) == limit
    stored = next(name for name in empty._state.store.files())
    (crops / stored).unlink()
    (crops / "half.png").write_bytes(new[:900])
    shutil.copyfile(crops.parent / "new.png", crops / "new.png")
    steps: list[Step] = [nothing, lambda: (crops / "half.png").write_bytes(new), nothing]
    first, second = watched(empty, crops, steps, prune=True)
    assert first == {"added": 13 - limit, "removed": 1, "unreadable": 1} and second == {"added": 1}
    assert empty.count() == 13 and empty.check().findings == []
