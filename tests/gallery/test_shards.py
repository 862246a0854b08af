"""Crops from lists, Parquet files and archives: the same gallery as from a folder, however often it is asked for."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.gallery.shards import crops_of, listed


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
    store = gallery._contents.store
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
    with Gallery.create(tmp_path / "sharded", encoder, str(tiny_backbone)) as sharded:
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


def test_what_cannot_be_a_crop_is_listed(gallery: Gallery, tmp_path: Path) -> None:
    data = images_in(Path(gallery._contents.images))  # type: ignore[arg-type]
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


def test_damaged_shards_are_one_line(tmp_path: Path, crops: Path) -> None:
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


def test_a_list_stands_for_what_is_there(gallery: Gallery, crops: Path) -> None:
    names = list(images_in(crops))
    (crops / "names.txt").write_text("\n".join([*names[:5], "", names[0]]), encoding="utf-8")
    report = gallery.index(crops / "names.txt")
    assert (report.unchanged, report.vanished) == (5, len(names) - 5)
    assert gallery.index(crops / "names.txt", prune=True).removed == len(names) - 5
    assert gallery.count() == 5


@pytest.mark.parametrize(
    ("line", "told"), [("../elsewhere.jpg", "line 1: ../elsewhere.jpg is not below"), ("no.jpg", "line 1: no.jpg: ")]
)
def test_a_list_that_names_what_it_may_not(line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "names.txt"
    path.parent.mkdir()
    (tmp_path / "elsewhere.jpg").write_bytes(b"")
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        list(listed(path))
    assert told in str(caught.value)
