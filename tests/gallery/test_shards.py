"""Crops of lists, Parquet files and archives: the same gallery as from a folder, also when repeated."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import cskt.gallery.indexing.shards as shards_module
from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing import encoding
from cskt.gallery.indexing.scanning import ImageSource
from cskt.gallery.indexing.shards import crops_of


def images_in(crops: Path) -> dict[str, bytes]:
    """Name within the folder -> bytes."""
    return {path.relative_to(crops).as_posix(): path.read_bytes() for path in sorted(crops.rglob("*.jpg"))}


def parquet_of(images: dict[str, bytes], path: Path, *, nested: bool = False) -> Path:
    """A Parquet file as tables of images are: bytes in a column, or in a column of structures with their path."""
    numbers = list(range(len(images)))
    if nested:
        content = [{"bytes": data, "path": name} for name, data in images.items()]
        table = pyarrow.table({"image": content, "camera": numbers})
    else:
        table = pyarrow.table({"name": list(images), "jpg": list(images.values()), "camera": numbers})
    pyarrow.parquet.write_table(table, path, row_group_size=5)
    return path


def archive_of(images: dict[str, bytes], path: Path) -> Path:
    """A WebDataset archive: image, JSON and class beside one another."""
    with tarfile.open(path, "w") as archive:
        for number, (name, data) in enumerate(images.items()):
            key = name.removesuffix(".jpg")
            members = {name: data, f"{key}.json": json.dumps({"camera": number}).encode(), f"{key}.cls": b"7\n"}
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def vectors(gallery: Gallery) -> dict[str, np.ndarray]:
    """Name -> vector."""
    store = gallery._state.store
    return dict(store.vectors(list(store.files())))


@pytest.mark.parametrize("kind", ["parquet", "nested", "archive"])
def test_shards_give_the_gallery_of_the_folder(
    kind: str, gallery: Gallery, crops: Path, tmp_path: Path, encoder: Encoder, tiny_backbone: Path
) -> None:
    images = images_in(crops)
    make = {"parquet": parquet_of, "nested": lambda i, p: parquet_of(i, p, nested=True), "archive": archive_of}[kind]
    ending = "tar" if kind == "archive" else "parquet"
    first, second = dict(list(images.items())[:7]), dict(list(images.items())[7:])
    shards = [make(first, tmp_path / f"one.{ending}"), make(second, tmp_path / f"two.{ending}")]
    with Gallery.create(tmp_path / "sharded", encoder) as sharded:
        report = sharded.add_shards(shards)
        assert (report.added, report.unreadable) == (len(images), [])
        expected = vectors(gallery)
        assert vectors(sharded).keys() == expected.keys()
        for name, vector in vectors(sharded).items():
            assert np.allclose(vector, expected[name], atol=1e-6), name
        assert sharded.count("camera >= 3") == (7 - 3) + max(len(second) - 3, 0)
        again = sharded.add_shards(shards)
        assert (again.added, again.replaced, again.unchanged) == (0, 0, len(images))

        changed = dict.fromkeys(list(first)[:1], next(iter(second.values())))
        report = sharded.add_shards([make(changed, tmp_path / f"three.{ending}")])
        assert (report.added, report.replaced) == (0, 1)
        assert sharded.count() == len(images)


def test_invalid_crops_are_listed(gallery: Gallery, tmp_path: Path) -> None:
    data = images_in(Path(gallery._state.images))  # type: ignore[arg-type]
    taken, content = next(iter(data.items()))
    rows = [("../out.jpg", content), ("bad.jpg", b"no image"), (taken, content), ("a.jpg", content), ("a.jpg", content)]
    table = pyarrow.table({"key": [name for name, _ in rows], "jpg": [data for _, data in rows]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    report = gallery.add_shards([tmp_path / "x.parquet"])
    assert report.added == 1
    reasons = dict(report.unreadable)
    assert reasons.keys() == {"../out.jpg", "bad.jpg", taken, "a.jpg"}
    assert "no name for a crop" in reasons["../out.jpg"] and "the name occurs twice" in reasons["a.jpg"]
    assert "name of an indexed file" in reasons[taken]


def test_a_name_counts_once_however_many_shards_have_it(
    crops: Path, tmp_path: Path, encoder: Encoder, tiny_backbone: Path
) -> None:
    first, second, *_ = images_in(crops).values()
    shards = [
        archive_of({"a.jpg": first, "b.jpg": first}, tmp_path / "1.tar"),
        archive_of({"a.jpg": second, "c.jpg": second}, tmp_path / "2.tar"),
    ]
    with Gallery.create(tmp_path / "sharded", encoder) as sharded:
        for added, unchanged in ((3, 0), (0, 3)):
            report = sharded.add_shards(shards)
            assert (report.added, report.unchanged, report.replaced, report.updated) == (added, unchanged, 0, 0)
            twice = f"{shards[1]}: the name occurs twice; the first counts"
            assert (report.unreadable, sharded.count()) == ([("a.jpg", twice)], 3)
        assert sharded.original("a.jpg").read_bytes() == first


def test_stored_crops_are_not_written_again(
    crops: Path, tmp_path: Path, encoder: Encoder, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = archive_of(images_in(crops), tmp_path / "1.tar")
    with Gallery.create(tmp_path / "sharded", encoder) as sharded:
        sharded.add_shards([shard])
        added: list[int] = []
        monkeypatch.setattr(sharded._state.store, "add", lambda crops: added.append(len(crops)))
        assert sharded.add_shards([shard]).unchanged == len(images_in(crops))
        assert sum(added) == 0


def test_names_outside_an_archive_are_refused(gallery: Gallery, crops: Path, tmp_path: Path) -> None:
    data = next(iter(images_in(crops).values()))
    with tarfile.open(tmp_path / "out.tar", "w") as archive:
        for name in ("../out.jpg", "/out.jpg", "a/../../out.jpg", "good/in.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)):
            info = tarfile.TarInfo(f"link{number}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    report = gallery.add_shards([tmp_path / "out.tar"])
    assert report.added == 1 and gallery.crop("good/in.jpg").image_id == "good/in.jpg"
    assert [name for name, _ in report.unreadable] == ["../out.jpg", "/out.jpg", "a/../../out.jpg"]
    assert not list(tmp_path.rglob("out.jpg"))


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_cut_or_corrupt_archive_is_reported(ending: str, crops: Path, tmp_path: Path) -> None:
    images = dict(list(images_in(crops).items())[:3])
    whole = archive_of(images, tmp_path / "whole.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))  # what follows is the mark of the end
    path = tmp_path / f"corrupt.{ending}"
    pack = gzip.compress if ending == "tar.gz" else bytes
    for length in (*range(0, end, 256), end):
        path.write_bytes(pack(whole[:length]))
        with pytest.raises(ValueError, match=re.escape(f"{path}: cannot be read: ")):
            list(crops_of(path))
    packed = pack(whole)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=re.escape(f"{path}: cannot be read: ")):
        list(crops_of(path))
    for header in range(0, end, 512):
        if whole[header + 257 : header + 262] == b"ustar":
            path.write_bytes(pack(whole[:header] + b"\xff" + whole[header + 1 :]))
            with pytest.raises(ValueError, match=re.escape(f"{path}: cannot be read: ")):
                list(crops_of(path))


def header(name: str, size: int, kind: bytes) -> bytes:
    """Header of an archive member with a given size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_wrong_sizes_in_headers_fill_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "lying.tar"
    path.write_bytes(header("a.jpg", 10**12, tarfile.REGTYPE) + b"\0" * 4096)
    with pytest.raises(ValueError, match="cannot be read: "):
        list(crops_of(path))
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        path.write_bytes(header("a.jpg", 10**9, kind) + b"\0" * 4096)
        with pytest.raises(ValueError, match="a name of 1000000000 bytes"):
            list(crops_of(path))


