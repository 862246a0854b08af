"""Uploaded files: complete, each stored once, and none without a crop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cskt.gallery.gallery import Gallery
from cskt.gallery.originals import ORIGINALS, PENDING, Originals, original_path


def kept(folder: Path) -> set[str]:
    """Return the names of the stored files."""
    return {path.name for path in (folder / ORIGINALS).glob("*/*")}


def digests(*images: bytes) -> set[str]:
    return {hashlib.sha256(image).hexdigest() for image in images}


def test_uploads_are_named_by_content_and_written_completely(gallery: Gallery) -> None:
    originals, (sha256,) = Originals(gallery.folder, gallery._state.store), digests(b"data")
    originals.save(b"data", sha256)
    path = original_path(gallery.folder, sha256)
    assert path.read_bytes() == b"data"
    before = path.stat().st_mtime_ns
    originals.save(b"data", sha256)
    assert path.stat().st_mtime_ns == before
    assert [entry.name for entry in path.parent.iterdir()] == [sha256]


def test_a_shared_upload_is_deleted_with_its_last_crop(gallery: Gallery, crops: Path) -> None:
    first, second = (path.read_bytes() for path in sorted(crops.rglob("*.jpg"))[:2])
    gallery.add([first, first, second], ["a", "b", "c"])
    assert kept(gallery.folder) == digests(first, second)
    gallery.add([second], ["a"])
    assert kept(gallery.folder) == digests(first, second)
    gallery.add([second], ["b"])
    assert kept(gallery.folder) == digests(second)
    gallery.remove(["a", "b", "c"])
    assert kept(gallery.folder) == set() and not (gallery.folder / PENDING).exists()


@pytest.mark.parametrize("broken_off", ["add", "remove"])
def test_the_next_change_deletes_what_an_interrupted_one_left(
    gallery: Gallery, crops: Path, monkeypatch: pytest.MonkeyPatch, broken_off: str
) -> None:
    """As a kill would: between the file and the crop, in whichever order they come or go."""
    one, other = (path.read_bytes() for path in sorted(crops.rglob("*.jpg"))[:2])
    gallery.add([one], ["one"])
    store = gallery._state.store

    def after(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed_and_failed(*args: Any) -> None:
            change(*args)
            raise KeyboardInterrupt

        return changed_and_failed

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if broken_off == "add":
            patch.setattr(store, "add", after(lambda _: None))
            gallery.add([other], ["other"])
        else:
            patch.setattr(store, "delete", after(store.delete))
            gallery.remove(["one"])
    assert kept(gallery.folder) == (digests(one, other) if broken_off == "add" else digests(one))
    stranger = original_path(gallery.folder, "0" * 64)
    stranger.parent.mkdir()
    stranger.write_bytes(b"of a crop that the store has lost, say")
    gallery.remove(["nobody"])
    assert kept(gallery.folder) == (digests(one) if broken_off == "add" else set()) | {"0" * 64}
    assert not (gallery.folder / PENDING).exists()
