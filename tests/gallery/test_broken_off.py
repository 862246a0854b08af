"""Changes that a full disk or a kill has interrupted do not impede later ones; corrupt vectors are reported."""

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
    """Return a gallery without crops."""
    if request.param == "milvus":
        pytest.importorskip("milvus_lite")
    where = request.param if request.param == "lance" else f"milvus:{tmp_path}/crops.db"
    with Gallery.create(tmp_path / "empty", encoder, store=where) as made:
        yield made


def full_disk(*_: Any) -> None:
    raise StoreError("gallery.json: cannot be written: No space left on device")


@pytest.mark.parametrize("zone", ["z1", 7], ids=["same kind", "another kind"])
def test_a_column_is_made_again_if_the_disk_was_full_for_the_manifest(
    empty: Gallery, encoder: Encoder, crops: Path, monkeypatch: pytest.MonkeyPatch, zone: object
) -> None:
    """The store has the column, but the manifest does not, now and when the gallery is opened again."""
    picture = next(crops.rglob("*.jpg")).read_bytes()
    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr(state, "write_manifest", full_disk)
        empty.add([picture], ["a"], [{"zone": "z1"}])
    assert (empty.count(), empty.columns) == (0, {})
    empty.add([picture], ["a"], [{"zone": zone}])
    condition = f"zone = {zone!r}"
    assert empty.crop("a").metadata == {"zone": zone}
    empty.close()
    with Gallery.open(empty.folder, encoder=encoder) as again:
        assert again.crop("a").metadata == {"zone": zone}
        assert [hit.image_id for hit in again.search("a man", where=condition)] == ["a"]


def test_reindexing_on_a_full_disk_retains_the_old_model(
    gallery: Gallery, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, other_model: Encoder
) -> None:
    before = gallery.search("a man in a red coat", k=12)
    with monkeypatch.context() as patch, pytest.raises(StoreError):
        patch.setattr(state, "write_manifest", full_disk)
        gallery.reindex(other_model)
    assert gallery.search("a man in a red coat", k=12) == before
    with Gallery.open(gallery.folder, encoder=encoder) as again:
        assert again.search("a man in a red coat", k=12) == before
    assert gallery.reindex(other_model).unchanged == 12, "what was encoded is not encoded again"
    assert gallery.search("a man in a red coat", k=12) != before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [cut, Path.unlink], ids=["truncated", "missing"])
def test_corrupt_vectors_are_reported_in_one_line(
    gallery: Gallery, encoder: Encoder, harm: Callable[[Path], None]
) -> None:
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
def test_vectors_without_read_rights_are_reported_in_one_line(gallery: Gallery, encoder: Encoder) -> None:
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
