"""Galleries of strangers: manifest, links and rows read, write and delete no file outside."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cskt.cli import search as search_command
from cskt.embed import Encoder
from cskt.errors import CorruptRowError, FileSystemError, StoreError
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import MANIFEST, read_manifest
from cskt.gallery.opening import drop_store, vectors_folder
from cskt.gallery.originals import ORIGINALS, PENDING, original_path
from cskt.gallery.stores.lance.lance_store import LOCK, TABLE
from cskt.gallery.stores.lance.table import to_vectors
from cskt.gallery.stores.row_checks import corrupt_vectors

SENTENCE = "a woman in a red coat"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder that is nobody's business."""
    folder = tmp_path / "victim"
    (folder / "sub").mkdir(parents=True)
    (folder / "diary.txt").write_text("dear diary")
    (folder / "sub" / "more.txt").write_text("more")
    return folder


def tree(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """Everything below a folder: content and time of change."""
    return {
        str(path.relative_to(folder)): (None if path.is_dir() else path.read_bytes(), path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    for dotted, value in changes.items():
        *above, name = dotted.split("__")
        inner = content
        for part in above:
            inner = inner[part]
        inner[name] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def change_table(folder: Path, change: Callable[[Any], None]) -> None:
    """Write into the table of a gallery as another program would."""
    import lancedb

    change(lancedb.connect(str(vectors_folder(folder, read_manifest(folder)))).open_table(TABLE))


def refused(do: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        do()
    assert type(caught.value).__module__.startswith(("cskt", "builtins")), caught.type
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 1000, message
    return message


# The manifest

WRONG: dict[str, Any] = {
    "fingerprint": [
        "../../victim" + "0" * 52, "../" * 21 + "x", "/etc", "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "\n", "", 5, None,
    ],
    "embed_dim": [0, -1, 1e999, 10**9, "16", True, None, 16.5],
    "store": [7, None, "", "Lance", "../lance", [], ":x", "x" * 100],
    "columns": [
        [], 5, "x", {"a": "list"}, {"a": 5}, {"../x": "text"}, {"A b": "text"}, {"": "text"}, {"vector": "text"},
    ],
    "images": [5, True, [], {}, "", "a\0b", "x" * 10_000],
    "image_list": [5, "", "../list.txt", "/etc/passwd", "..", "a/b", []],
    "ignore": [5, "x", [5], [None], {}],
    "shards": [5, "x", [5], [""], ["a\0b"]],
    "home": [5, "", "a\0b", []],
    "created": [5, None, [], "x" * 10_000],
    "warning": [5, [], "x" * 10_000],
    "model": [None, 5, "x", [], {}],
    "model__path": [None, 5, True, [], {}, "", "a\0b"],
    "model__backbone": [5, [], ""],
    "model__image_height": ["5", -1, 0, True, 1e999, 10**9, [1]],
    "model__stride": ["5", 0, 2.5],
    "model__precision": [5, [], "x" * 2000],
    "model__unknown": [1],
    "plugins": [
        5, "x.py", [5], ["x.py"], [{}], [{"name": "x.py"}], [{"name": "", "provides": ["stores.x"]}],
        [{"name": "x.py", "provides": ["stores.x"], "sha256": "../x"}], [{"name": "x" * 300, "provides": ["stores.x"]}],
    ],
    "unknown": [1, None],
    "format_version": [None, "1", 0, -1, True, 1.5, [], {}],
}  # fmt: skip


def test_every_value_of_a_manifest_is_checked(gallery: Gallery, tmp_path: Path) -> None:
    text = (gallery.folder / MANIFEST).read_text(encoding="utf-8")
    for field, value in ((field, value) for field, values in WRONG.items() for value in values):
        (gallery.folder / MANIFEST).write_text(text, encoding="utf-8")
        change_manifest(gallery.folder, **{field: value})
        before = tree(tmp_path)
        message = refused(lambda: Gallery.open(gallery.folder))
        assert message.startswith(f"{gallery.folder / MANIFEST}: "), message
        assert field.replace("__", ".") in message and "index into a new folder" in message, message
        assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("store", "reason"),
    [
        ("redis", "'redis' (stores) comes from the plug-in "),
        ("redis:host", "'redis' (stores) comes from the plug-in "),
        ("milvus", "store 'milvus': needs an address"),
        ("lance:x", "store 'lance:x': takes no address"),
        ("os", "unknown store 'os'"),
        ("cskt.model", "'store' must be the name of a store"),
    ],
)
def test_an_unknown_store_is_refused_without_importing_code(
    gallery: Gallery, tmp_path: Path, store: str, reason: str
) -> None:
    (tmp_path / "redis.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    needed = [{"name": str(tmp_path / "redis.py"), "sha256": "", "provides": ["stores.redis"]}]
    change_manifest(gallery.folder, store=store, plugins=needed)
    before = tree(tmp_path)
    message = refused(lambda: Gallery.open(gallery.folder))
    assert message.removeprefix(f"{gallery.folder / MANIFEST}: ").startswith(reason), message
    assert tree(tmp_path) == before


def test_a_missing_field_is_named(gallery: Gallery) -> None:
    content = json.loads((gallery.folder / MANIFEST).read_text(encoding="utf-8"))
    for field in ("model", "fingerprint", "embed_dim", "format_version"):
        without = {name: value for name, value in content.items() if name != field}
        (gallery.folder / MANIFEST).write_text(json.dumps(without), encoding="utf-8")
        assert f"the field '{field}' is missing" in refused(lambda: Gallery.open(gallery.folder))


def test_a_fingerprint_that_leads_outside_writes_and_deletes_nothing(
    gallery: Gallery, victim: Path, other_model: Encoder, tmp_path: Path
) -> None:
    change_manifest(gallery.folder, fingerprint="../../victim".ljust(64, "0"))
    before = tree(tmp_path)
    refused(lambda: search_command.main([str(gallery.folder), SENTENCE]))
    refused(lambda: Gallery.open(gallery.folder).reindex(other_model))
    assert tree(tmp_path) == before


# Opening for reading


def test_vectors_that_are_missing_are_not_made(gallery: Gallery) -> None:
    shutil.rmtree(gallery.folder / "vectors")
    before = tree(gallery.folder)
    for do in (lambda: Gallery.open(gallery.folder), lambda: search_command.main([str(gallery.folder), SENTENCE])):
        assert "the vectors are missing; restore them, or index into a new folder" in refused(do)
        assert tree(gallery.folder) == before
    vectors_folder(gallery.folder, gallery.manifest).mkdir(parents=True)
    assert "the vectors are missing" in refused(lambda: Gallery.open(gallery.folder))


def test_a_milvus_file_that_is_missing_is_not_made(gallery: Gallery, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite")
    for place in (f"milvus:{tmp_path}/none.db", f"milvus:{tmp_path}/none/none.db"):
        change_manifest(gallery.folder, store=place)
        before = tree(tmp_path)
        refused(lambda: Gallery.open(gallery.folder))
        assert tree(tmp_path) == before


def test_reading_writes_nothing(gallery: Gallery, encoder: Encoder, crops: Path) -> None:
    name = next(iter(gallery._state.store.files()))
    gallery.index(metadata={name: {"camera": "c1"}})
    before = tree(gallery.folder)
    with Gallery.open(gallery.folder, encoder=encoder) as opened:
        assert opened.search(SENTENCE, k=3, where="camera = 'c1'")
        assert opened.count() == 12
        assert opened.facets()["camera"].values == (("c1", 1),)
        assert opened.crop(name).metadata == {"camera": "c1"}
        assert opened.thumbnail(name) and opened.original(name).is_file() and opened.uploaded([name]) == set()
        assert opened.min_score is None
    assert tree(gallery.folder) == before


def test_columns_that_the_table_lacks_are_an_error_and_not_made(gallery: Gallery) -> None:
    change_manifest(gallery.folder, columns={"camera": "text"})
    before = tree(gallery.folder)
    message = refused(lambda: Gallery.open(gallery.folder))
    assert "column 'meta_camera' is missing; the table does not fit its gallery.json" in message
    assert tree(gallery.folder) == before


def test_columns_of_another_kind_are_refused(gallery: Gallery, crops: Path) -> None:
    name = next(iter(gallery._state.store.files()))
    gallery.index(metadata={name: {"camera": "c1"}})
    change_manifest(gallery.folder, columns={"camera": "number"})
    assert "column 'meta_camera' holds string" in refused(lambda: Gallery.open(gallery.folder))


# Links


LINKS = {
    "the vectors of all models": lambda gallery: gallery.folder / "vectors",
    "the vectors of a model": lambda gallery: vectors_folder(gallery.folder, gallery.manifest),
    "a table": lambda gallery: vectors_folder(gallery.folder, gallery.manifest) / f"{TABLE}.lance",
    "the data of a table": lambda gallery: vectors_folder(gallery.folder, gallery.manifest) / f"{TABLE}.lance" / "data",
}


@pytest.mark.parametrize("place", LINKS)
def test_a_link_in_place_of_vectors_is_refused(
    place: str, gallery: Gallery, victim: Path, other_model: Encoder, tmp_path: Path
) -> None:
    linked = LINKS[place](gallery)
    shutil.move(linked, victim / "moved")
    linked.symlink_to(victim / "moved")
    before = tree(victim)
    assert "link" in refused(lambda: Gallery.open(gallery.folder))
    with pytest.raises(ValueError):
        drop_store(gallery.folder, gallery.manifest)
    assert linked.is_symlink() and tree(victim) == before


@pytest.mark.parametrize("name", ["gallery.lock", LOCK])
def test_a_lock_that_is_a_link_is_not_written(name: str, gallery: Gallery, victim: Path, crops: Path) -> None:
    folder = gallery.folder if name == "gallery.lock" else vectors_folder(gallery.folder, gallery.manifest)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(victim / "diary.txt")
    before = tree(victim)
    (next(crops.rglob("*.jpg"))).unlink()
    refused(lambda: Gallery.open(gallery.folder).index(crops, prune=True))
    assert tree(victim) == before


def test_links_to_originals_are_neither_written_nor_deleted(gallery: Gallery, victim: Path, crops: Path) -> None:
    data = next(crops.rglob("*.jpg")).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    (gallery.folder / ORIGINALS).symlink_to(victim)
    before = tree(victim)
    assert "leads outside" in refused(lambda: gallery.add([data], ["live"]))
    assert tree(victim) == before
    (gallery.folder / ORIGINALS).unlink()
    gallery.add([data], ["live"])
    path = original_path(gallery.folder, sha256)
    path.unlink()
    (victim / sha256).write_bytes(data)
    path.symlink_to(victim / sha256)
    assert "its file is gone" in refused(lambda: gallery.original("live"))
    refused(lambda: gallery.remove(["live"]))
    assert (victim / sha256).read_bytes() == data


def test_a_marker_of_pending_uploads_that_is_a_link_is_refused(gallery: Gallery, victim: Path, crops: Path) -> None:
    (gallery.folder / PENDING).symlink_to(victim / "diary.txt")
    before = tree(victim)
    data = next(crops.rglob("*.jpg")).read_bytes()
    refused(lambda: gallery.add([data], ["live"]))
    assert tree(victim) == before
    (gallery.folder / PENDING).unlink()
    (gallery.folder / PENDING).write_bytes(b"\xff../../victim/diary.txt " + b"0" * 63)
    assert gallery.add([data], ["live"]).added == 1
    assert tree(victim) == before


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_marker_of_pending_uploads_that_is_no_file_is_refused(
    make: Callable[[Path], None], gallery: Gallery, crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(gallery.folder / PENDING)
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: pytest.fail("would wait for a reader of the pipe"))
    data = next(crops.rglob("*.jpg")).read_bytes()
    assert "not a file" in refused(lambda: gallery.add([data], ["live"]))


@pytest.mark.parametrize("name", [MANIFEST, "calibration.json"])
def test_files_of_json_that_are_links_are_replaced_and_not_written_through(
    name: str, gallery: Gallery, victim: Path
) -> None:
    from cskt.gallery.calibration import Calibration, save_calibration

    calibration = Calibration(0.2, 0.01, 0.005, (0.0, 0.1), 0.9, 10, 1000)
    save_calibration(gallery.folder, calibration, fingerprint=gallery.manifest.fingerprint, source="test")
    shutil.move(gallery.folder / name, victim / name)
    (gallery.folder / name).symlink_to(victim / name)
    before = tree(victim)
    if name == MANIFEST:
        gallery.index(metadata={next(iter(gallery._state.store.files())): {"camera": "c1"}})
    else:
        save_calibration(gallery.folder, calibration, fingerprint=gallery.manifest.fingerprint, source="again")
    assert tree(victim) == before and not (gallery.folder / name).is_symlink()


# What is deleted


def test_dropping_vectors_leaves_other_files(gallery: Gallery, other_model: Encoder) -> None:
    old = vectors_folder(gallery.folder, gallery.manifest)
    (old / "notes.txt").write_text("mine")
    (old / "folder").mkdir()
    (old / "folder" / "more.txt").write_text("mine, too")
    gallery.reindex(other_model)
    assert sorted(path.name for path in old.iterdir()) == ["folder", "notes.txt"]
    assert (old / "folder" / "more.txt").read_text() == "mine, too"
    assert gallery.count() == 12


def test_dropping_vectors_leaves_other_files_in_the_table(gallery: Gallery, other_model: Encoder) -> None:
    table = vectors_folder(gallery.folder, gallery.manifest) / f"{TABLE}.lance"
    (table / "notes.txt").write_text("mine")
    (table / "folder").mkdir()
    (table / "folder" / "more.txt").write_text("mine, too")
    gallery.reindex(other_model)
    assert sorted(path.relative_to(table).as_posix() for path in table.rglob("*.txt")) == [
        "folder/more.txt", "notes.txt",
    ]  # fmt: skip
    assert sorted(path.name for path in table.iterdir()) == ["folder", "notes.txt"]
    assert gallery.count() == 12


def test_a_folder_that_is_no_table_is_not_deleted(gallery: Gallery) -> None:
    folder = vectors_folder(gallery.folder, gallery.manifest)
    shutil.rmtree(folder / f"{TABLE}.lance")
    (folder / f"{TABLE}.lance").mkdir()
    (folder / f"{TABLE}.lance" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(FileSystemError, match="not empty"):
        drop_store(gallery.folder, gallery.manifest)
    assert (folder / f"{TABLE}.lance" / "photo.jpg").read_bytes() == b"mine"


def test_a_creation_that_fails_deletes_only_what_it_made(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, *_: object) -> None:
        (folder / "notes.txt").write_text("from another program, meanwhile")
        raise ValueError("disk full")

    monkeypatch.setattr("cskt.gallery.opening.write_manifest", fail)
    with pytest.raises(ValueError, match="disk full"):
        Gallery.create(tmp_path / "new", encoder)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes.txt"]


# Rows


def row_of(gallery: Gallery, **values: object) -> pa.Table:
    """A row like that of another crop, but for some values."""
    table = gallery._state.store._writer  # type: ignore[attr-defined]
    row = table.search().limit(1).to_arrow().select(table.schema.names).to_pylist()[0]
    schema = pa.schema([pa.field(field.name, field.type) for field in table.schema])
    return pa.table({name: [value] for name, value in {**row, **values}.items()}, schema=schema)


ROWS: dict[str, dict[str, object]] = {
    "a digest that is a path": {"sha256": "/etc/passwd", "kept": True},
    "a digest that leads outside": {"sha256": "../../victim/diary.txt", "kept": True},
    "a digest in capitals": {"sha256": "A" * 64},
    "an empty digest": {"sha256": ""},
    "an absolute name": {"image_id": "/etc/passwd"},
    "a name that leads outside": {"image_id": "../victim/diary.txt"},
    "a name with an escape sequence": {"image_id": "a\x1b[31m.jpg"},
    "a name over lines": {"image_id": "a\nb.jpg"},
    "turned writing": {"image_id": "\u202egpj.exe"},
    "an empty name": {"image_id": ""},
    "a long name": {"image_id": "x" * 5000},
    "a negative size": {"num_bytes": -1.0},
    "a size that is no number": {"num_bytes": float("nan")},
    "an infinite width": {"width": float("inf")},
    "a broken height": {"height": 1.5},
}
UNREAD_BY_INDEXING = ("an infinite width", "a broken height")


def test_rows_of_a_stranger_are_refused_everywhere(gallery: Gallery, encoder: Encoder, victim: Path) -> None:
    before = tree(victim)
    for kind, values in ROWS.items():
        row = row_of(gallery, **{"image_id": "bad.jpg", **values})
        name = row["image_id"][0].as_py()
        change_table(gallery.folder, lambda table, row=row: table.add(row))
        with Gallery.open(gallery.folder, encoder=encoder) as opened:
            ways: list[Callable[[], object]] = [
                lambda: opened.search(SENTENCE, k=100, min_score=-1),
                lambda: opened.crop(name),  # noqa: B023
                lambda: opened.uploaded([name]),  # noqa: B023
                lambda: opened.original(name),  # noqa: B023
                lambda: opened.remove([name]),  # noqa: B023
            ]
            if kind not in UNREAD_BY_INDEXING:
                ways.append(opened.index)
            for do in ways:
                message = refused(do)
                assert "row " in message and "index GALLERY --prune" in message and str(gallery.folder) in message, (
                    message
                )
                with pytest.raises(StoreError):
                    do()
            assert opened.index(prune=True).removed == 1, kind
            assert len(opened.search(SENTENCE, k=100, min_score=-1)) == opened.count() == 12
    assert tree(victim) == before


def test_rows_of_a_stranger_are_not_copied_by_reindexing(
    gallery: Gallery, encoder: Encoder, other_model: Encoder, victim: Path
) -> None:
    change_table(gallery.folder, lambda table: table.add(row_of(gallery, image_id="/etc/passwd")))
    with Gallery.open(gallery.folder, encoder=encoder) as opened:
        assert "row '/etc/passwd'" in refused(lambda: opened.reindex(other_model))
        assert opened.index(prune=True).removed == 1
        assert opened.reindex(other_model).added == 12


@pytest.mark.parametrize("entry", [np.inf, -np.inf, 3e38])
def test_vectors_that_are_no_numbers_are_refused(entry: float, gallery: Gallery, encoder: Encoder) -> None:
    row = row_of(gallery, image_id="bad.jpg", vector=[*[0.1] * (gallery.manifest.embed_dim - 1), entry])
    change_table(gallery.folder, lambda table: table.add(row))
    with Gallery.open(gallery.folder, encoder=encoder) as opened:
        for do in (lambda: opened.search(SENTENCE), lambda: opened.search(like="bad.jpg")):
            assert "row 'bad.jpg': its vector must be finite numbers" in refused(do)
        assert opened.index(prune=True).removed == 1
        assert len(opened.search(SENTENCE, min_score=-1, k=100)) == 12


def test_corrupt_vectors_are_found_by_position() -> None:
    """LanceDB itself takes no NaN and no gap, but a file may hold them."""
    kind = pa.list_(pa.float32(), 2)
    fine = pa.array([[1, 0], [0, 1]], kind)
    assert corrupt_vectors(to_vectors(pa.table({"vector": fine}))) == []
    for broken in ([None, 1], [float("nan"), 1], None, [float("inf"), 1], [1, -3e38]):
        for place in range(3):
            rows = [[1, 0], [0, 1]]
            rows.insert(place, broken)  # type: ignore[arg-type]
            table = pa.table({"vector": pa.chunked_array([pa.array(rows, kind), fine])})
            vectors = to_vectors(table)
            assert vectors.shape == (5, 2) and corrupt_vectors(vectors) == [place]
    assert to_vectors(pa.table({"vector": pa.array([], kind)})).shape == (0, 2)
    assert corrupt_vectors(np.empty((0, 2), np.float32)) == []


def test_a_thumbnail_that_is_no_jpeg_is_refused(gallery: Gallery, encoder: Encoder) -> None:
    for number, data in enumerate([b"", b"<script>alert(1)</script>", b"\xff\xd8\xff" + b"x" * 10**6]):
        row = row_of(gallery, image_id=f"bad{number}.jpg", thumbnail=data)
        change_table(gallery.folder, lambda table, row=row: table.add(row))
        with pytest.raises(CorruptRowError, match=r"row 'bad.\.jpg': its thumbnail is no small JPEG"):
            gallery.thumbnail(f"bad{number}.jpg")


def test_infinite_values_are_refused(gallery: Gallery, encoder: Encoder) -> None:
    name = next(iter(gallery._state.store.files()))
    gallery.index(metadata={name: {"speed": 1.5}})
    row = row_of(gallery, image_id="bad.jpg", meta_speed=float("inf"))
    change_table(gallery.folder, lambda table: table.add(row))
    with Gallery.open(gallery.folder, encoder=encoder) as opened:
        for do in (opened.facets, lambda: opened.crop("bad.jpg"), lambda: opened.search(SENTENCE, k=100, min_score=-1)):
            assert "speed' must be text, a finite number or a truth value, got inf" in refused(do)


def rebuilt(gallery: Gallery, change: Callable[[pa.Table], pa.Table]) -> None:
    """Put another table in place of a gallery's."""
    import lancedb

    folder = vectors_folder(gallery.folder, gallery.manifest)
    rows = change(lancedb.connect(str(folder)).open_table(TABLE).to_arrow())
    shutil.rmtree(folder / f"{TABLE}.lance")
    lancedb.connect(str(folder)).create_table(TABLE, rows)


def replaced(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), name, values)


TABLES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "digests are numbers": (lambda rows: replaced(rows, "sha256", pa.array([1] * len(rows))), "'sha256' holds int64"),
    "kept is text": (lambda rows: replaced(rows, "kept", pa.array(["yes"] * len(rows))), "'kept' holds string"),
    "no thumbnails": (lambda rows: rows.drop_columns(["thumbnail"]), "'thumbnail' is missing"),
    "no vectors": (lambda rows: rows.drop_columns(["vector"]), "'vector' is missing"),
    "vectors of float64": (
        lambda rows: replaced(
            rows, "vector", rows["vector"].cast(pa.list_(pa.float64(), rows["vector"].type.list_size))
        ),
        "'vector' holds fixed_size_list",
    ),
    "another column": (lambda rows: rows.append_column("secret", pa.array(["x"] * len(rows))), "'secret' holds string"),
    "a column of lists": (
        lambda rows: rows.append_column("meta_list", pa.array([["x"]] * len(rows))),
        "'meta_list' holds list",
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_other_columns_is_refused(kind: str, gallery: Gallery) -> None:
    change, reason = TABLES[kind]
    rebuilt(gallery, change)
    message = refused(lambda: Gallery.open(gallery.folder))
    assert reason in message and "the table does not fit its gallery.json" in message


# Files of the indexed folder


@pytest.fixture
def private(gallery: Gallery, victim: Path, crops: Path) -> Iterator[Path]:
    """A private picture, in a folder that the gallery names as its own."""
    path = victim / "passport.jpg"
    shutil.copyfile(next(crops.rglob("*.jpg")), path)
    with path.open("ab") as stream:
        stream.write(b"private")
    change_manifest(gallery.folder, images=str(victim))
    row = row_of(gallery, image_id="passport.jpg", kept=False)
    change_table(gallery.folder, lambda table: table.delete("true"))
    change_table(gallery.folder, lambda table: table.add(row))
    yield path


def test_a_private_file_is_neither_returned_nor_encoded(
    gallery: Gallery, private: Path, encoder: Encoder, other_model: Encoder, tmp_path: Path
) -> None:
    with Gallery.open(gallery.folder, encoder=encoder) as opened:
        assert "has changed since it was indexed" in refused(lambda: opened.original("passport.jpg"))
        assert "has changed since it was indexed" in refused(lambda: opened.explain("passport.jpg", SENTENCE))
        message = refused(lambda: opened.reindex(other_model))
        assert (
            "the first is passport.jpg: its file has changed since it was indexed" in message
            and "cskt index" in message
        )
        assert opened.reindex(other_model, prune=True).removed == 1
        assert opened.count() == 0


def test_the_root_as_the_indexed_folder(gallery: Gallery, encoder: Encoder) -> None:
    change_manifest(gallery.folder, images="/")
    change_table(gallery.folder, lambda table: table.add(row_of(gallery, image_id="etc/passwd", kept=False)))
    with Gallery.open(gallery.folder, encoder=encoder) as opened:
        message = refused(lambda: opened.original("etc/passwd"))
        assert "has changed since it was indexed" in message and "root:" not in message


def test_reindexing_follows_no_link_out_of_the_indexed_folder(
    gallery: Gallery, other_model: Encoder, victim: Path, crops: Path
) -> None:
    path = next(crops.rglob("*.jpg"))
    shutil.move(path, victim / "moved.jpg")
    path.symlink_to(victim / "moved.jpg")
    assert "leads outside" in refused(lambda: gallery.reindex(other_model))
    assert gallery.reindex(other_model, prune=True).removed == 1


def test_a_changed_file_is_indexed_before_it_is_reindexed(gallery: Gallery, other_model: Encoder, crops: Path) -> None:
    first, second, *_ = sorted(crops.rglob("*.jpg"))
    shutil.copyfile(second, first)
    os.utime(first, ns=(1, 1))
    assert "bring the gallery up to date first: cskt index" in refused(lambda: gallery.reindex(other_model))
    assert gallery.index().replaced == 1
    report = gallery.reindex(other_model)
    assert (report.added, report.unchanged) == (1, 11)