def test_a_too_large_image_is_listed(
    gallery: Gallery, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "MOST_BYTES", 2000)
    small, large = b"no image", b"\0" * 2001
    paths = [archive_of({"s.jpg": small, "l.jpg": large}, tmp_path / "x.tar")]
    paths.append(parquet_of({"s2.jpg": small, "l2.jpg": large}, tmp_path / "x.parquet"))
    reasons = dict(gallery.add_shards(paths).unreadable)
    assert reasons.keys() == {"s.jpg", "l.jpg", "s2.jpg", "l2.jpg"}
    assert reasons["l.jpg"] == f"{paths[0]}: 0.0 GB; a crop has at most 0 MB"
    assert reasons["l2.jpg"] == f"{paths[1]}: 0.0 GB; a crop has at most 0 MB"


def test_columns_of_a_table_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for columns, expected in (
        ({"file": [b"x"], "key": [0]}, ("0", b"x", {})),
        ({"path": [b"x"], "name": ["a.jpg"], "note": ["n"]}, ("a.jpg", b"x", {"note": "n"})),
        ({"jpg": [None], "name": [None]}, ("", b"", {})),
    ):
        table = pyarrow.table(columns)
        if None in columns.get("jpg", []):
            table = table.cast(pyarrow.schema([("jpg", pyarrow.binary()), ("name", pyarrow.string())]))
        pyarrow.parquet.write_table(table, path)
        (crop,) = crops_of(path)
        assert (crop.image_id, crop.data, crop.metadata) == expected
    pyarrow.parquet.write_table(pyarrow.table({"file": [b"x"]}), path)
    with pytest.raises(ValueError, match="and one with their names"):
        list(crops_of(path))
    broken = pyarrow.array([b"\xff\xfe"]).cast(pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"jpg": [b"x"], "name": broken}), path)
    with pytest.raises(ValueError, match=r"x\.parquet: cannot be read: "):
        list(crops_of(path))


