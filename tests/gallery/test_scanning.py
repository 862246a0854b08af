"""Files of a folder or a list: skipped and unreadable entries do not end a scan."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cskt.gallery.indexing.scanning import ImageSource, Scan
from disks import another_user


def folder_of(root: Path, *names: str) -> Path:
    """A folder with files, which are never opened here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def fail_to_list(monkeypatch: pytest.MonkeyPatch, folder: Path, code: int) -> None:
    """Let the system refuse to list a folder."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == folder:
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_skipped_files_are_counted_by_kind(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path / "crops",
        "a.jpg", "b/c.PNG", ".hidden.jpg", ".git/d.jpg", "notes.txt", "e.TXT", "README", "old/f.jpg", "thumb.gif",
    )  # fmt: skip
    (folder / "link.jpg").symlink_to(folder / "a.jpg")
    (folder / "way-out").symlink_to(tmp_path)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.jpg")  # reading it would wait for ever
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.jpg"))
    scan = ImageSource(folder, ignore=("old/", "*.gif")).scan()
    assert list(scan.files) == ["a.jpg", "b/c.PNG"]
    assert scan.passed_over == {
        "hidden": 2, ".txt": 2, "files without a suffix": 1, "links": 3, "special files": 2, "ignored": 2,
    }  # fmt: skip
    assert (scan.unreadable, scan.unreadable_folders, scan.unchecked) == ([], [], set())


def test_kinds_stay_few_and_printable(tmp_path: Path) -> None:
    names = [f"x.{number:03}" for number in range(30)]
    folder = folder_of(tmp_path / "crops", *names, "a.\x1b[2J", "b.suffix-without-end", "x.000.001")
    kinds = ImageSource(folder).scan().passed_over
    assert kinds["other files"] == 12 and kinds[".001"] == 2 and len(kinds) == 21
    assert all(kind.isprintable() for kind in kinds)


def test_the_folder_of_the_gallery_is_skipped(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jpg", "gallery/originals/x.jpg", "gallery/gallery.json", "b/gallery/c.jpg")
    scan = ImageSource(folder).scan(folder / "gallery")
    assert (list(scan.files), scan.passed_over) == (["a.jpg", "b/gallery/c.jpg"], {})
    inside = ImageSource(folder / "gallery").scan(folder / "gallery")
    assert list(inside.files) == ["originals/x.jpg"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE])
def test_a_folder_that_cannot_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    folder = folder_of(tmp_path, "a/1.jpg", "b/2.jpg", "b/c/3.jpg", "d/4.jpg")
    fail_to_list(monkeypatch, folder / "b", code)
    scan = ImageSource(folder).scan()
    assert list(scan.files) == ["a/1.jpg", "d/4.jpg"]
    assert scan.unreadable_folders == [("b", os.strerror(code))]
    assert [scan.is_unchecked(name) for name in ("b/2.jpg", "b/c/3.jpg", "b.jpg", "a/1.jpg", "x/b/2.jpg")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_a_folder_whose_listing_fails_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, "a/1.jpg", "a/2.jpg", "b.jpg")
    scandir = os.scandir

    class Broken:
        def __init__(self, path: Any) -> None:
            self._entries = scandir(path)

        def __enter__(self) -> Iterator[Any]:
            return self._listed()

        def __exit__(self, *error: object) -> None:
            self._entries.close()

        def _listed(self) -> Iterator[Any]:
            yield next(self._entries)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "scandir", lambda path: Broken(path) if Path(path).name == "a" else scandir(path))
    scan = ImageSource(folder).scan()
    assert (list(scan.files), scan.unreadable_folders) == (["b.jpg"], [("a", "Input/output error")])
    assert scan.is_unchecked("a/1.jpg") and scan.is_unchecked("a/2.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights")
def test_folders_without_rights_are_listed() -> None:
    """One that may not be read, and one that may be read but not entered: of its files not even the size is known."""
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to other users
        Path(scratch).chmod(0o755)
        folder = folder_of(Path(scratch), "a.jpg", "locked/b.jpg", "names/c.jpg", "names/d/e.jpg", "z.jpg")
        (folder / "locked").chmod(0)
        (folder / "names").chmod(0o444)
        try:
            with another_user():
                scan = ImageSource(folder).scan()
        finally:
            (folder / "locked").chmod(0o755)
            (folder / "names").chmod(0o755)
    assert list(scan.files) == ["a.jpg", "z.jpg"]
    assert scan.unreadable_folders == [("locked", "Permission denied"), ("names/d", "Permission denied")]
    assert scan.unreadable == [("names/c.jpg", "Permission denied")]
    assert all(map(scan.is_unchecked, ("locked/b.jpg", "names/c.jpg", "names/d/e.jpg")))


def test_a_folder_of_crops_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder of crops"):
        ImageSource(tmp_path / "nowhere").scan()
    fail_to_list(monkeypatch, tmp_path, errno.EACCES)
    with pytest.raises(ValueError, match=f"{tmp_path}: Permission denied; make it readable"):
        ImageSource(tmp_path).scan()


def test_missing_files_of_a_list_are_reported_and_skipped(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.jpg", "b/c.jpg", "old/d.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "round.jpg").symlink_to("round.jpg")
    missing = ["gone.jpg", "a.jpg/e.jpg"]
    names = ["a.jpg", *missing, "pipe.jpg", "b", "round.jpg", "a\0.jpg", "x" * 300, "old/d.jpg", "b/c.jpg"]
    (folder / "names.txt").write_text("\n".join(names), encoding="utf-8")
    scan = ImageSource(folder, folder / "names.txt", ignore=("old",)).scan()
    assert list(scan.files) == ["a.jpg", "b/c.jpg"]
    assert scan.passed_over == {"special files": 1, "folders": 1, "ignored": 1}
    reasons = dict(scan.unreadable)
    assert reasons["gone.jpg"] == "line 2 of names.txt: no such file"
    assert reasons.keys() == {"gone.jpg", "round.jpg", "a\0.jpg", "x" * 300, "a.jpg/e.jpg"}
    assert reasons["a.jpg/e.jpg"] == "line 3 of names.txt: no such file"
    assert not scan.is_unchecked("gone.jpg") and scan.is_unchecked("round.jpg")


@pytest.mark.parametrize("kind", ["missing", "pipe", "latin-1"])
def test_a_list_that_cannot_be_read_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "names.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "latin-1":
        path.write_bytes(b"gr\xf6\xdfe.jpg")
    with pytest.raises(ValueError, match="names.txt: (no such list of paths|cannot be read as a list)"):
        ImageSource(tmp_path, path).scan()


def test_nothing_is_unchecked_after_a_complete_scan() -> None:
    assert not Scan().is_unchecked("a/b.jpg")
