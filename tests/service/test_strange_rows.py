"""A service over the gallery of a stranger: files that its rows name are not sent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
from doll_service import TOKEN, WRITER, Ask, name_of, refusal

from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.gallery.manifest import MANIFEST
from cskt.gallery.opening import vectors_folder
from cskt.gallery.stores.lance.lance_store import TABLE


def add_row(folder: Path, gallery: Gallery, **values: object) -> None:
    """Write a row like that of a crop, but for some values, as another program would."""
    table = lancedb.connect(str(vectors_folder(folder, gallery.manifest))).open_table(TABLE)
    row = table.search().limit(1).to_arrow().select(table.schema.names).to_pylist()[0]
    table.add(pa.table({name: [value] for name, value in {**row, **values}.items()}, schema=table.schema))


@pytest.fixture
def folder(tmp_path: Path, four_crops: Path) -> Path:
    return Path(shutil.copytree(four_crops, tmp_path / "strange"))


def test_files_outside_the_indexed_folder_are_not_sent(folder: Path, ask: Ask, encoder: Encoder) -> None:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps(content | {"images": "/"}), encoding="utf-8")
    with Gallery.open(folder, encoder=encoder) as gallery:
        size = Path("/etc/passwd").stat().st_size
        add_row(folder, gallery, image_id="etc/passwd", kept=False, num_bytes=float(size))
        client = ask(gallery, token=TOKEN)
        for method, path, sent in (
            ("GET", "/api/image", {"params": {"id": "etc/passwd"}}),
            ("POST", "/api/explain", {"json": {"image_id": "etc/passwd", "text": "a man"}}),
        ):
            answer = client.request(method, path, **sent, headers=WRITER)
            assert answer.status_code in (400, 404) and "root:" not in answer.text


@pytest.mark.parametrize(
    "values", [{"sha256": "/etc/passwd", "kept": True}, {"sha256": "../" * 21 + "x"}, {"num_bytes": -1.0}]
)
def test_a_row_of_a_stranger_is_an_operator_error(
    values: dict[str, object], folder: Path, ask: Ask, encoder: Encoder
) -> None:
    with Gallery.open(folder, encoder=encoder) as gallery:
        add_row(folder, gallery, image_id="bad.jpg", **values)
        client = ask(gallery, token=TOKEN)
        bad: dict[str, Any] = {"params": {"id": "bad.jpg"}}
        for method, path in (("GET", "/api/crop"), ("GET", "/api/image"), ("DELETE", "/api/crops")):
            status, code, message = refusal(client.request(method, path, **bad, headers=WRITER))
            assert (status, code) == (503, "store_refuses") and str(folder) not in message, path
        assert client.get("/api/crop", params={"id": name_of(0)}, headers=WRITER).status_code == 200


def test_a_thumbnail_that_is_no_jpeg_is_not_sent(folder: Path, ask: Ask, encoder: Encoder) -> None:
    with Gallery.open(folder, encoder=encoder) as gallery:
        add_row(folder, gallery, image_id="bad.jpg", thumbnail=b"<script>alert(1)</script>")
        answer = ask(gallery).get("/api/thumbnail", params={"id": "bad.jpg"})
        assert refusal(answer)[:2] == (503, "store_refuses") and "script" not in answer.text
