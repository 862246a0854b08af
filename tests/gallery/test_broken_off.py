"""What is left of a change that had no room or was killed half way: nothing that a later change stumbles over."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cskt.embed import Encoder
from cskt.errors import FileSystemError, StoreError
from cskt.gallery import state
from cskt.gallery.gallery import Gallery
from disks import another_user


@pytest.fixture(params=["lance", "milvus"])
def empty(request: pytest.FixtureRequest, tmp_path: Path, encoder: Encoder, tiny_backbone: Path) -> Iterator[Gallery]:
    """A gallery without a crop."""
    if request.param == "milvus":
        pytest.importorskip("milvus_lite")
    where = request.param if request.param == "lance" else f"milvus:{tmp_path}/crops.db"
    with Gallery.create(tmp_path / "empty", encoder, store=where) as made:
        yield made


def no_room(*_: Any) -> None:
    raise StoreError("gallery.json: cannot be written: no room")


@pytest.mark.parametrize("zone", ["z1", 7], ids=["of the same kind", "of another kind"])
def test_a_column_whose_manifest_found_no_room_is_made_by_the_next_who_states_it(
    empty: Gallery, encoder: Encoder, crops: Path, monkeypatch: pytest.MonkeyPatch, zone: object
) -> None:
    """It stands in the store, but the gallery does not know of it: here, and when it is opened again."""
    picture = next(crops.rglob("*.jpg")).read_bytes()
    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr(state, "write_manifest", no_room)
        empty.add([picture], ["a"], [{"zone": "z1"}])
    assert (empty.count(), empty.columns) == (0, {})
    empty.add([picture], ["a"], [{"zone": zone}])
    condition = f"zone = {zone!r}"
    assert empty.crop("a").metadata == {"zone": zone}
    empty.close()
    with Gallery.open(empty.folder, encoder=encoder) as again:
        assert again.crop("a").metadata == {"zone": zone}
        assert [hit.image_id for hit in again.search("a man", where=condition)] == ["a"]


def test_a_reindex_that_finds_no_room_at_the_end_keeps_the_old_model(
    gallery: Gallery, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, other_model: Encoder
) -> None:
    before = gallery.search("a man in a red coat", k=12)
    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr(state, "write_manifest", no_room)
        gallery.reindex(other_model)
    assert gallery.search("a man in a red coat", k=12) == before
    with Gallery.open(gallery.folder, encoder=encoder) as again:
        assert again.search("a man in a red coat", k=12) == before
    assert gallery.reindex(other_model).unchanged == 12, "what was encoded is not encoded again"
    assert gallery.search("a man in a red coat", k=12) != before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [cut, Path.unlink], ids=["cut short", "gone"])
def test_damaged_vectors_are_one_line(gallery: Gallery, encoder: Encoder, harm: Callable[[Path], None]) -> None:
    for path in gallery.folder.rglob("crops.lance/data/*.lance"):
        harm(path)
    for ask in (
        lambda opened: opened.search("a man"), lambda opened: opened.crop("cam0/00.jpg"), lambda opened: opened.index(),
    ):  # fmt: skip
        with Gallery.open(gallery.folder, encoder=encoder) as opened, pytest.raises(StoreError) as refusal:
            ask(opened)
        message = str(refusal.value)
        assert message.startswith(f"{gallery.folder}/vectors/") and "corrupt" in message and "\n" not in message
        assert "restore it, or index into a new folder" in message and len(message) < 500


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights")
def test_vectors_that_nobody_may_read_are_one_line(gallery: Gallery, encoder: Encoder) -> None:
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to other users
        Path(scratch).chmod(0o755)
        folder = Path(shutil.copytree(gallery.folder, Path(scratch) / "gallery"))
        (data,) = folder.rglob("crops.lance/data")
        data.chmod(0)
        with (
            another_user(), Gallery.open(folder, encoder=encoder) as opened, pytest.raises(FileSystemError) as refusal,
        ):  # fmt: skip
            opened.search("a man")
        data.chmod(0o755)
        assert str(refusal.value).startswith(f"{folder}/vectors/") and "Permission denied" in str(refusal.value)