def test_batches_are_limited_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_BATCH_BYTES", 10)
    sizes = [1, 1, 1, 1, 9, 2, 30, 1]
    assert list(encoding.batched(sizes, 3, lambda size: size)) == [[1, 1, 1], [1, 9], [2], [30], [1]]
    assert list(encoding.batched([], 3, lambda size: size)) == []


def test_corrupt_shards_are_reported_in_one_line(tmp_path: Path, crops: Path) -> None:
    images = images_in(crops)
    whole = parquet_of(images, tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-20])
    archive_of(images, tmp_path / "whole.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:3000])
    (tmp_path / "none.tar").write_bytes(b"no archive" * 100)
    pyarrow.parquet.write_table(pyarrow.table({"caption": ["a man"]}), tmp_path / "text.parquet")
    for name in ("cut.parquet", "cut.tar", "none.tar", "text.parquet"):
        with pytest.raises(ValueError, match=name) as caught:
            list(crops_of(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_a_list_names_all_files_of_the_gallery(gallery: Gallery, crops: Path) -> None:
    names = list(images_in(crops))
    (crops / "names.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*names[:5], "", names[0]]).encode())
    report = gallery.index(crops / "names.txt")
    assert (report.unchanged, report.vanished) == (5, len(names) - 5)
    assert gallery.index(crops / "names.txt", prune=True).removed == len(names) - 5
    assert gallery.count() == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../elsewhere.jpg", "line 1: ../elsewhere.jpg is not below"),
        ("link.jpg", "line 1: link.jpg is a link that leads out"), ("up/elsewhere.jpg", "is a link that leads out"),
    ],
)  # fmt: skip
def test_a_list_may_not_name_files_outside(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "names.txt"
    path.parent.mkdir()
    (tmp_path / "elsewhere.jpg").write_bytes(b"")
    (path.parent / "link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (path.parent / "up").symlink_to(tmp_path, target_is_directory=True)
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        ImageSource(path.parent, path).scan()
    assert message in str(caught.value)
