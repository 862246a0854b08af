"""Indexing again: the source is stored in the manifest, and no crop is lost by accident."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_scanning import fail_to_list
from test_shards import archive_of, images_in, parquet_of

from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import MANIFEST


@pytest.fixture
def empty(tmp_path: Path, encoder: Encoder, tiny_backbone: Path) -> Path:
    """The folder of a gallery without crops."""
    with Gallery.create(tmp_path / "gallery", encoder) as made:
        return made.folder


def list_of(crops: Path, names: list[str]) -> Path:
    (crops / "names.txt").write_text("\n".join(names), encoding="utf-8")
    return crops / "names.txt"


def is_in(gallery: Gallery) -> set[str]:
    return set(gallery._state.store.files())


# --- what was indexed is remembered


def test_a_list_is_read_again_and_not_its_folder(empty: Path, encoder: Encoder, crops: Path) -> None:
    names = list(images_in(crops))
    with Gallery.open(empty, encoder=encoder) as gallery:
        assert gallery.index(list_of(crops, names[:3])).added == 3
        assert gallery.index().unchanged == 3
        list_of(crops, names[1:5])
        report = gallery.index()
        assert (report.added, report.unchanged, report.vanished) == (2, 2, 1)
    with Gallery.open(empty, encoder=encoder) as again:
        assert (again.index(prune=True).removed, is_in(again)) == (1, set(names[1:5]))


def test_a_list_can_be_replaced_by_its_folder_and_back(empty: Path, encoder: Encoder, crops: Path) -> None:
    names = list(images_in(crops))
    with Gallery.open(empty, encoder=encoder) as gallery:
        gallery.index(list_of(crops, names[:3]))
        assert gallery.index(crops).added == len(names) - 3
        assert gallery.index().unchanged == len(names)
        assert gallery.index(crops / "names.txt").vanished == len(names) - 3
        assert gallery.index().vanished == len(names) - 3


@pytest.mark.parametrize("prune", [False, True])
def test_a_missing_list_is_an_error(empty: Path, encoder: Encoder, crops: Path, prune: bool) -> None:
    with Gallery.open(empty, encoder=encoder) as gallery:
        gallery.index(list_of(crops, list(images_in(crops))[:3])).added  # noqa: B018
        (crops / "names.txt").unlink()
        with pytest.raises(ValueError, match=r"names\.txt: no such list of paths; put it back, or .*--images PATH"):
            gallery.index(prune=prune)
        assert gallery.count() == 3


def test_a_refused_list_is_not_stored(gallery: Gallery, crops: Path) -> None:
    with pytest.raises(ValueError, match="is not below the list's folder"):
        gallery.index(list_of(crops, ["../elsewhere.jpg"]))
    assert gallery.index().unchanged == 12


@pytest.mark.parametrize(
    ("name", "message"), [("../secret.txt", "'image_list' must be the name of a file"), ("link.txt", "leads outside")]
)
def test_a_list_in_a_strangers_manifest_names_no_file_outside(
    empty: Path, encoder: Encoder, crops: Path, tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "secret.txt").write_text("a.jpg", encoding="utf-8")
    (crops / "link.txt").symlink_to(tmp_path / "secret.txt")
    content = json.loads((empty / MANIFEST).read_text(encoding="utf-8"))
    content |= {"images": str(crops), "image_list": name}
    (empty / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message), Gallery.open(empty, encoder=encoder) as gallery:
        gallery.index()


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_shards_are_read_again(empty: Path, encoder: Encoder, crops: Path, tmp_path: Path, ending: str) -> None:
    make = archive_of if ending == "tar" else parquet_of
    images = list(images_in(crops).items())
    make(dict(images[:4]), tmp_path / f"one-1.{ending}")
    with Gallery.open(empty, encoder=encoder) as gallery:
        assert gallery.add_shards([f"{tmp_path}/one-*.{ending}"]).added == 4
        make(dict(images[4:6]), tmp_path / f"one-2.{ending}")
        make(dict(images[6:]), tmp_path / f"other.{ending}")
    with Gallery.open(empty, encoder=encoder) as gallery:
        report = gallery.add_shards()
        assert (report.added, report.unchanged) == (2, 4)
        with pytest.raises(ValueError, match="has no folder of crops yet"):
            gallery.index()


def test_indexing_shards_again_needs_an_earlier_call(empty: Path, encoder: Encoder, tmp_path: Path) -> None:
    with Gallery.open(empty, encoder=encoder) as gallery:
        with pytest.raises(ValueError, match="no shards were indexed before; name them"):
            gallery.add_shards()
        os.mkfifo(tmp_path / "pipe.tar")
        for name, message in (("pipe.tar", "not a file"), ("no-*.tar", "no such shard")):
            with pytest.raises(ValueError, match=message):
                gallery.add_shards([tmp_path / name])


# --- ignored files


def test_patterns_are_stored_until_others_are_given(gallery: Gallery, crops: Path, encoder: Encoder) -> None:
    report = gallery.index(ignore=["cam0/", "*/01.jpg"])
    assert (report.unchanged, report.vanished, report.passed_over) == (7, 5, {"ignored": 2})
    with Gallery.open(gallery.folder, encoder=encoder) as again:
        assert again.index(crops).vanished == 5
        assert again.index(prune=True).removed == 5
        assert not any(name.startswith("cam0/") or name == "cam1/01.jpg" for name in is_in(again))
        assert again.index(ignore=["cam0/"]).added == 1
        assert again.index(ignore=[]).added == 4
        assert again.index().unchanged == 12


def test_a_pattern_that_is_refused_changes_nothing(gallery: Gallery) -> None:
    with pytest.raises(ValueError, match="--ignore"):
        gallery.index(ignore=["../x"])
    assert gallery.index().unchanged == 12


def test_ignoring_everything_does_not_empty_the_gallery(gallery: Gallery) -> None:
    with pytest.raises(ValueError, match="not removing all 12 crops.*ignore less"):
        gallery.index(ignore=["*"], prune=True)
    assert gallery.count() == 12


def test_patterns_apply_to_lists_and_shards(empty: Path, encoder: Encoder, crops: Path, tmp_path: Path) -> None:
    images = images_in(crops)
    num_others = sum(not name.startswith("cam0/") for name in images)
    shard = archive_of(images, tmp_path / "one.tar")
    table = parquet_of(images, tmp_path / "one.parquet")
    with Gallery.open(empty, encoder=encoder) as gallery:
        for path, added in ((shard, num_others), (table, 0)):
            report = gallery.add_shards([path], ignore=["cam0"])
            assert (report.added, report.passed_over) == (added, {"ignored": len(images) - num_others})
    with Gallery.create(tmp_path / "listed", encoder) as gallery:
        report = gallery.index(list_of(crops, list(images)), ignore=["cam0"])
        assert (report.added, report.passed_over) == (num_others, {"ignored": len(images) - num_others})


def test_members_of_an_archive_that_are_no_crops_are_counted(empty: Path, encoder: Encoder, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        for name, kind in (
            ("a.heic", tarfile.REGTYPE), ("b.npy", tarfile.REGTYPE), ("c", tarfile.REGTYPE), ("d", tarfile.DIRTYPE),
            ("e.jpg", tarfile.SYMTYPE), ("f.jpg", tarfile.LNKTYPE), ("g.jpg", tarfile.FIFOTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
    with Gallery.open(empty, encoder=encoder) as gallery:
        counted = gallery.add_shards([tmp_path / "one.tar"]).passed_over
    assert counted.pop(".heic", 1) == 1
    assert counted == {".npy": 1, "files without a suffix": 1, "links": 2, "special files": 1}


# --- what cannot be read


def test_an_unreadable_folder_loses_no_crop(gallery: Gallery, crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(crops / "cam0" / "00.jpg", crops / "new.jpg")
    (crops / "cam2" / "02.jpg").unlink()
    with monkeypatch.context() as patch:
        fail_to_list(patch, crops / "cam1", errno.EACCES)
        report = gallery.index(prune=True)
        assert (report.added, report.unchanged, report.removed, report.unchecked) == (1, 7, 1, 4)
        assert (report.vanished, report.unreadable_folders) == (0, [("cam1", "Permission denied")])
    report = gallery.index()
    assert (report.unchanged, report.unchecked, report.unreadable_folders) == (12, 0, [])


def test_no_crop_is_lost_if_no_folder_can_be_read(
    gallery: Gallery, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) != crops:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = gallery.index(prune=True)
    assert (report.unchecked, report.removed, len(report.unreadable_folders)) == (12, 0, 3)
    assert gallery.count() == 12


def test_crops_whose_extra_is_missing_are_not_pruned(
    gallery: Gallery, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cskt.gallery.indexing import scanning

    shutil.move(crops / "cam0" / "00.jpg", crops / "cam0" / "00.heic")
    monkeypatch.setattr(scanning, "SUFFIXES", scanning.SUFFIXES | {".heic"})
    gallery.index(prune=True)
    assert "cam0/00.heic" in is_in(gallery)
    monkeypatch.setattr(scanning, "SUFFIXES", scanning.SUFFIXES - {".heic"})
    report = gallery.index(prune=True)
    assert (report.unchecked, report.removed, report.passed_over) == (1, 0, {".heic": 1})
    assert gallery.count() == 12


def test_an_overwritten_unreadable_file_is_reported_and_pruned(gallery: Gallery, crops: Path) -> None:
    (crops / "cam0" / "00.jpg").write_bytes(b"no picture any more")
    (crops / "cam1" / "01.jpg").write_bytes(b"")
    (crops / "never-was.jpg").write_bytes(b"no picture")
    report = gallery.index()
    assert sorted(report.outdated) == ["cam0/00.jpg", "cam1/01.jpg"]
    assert (len(report.unreadable), report.removed, gallery.count()) == (3, 0, 12)
    report = gallery.index(prune=True)
    assert (report.outdated, len(report.unreadable), report.removed, gallery.count()) == ([], 3, 2, 10)
    assert "cam0/00.jpg" not in is_in(gallery)


def test_a_file_that_another_process_has_replaced_is_not_pruned(
    gallery: Gallery, crops: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older version is removed only if it is still the one that this process saw."""
    from cskt.gallery.indexing import updating

    path = crops / "cam0" / "00.jpg"
    good = (crops / "cam1" / "01.jpg").read_bytes()
    path.write_bytes(b"no picture any more")
    fill = updating.fill

    def fill_and_repair(*given: Any, **options: Any) -> None:
        fill(*given, **options)
        monkeypatch.setattr(updating, "fill", fill)
        path.write_bytes(good)
        with Gallery.open(gallery.folder, encoder=encoder) as other:
            assert other.index().replaced == 1

    monkeypatch.setattr(updating, "fill", fill_and_repair)
    assert gallery.index(prune=True).removed == 0
    assert gallery.count() == 12


def test_an_unreadable_crop_of_a_shard_keeps_its_older_version(
    empty: Path, encoder: Encoder, crops: Path, tmp_path: Path
) -> None:
    name, data = next(iter(images_in(crops).items()))
    with Gallery.open(empty, encoder=encoder) as gallery:
        gallery.add_shards([archive_of({name: data}, tmp_path / "one.tar")])
        report = gallery.add_shards([archive_of({name: b"no picture"}, tmp_path / "one.tar")])
        assert (report.outdated, gallery.count()) == ([name], 1)
        assert gallery.original(name).read_bytes() == data
