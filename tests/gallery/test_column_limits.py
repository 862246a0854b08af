"""Limits on columns and values for every source of metadata, and normal forms of text."""

from __future__ import annotations

import io
import json
import tarfile
import unicodedata
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from test_shards import archive_of, images_in

from cskt.gallery.columns import MAX_COLUMNS, MAX_VALUE_CHARACTERS, Kind
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing.commits import restate

MANY = {f"column {number}": "x" for number in range(MAX_COLUMNS + 1)}
LONG = {"note": "x" * (MAX_VALUE_CHARACTERS + 1)}


def state_of(gallery: Gallery) -> tuple[str, list[str], dict[str, object]]:
    """All that a refused request could have changed: the manifest, the store's columns and its crops."""
    store = gallery._state.store
    store_columns = sorted(store.get([next(iter(store.files()))]).popitem()[1].metadata)
    return (gallery.folder / "gallery.json").read_text(), store_columns, dict(store.get(list(store.files())))


@pytest.mark.parametrize(
    ("row", "problem"),
    [(MANY, "at most 100; leave columns out"), (LONG, "'note': .* has 2,001 characters; shorten it to 2,000")],
    ids=["columns", "value"],
)
@pytest.mark.parametrize("door", ["index", "add", "parquet", "archive"])
def test_too_many_columns_or_too_long_values_change_nothing(
    gallery: Gallery, crops: Path, tmp_path: Path, door: str, row: dict[str, str], problem: str
) -> None:
    """The row that is too much comes last, beside another new column, so that nothing of the others may be stored."""
    before = state_of(gallery)
    images = images_in(crops)
    rows = {name: {"fine": "yes"} | (row if number == len(images) - 1 else {}) for number, name in enumerate(images)}
    new = {f"new/{name}": data for name, data in images.items()}
    with pytest.raises(ValueError, match=problem) as refusal:
        if door == "index":
            gallery.index(metadata=rows)
        elif door == "add":
            gallery.add(list(new.values()), list(new), list(rows.values()))
        elif door == "parquet":
            columns = {name: [each.get(name) for each in rows.values()] for name in ("fine", *row)}
            table = pyarrow.table({"name": list(new), "jpg": list(new.values()), **columns})
            pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
            gallery.add_shards([tmp_path / "a.parquet"])
        else:
            archive = archive_of(new, tmp_path / "a.tar")
            last = archive_of_row(tmp_path / "b.tar", next(iter(new.values())), {"fine": "yes"} | row)
            gallery.add_shards([archive, last])
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400
    assert state_of(gallery) == before


def archive_of_row(path: Path, data: bytes, row: dict[str, str]) -> Path:
    """An archive of one crop with these values."""
    with tarfile.open(path, "w") as archive:
        for name, content in {"x.jpg": data, "x.json": json.dumps(row).encode()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_columns_of_all_indexings_are_counted(gallery: Gallery, crops: Path) -> None:
    name = next(iter(images_in(crops)))
    gallery.index(metadata={name: {f"a{number}": number for number in range(60)}})
    with pytest.raises(ValueError, match="41 new columns .* beside the gallery's 60"):
        gallery.index(metadata={name: {f"b{number}": number for number in range(41)}})
    gallery.index(metadata={name: {f"b{number}": number for number in range(40)}})
    assert len(gallery.columns) == MAX_COLUMNS
    gallery.index(metadata={name: {"a0": 7, "b39": None}})
    assert gallery.crop(name).metadata["a0"] == 7


def test_a_larger_gallery_opens_searches_and_refuses_new_columns(gallery: Gallery, crops: Path) -> None:
    """As earlier versions made them: more columns, and values of any length."""
    contents, name = gallery._state, next(iter(images_in(crops)))
    columns: dict[str, Kind] = {f"old_{number}": "text" for number in range(130)}
    contents.store.add_columns(columns)
    with contents.writing():
        contents._change(columns=columns)
        present = contents.store.get([name])
        restate(contents.store, present, {name: ({"old_0": "x" * 5000, "old_129": "y"}, present[name].modified_ns)})
    with Gallery.open(gallery.folder, encoder=gallery.encoder) as opened:
        assert [hit.image_id for hit in opened.search("a man", where="old_129 = 'y'")] == [name]
        assert len(str(opened.crop(name).metadata["old_0"])) == 5000
        opened.index(metadata={name: {"old_1": "z"}})
        assert opened.crop(name).metadata["old_1"] == "z"
        with pytest.raises(ValueError, match="1 new columns .* beside the gallery's 130"):
            opened.index(metadata={name: {"new": "z"}})


def test_two_headings_of_one_name_are_refused(gallery: Gallery, crops: Path) -> None:
    name = next(iter(images_in(crops)))
    with pytest.raises(ValueError, match=f"{name}: two columns have the name 'track_id' in a gallery; rename one"):
        gallery.index(metadata={name: {"Track ID": 1, "track_id": 2}})


def test_names_and_values_compare_in_nfc(gallery: Gallery, crops: Path) -> None:
    """The second crop holds its value as an earlier version stored it."""
    first, second, third = list(images_in(crops))[:3]
    camera = unicodedata.normalize("NFD", "カメラガ")
    gallery.index(metadata={first: {camera: "cafe\u0301"}, third: {camera: "tea"}})
    assert list(gallery.columns) == ["カメラガ"]
    contents = gallery._state
    with contents.writing():
        present = contents.store.get([second])
        restate(contents.store, present, {second: ({"カメラガ": "cafe\u0301"}, present[second].modified_ns)})
    for where in (
        f"{camera} = 'café'",
        "カメラガ = 'cafe\u0301'",
        "カメラガ LIKE 'café%'",
        f"\"{camera}\" IN ('café')",
    ):
        assert {hit.image_id for hit in gallery.search("a man", where=where)} == {first, second}, where
    assert [hit.image_id for hit in gallery.search("a man", where="カメラガ != 'café'")] == [third]
    hits = gallery.search("a man", where="カメラガ IS NOT NULL", group_by=camera)
    assert sorted(hit.group_size for hit in hits) == [1, 2]
    with pytest.raises(ValueError, match="unknown column 'カメラ' to group by: did you mean 'カメラガ'"):
        gallery.search("a man", group_by="カメラ")


def test_rows_match_files_in_any_normal_form(gallery: Gallery, crops: Path) -> None:
    name = unicodedata.normalize("NFD", "café.jpg")
    next(crops.rglob("*.jpg")).rename(crops / name)
    gallery.index(metadata={"café.jpg": {"note": "x"}})
    assert gallery.crop(name).metadata == {"note": "x"}
    assert [hit.image_id for hit in gallery.search("a man", where="image_id = 'café.jpg'")] == [name]
