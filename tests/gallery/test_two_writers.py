"""Two programs change one gallery: changes that the first has acknowledged are not undone by the second."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import cskt
from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing import reencoding
from cskt.gallery.indexing.encoding import Engine, LocalEngine, Pending, Processed
from tiny_run import write_backbone

Meanwhile = Callable[[Callable[[], object]], Engine]


class Interrupted:
    """An engine after whose work, before its results are stored, another program changes the gallery."""

    def __init__(self, engine: Engine, meanwhile: Callable[[], object]) -> None:
        self._engine, self._meanwhile = engine, meanwhile

    def work(self, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        """Yield the results of the engine after the change."""
        batches = list(self._engine.work(pending))
        self._meanwhile()
        yield from batches


@pytest.fixture
def other(gallery: Gallery, encoder: Encoder) -> Iterator[Gallery]:
    """Open the same gallery as another program would."""
    with Gallery.open(gallery.folder, encoder=encoder) as opened:
        yield opened


@pytest.fixture
def meanwhile(encoder: Encoder) -> Meanwhile:
    """Return a function that makes such an engine for a change."""
    return lambda act: Interrupted(LocalEngine(encoder), act)


@pytest.fixture
def name(crops: Path) -> str:
    return sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.jpg"))[0]


def test_an_upload_with_the_name_of_a_deleted_file_is_not_pruned(
    gallery: Gallery, other: Gallery, crops: Path, name: str, meanwhile: Meanwhile
) -> None:
    picture = (crops / name).read_bytes()
    (crops / name).unlink()

    def hand_over() -> None:
        other.remove([name])
        other.add([picture], [name])

    report = gallery.index(prune=True, engine=meanwhile(hand_over))
    assert (report.removed, report.unchanged) == (0, 11)
    assert gallery.crop(name).kept
    assert gallery.original(name).read_bytes() == picture


def test_an_upload_is_not_replaced_by_a_file_that_was_listed_before(
    gallery: Gallery, other: Gallery, crops: Path, name: str, meanwhile: Meanwhile
) -> None:
    shutil.copyfile(crops / name, crops / "new.jpg")
    picture = next(path for path in sorted(crops.rglob("*.jpg")) if path.name == "05.jpg").read_bytes()
    report = gallery.index(engine=meanwhile(lambda: other.add([picture], ["new.jpg"])))
    assert (report.added, report.replaced) == (0, 0)
    assert report.unreadable == [("new.jpg", "a crop of this name was uploaded; remove it first")]
    assert gallery.crop("new.jpg").kept
    assert gallery.original("new.jpg").read_bytes() == picture


def test_an_indexed_file_is_not_replaced_by_a_concurrent_upload(
    gallery: Gallery, other: Gallery, crops: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, picture = LocalEngine.work, (crops / name).read_bytes()

    def late(engine: LocalEngine, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        batches = list(work(engine, pending))
        monkeypatch.setattr(LocalEngine, "work", work)
        shutil.copyfile(crops / name, crops / "new.jpg")
        other.index()
        yield from batches

    monkeypatch.setattr(LocalEngine, "work", late)
    report = gallery.add([picture], ["new.jpg"])
    assert report.unreadable == [("new.jpg", "the name of an indexed file; give the crop another")]
    assert not gallery.crop("new.jpg").kept


def test_metadata_of_both_writers_is_stored(
    gallery: Gallery, other: Gallery, crops: Path, name: str, meanwhile: Meanwhile
) -> None:
    """For a changed file, a new one, and one with another modification time only."""
    changed, touched, new = name, "touched.jpg", "new.jpg"
    shutil.copyfile(crops / name, crops / touched)
    gallery.index(metadata={changed: {"x": 1, "gone": 1}, touched: {"x": 1, "gone": 1}})
    later = (crops / touched).stat().st_mtime + 5
    shutil.copyfile(next(path for path in crops.rglob("*.jpg") if path.name == "05.jpg"), crops / changed)
    shutil.copyfile(crops / changed, crops / new)
    os.utime(crops / touched, (later, later))
    names = (changed, touched, new)
    report = gallery.index(
        metadata={each: {"z": 3, "gone": None} for each in names},
        engine=meanwhile(lambda: other.index(metadata={each: {"y": 2} for each in names})),
    )
    assert report.unreadable == []
    found = {each: dict(gallery.crop(each).metadata) for each in names}
    assert found == {
        changed: {"x": 1, "y": 2, "z": 3}, touched: {"x": 1, "y": 2, "z": 3}, new: {"y": 2, "z": 3},
    }  # fmt: skip


def test_a_removed_crop_is_not_reported_as_unchanged(
    gallery: Gallery, other: Gallery, crops: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, work = (crops / name).read_bytes(), LocalEngine.work
    gallery.add([picture], ["live"])

    def late(engine: LocalEngine, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        batches = list(work(engine, pending))
        other.remove(["live"])
        yield from batches

    monkeypatch.setattr(LocalEngine, "work", late)
    report = gallery.add([picture], ["live"])
    assert (report.unchanged, report.added) == (0, 0)
    assert report.unreadable == [("live", "another program has changed this crop meanwhile; try again")]


@pytest.mark.parametrize("store", ["lance", "milvus"])
def test_a_column_added_during_reindexing_is_retained(
    encoder: Encoder, crops: Path, tiny_backbone: Path, tmp_path: Path, name: str, store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if store == "milvus":
        pytest.importorskip("milvus_lite")
        store = f"milvus:{tmp_path}/crops.db"
    path = write_backbone(tmp_path / "other.safetensors", seed=1)
    picture, fill = (crops / name).read_bytes(), reencoding.fill
    with Gallery.create(tmp_path / "gallery-2", encoder, store=store) as gallery:
        gallery.index(crops)
        writer = Gallery.open(gallery.folder, encoder=encoder)

        def once(*args: object, **kwargs: object) -> None:
            fill(*args, **kwargs)  # type: ignore[arg-type]
            monkeypatch.setattr(reencoding, "fill", fill)
            writer.add([picture], ["live"], [{"zone": "z1"}])
            writer.close()

        monkeypatch.setattr(reencoding, "fill", once)
        gallery.reindex(cskt.load(path, device="cpu"))
        assert dict(gallery.crop("live").metadata) == {"zone": "z1"}
        assert gallery.count("zone = 'z1'") == 1
        assert gallery.count() == 13
