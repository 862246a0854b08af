"""A gallery exported and restored elsewhere; archives that are corrupt, incomplete or hostile."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from noise_pictures import picture

import cskt
from cskt.gallery.archive import CHECKSUMS, import_gallery
from cskt.gallery.gallery import Gallery

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clip_tiny: cskt.Encoder) -> Path:
    """A gallery of two indexed crops and two uploads, with files that belong to no archive."""
    place = tmp_path_factory.mktemp("archived")
    (place / "crops").mkdir()
    for number in range(2):
        picture(number).save(place / "crops" / f"{number}.png")
    with Gallery.create(place / "gallery", clip_tiny) as gallery:
        gallery.index(place / "crops", metadata={"0.png": {"camera": "c1"}})
        gallery.add([picture(2), picture(3)], ["live/2", "live/3"])
    (place / "gallery" / "audit.jsonl").write_text("{}\n", encoding="ascii")
    (place / "gallery" / "mine.txt").write_text("not of the gallery", encoding="ascii")
    return place / "gallery"


@pytest.fixture(scope="module")
def archive(folder: Path, clip_tiny: cskt.Encoder) -> Path:
    path = folder.parent / "backup.tar"
    with Gallery.open(folder, encoder=clip_tiny) as gallery:
        num_files = gallery.export(path)
    assert num_files == len(read(path)) - 1
    return path


def read(archive: Path) -> Members:
    with tarfile.open(archive, "r:") as source:
        return {info.name: source.extractfile(info).read() for info in source}  # type: ignore[union-attr]


def write(path: Path, members: Members, *, summed: bool = False) -> Path:
    """Write an archive; `summed`: with checksums that fit."""
    if summed:
        members = {name: data for name, data in members.items() if name != CHECKSUMS}
        lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in members.items()]
        members[CHECKSUMS] = "".join(lines).encode()
    with tarfile.open(path, "w:") as target:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return path


def test_a_gallery_is_restored_elsewhere(folder: Path, archive: Path, clip_tiny: cskt.Encoder, tmp_path: Path) -> None:
    assert import_gallery(archive, tmp_path / "far" / "restored") == 4
    assert {path.name for path in (tmp_path / "far").iterdir()} == {"restored"}
    with (
        Gallery.open(folder, encoder=clip_tiny) as before,
        Gallery.open(tmp_path / "far" / "restored", encoder=clip_tiny) as after,
    ):
        assert after.search("a man", k=10) == before.search("a man", k=10)
        for name in ("0.png", "live/2"):
            assert after.crop(name) == before.crop(name) and after.thumbnail(name) == before.thumbnail(name)
            assert after.original(name).read_bytes() == before.original(name).read_bytes()
        assert after.original("live/2").is_relative_to(tmp_path)
        assert after.add([before.original("0.png")], ["live/4"]).added == 1
        assert (len(before), len(after)) == (4, 5)


def test_only_files_of_the_gallery_are_in_the_archive(archive: Path) -> None:
    names = list(read(archive))
    assert names[-1] == CHECKSUMS and "gallery.json" in names
    assert {name.partition("/")[0] for name in names} == {"gallery.json", "vectors", "originals", CHECKSUMS}
    assert not any(name.endswith(".lock") for name in names)


def test_the_checksums_are_those_of_sha256sum(archive: Path) -> None:
    members = read(archive)
    lines = members.pop(CHECKSUMS).decode().splitlines()
    assert lines == [f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in members.items()]


def test_places_that_are_refused(
    folder: Path, archive: Path, clip_tiny: cskt.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Gallery.open(folder, encoder=clip_tiny) as gallery, pytest.raises(ValueError, match="exists already"):
        gallery.export(archive)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="exists already; name a new folder"):
        import_gallery(archive, tmp_path / "full")
    with pytest.raises(ValueError, match=r"nothing\.tar"):
        import_gallery(tmp_path / "nothing.tar", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "empty")
        with pytest.raises(ValueError, match="is the working directory; name a new folder"):
            import_gallery(archive, Path())
    assert import_gallery(archive, tmp_path / "empty") == 4


def changed(members: Members) -> Members:
    name = next(name for name in members if name.startswith("originals/"))
    return members | {name: members[name][:-1] + b"\0"}


def without_one(members: Members) -> Members:
    del members[next(name for name in members if name.startswith("originals/"))]
    return members


def without_sums(members: Members) -> Members:
    del members[CHECKSUMS]
    return members


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed, "missing, new or changed since the export"),
        (without_one, "missing, new or changed since the export"),
        (without_sums, "incomplete: SHA256SUMS is missing"),
        (lambda members: members | {"vectors/x/late": b""}, "'vectors/x/late' is not expected there"),
        (lambda members: {"gallery.json": b"{}", CHECKSUMS: b"x"}, "SHA256SUMS is corrupt"),
    ],
)
def test_corrupt_archives(archive: Path, tmp_path: Path, change: Callable[[Members], Members], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        import_gallery(write(tmp_path / "other.tar", change(read(archive))), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["other.tar"], "nothing is left of the attempt"


@pytest.mark.parametrize(
    "name",
    [
        "../outside", "/tmp/outside", "vectors/../../outside", "vectors/a/../b", "audit.jsonl", "gallery.lock",
        "originals/.hidden/x", "vectors/a/write.lock", "vectors//a/b", "vectors\\a\\b", "other/a/b", "vectors",
    ],
)  # fmt: skip
def test_names_that_no_archive_holds(archive: Path, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "other.tar", {name: b"x", **read(archive)}, summed=True)
    with pytest.raises(ValueError, match="is no file of a gallery"):
        import_gallery(path, tmp_path / "new")
    assert [each.name for each in tmp_path.iterdir()] == ["other.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(archive: Path, tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "other.tar", "w:") as target:
        info = tarfile.TarInfo("originals/aa/link")
        info.type, info.linkname = kind, "/etc/passwd"
        target.addfile(info)
    with pytest.raises(ValueError, match="is not expected there"):
        import_gallery(tmp_path / "other.tar", tmp_path / "new")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_archives_that_end_too_early(archive: Path, tmp_path: Path, share: float) -> None:
    data = archive.read_bytes()
    data = data[: data.rindex(b"  vectors/")]  # within the checksums; zeros follow them
    (tmp_path / "other.tar").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="other.tar"):
        import_gallery(tmp_path / "other.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_gallery_whose_store_is_elsewhere_is_not_exported(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "own")
    with Gallery.open(tmp_path / "own", device="cpu") as gallery:
        gallery._state._change(store="milvus://127.0.0.1:1/crops")
        with pytest.raises(ValueError, match="back that up with the tools of its server"):
            gallery.export(tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()
