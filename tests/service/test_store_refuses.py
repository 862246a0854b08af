"""Errors of the store are answered 503; once they are fixed, the service continues."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doll_service import TOKEN, WRITER, Ask, name_of, refusal

from cskt.embed import Encoder
from cskt.errors import StoreError
from cskt.gallery.gallery import Gallery
from cskt.service import worker
from disks import another_user, without_rights

NAME = {"params": {"id": name_of(0)}}
SEARCH = {"json": {"text": "a man"}}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights")
def test_missing_rights_are_answered_503_until_they_are_restored(
    ask: Ask, encoder: Encoder, four_crops: Path, crops: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = base64.b64encode((crops / name_of(9)).read_bytes()).decode()
    writes: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/api/crops", {"json": {"crops": [{"image_id": "new", "image": picture}]}}),
        ("DELETE", "/api/crops", NAME),
    ]
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are closed to other users
        folder = Path(shutil.copytree(four_crops, Path(scratch) / "gallery"))
        Path(scratch).chmod(0o755)
        with Gallery.open(folder, encoder=encoder) as gallery:
            client = ask(gallery, token=TOKEN)
            before = client.post("/api/search", **SEARCH, headers=WRITER).json()["hits"]
            with without_rights(folder):
                for method, path, sent in writes:
                    status, code, message = refusal(client.request(method, path, **sent, headers=WRITER))
                    assert (status, code) == (503, "store_refuses") and scratch not in message
                assert client.post("/api/search", **SEARCH, headers=WRITER).json()["hits"] == before
            output = [record.getMessage() for record in caplog.records if record.name.startswith("cskt.service")]
            assert len(output) == 2 and all("denied" in line and scratch in line for line in output)
            assert not any(record.exc_info for record in caplog.records)
            assert gallery.count() == 4
            for method, path, sent in writes:
                assert client.request(method, path, **sent, headers=WRITER).status_code == 200
            assert gallery.count() == 4 and gallery.crop("new").num_bytes > 0


def test_a_store_that_cannot_be_reached_is_answered_503(
    ask: Ask, own_gallery: Gallery, crops: Path, noted: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request gets a 503 that does not contain the address of the store."""
    client = ask(own_gallery, token=TOKEN)
    assert client.post("/api/search", **SEARCH).status_code == 200

    def refuse(*_: object, **__: object) -> None:
        raise StoreError("milvus://10.0.0.7:19530/crops: server unavailable")

    store = own_gallery._state.store
    for name in ("search", "histogram", "get", "thumbnails", "vectors", "facets", "count", "delete", "add"):
        monkeypatch.setattr(store, name, refuse)
    mark = {"text": "a man", "image_id": name_of(0), "right": True}
    picture = base64.b64encode((crops / name_of(9)).read_bytes()).decode()
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/healthz", {}), ("GET", "/api/gallery", {}), ("GET", "/api/crop", NAME),
        ("GET", "/api/thumbnail", NAME), ("GET", "/api/image", NAME),
        ("POST", "/api/search", SEARCH), ("POST", "/api/search", {"json": {"like": name_of(0)}}),
        ("POST", "/api/explain", {"json": {"text": "a man", "image_id": name_of(0)}}),
        ("POST", "/api/marks/export", {"json": {"format": "jsonl", "marks": [mark]}}),
        ("POST", "/api/crops", {"json": {"crops": [{"image_id": "new", "image": picture}]}}),
        ("DELETE", "/api/crops", NAME),
    ]  # fmt: skip
    for method, path, sent in asked:
        status, code, message = refusal(client.request(method, path, **sent, headers=WRITER))
        assert (status, code) == (503, "store_refuses"), path
        assert "operator" in message and "10.0.0.7" not in message
    assert {line["error"] for line in noted() if "error" in line} == {"store_refuses"}
    assert "cskt_gallery_up 0.0" in client.get("/metrics", headers=WRITER).text


@pytest.mark.parametrize("name", ["gallery.json", "calibration.json"])
def test_corrupt_files_of_the_gallery_are_answered_503(ask: Ask, own_gallery: Gallery, name: str) -> None:
    client = ask(own_gallery)
    assert client.post("/api/search", **SEARCH).status_code == 200
    (own_gallery.folder / name).write_text("{", encoding="utf-8")
    assert refusal(client.post("/api/search", **SEARCH))[:2] == (503, "store_refuses")


def test_health_is_answered_although_the_store_is_not(
    ask: Ask, own_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, answered, asked = ask(own_gallery), threading.Event(), []
    client.app.state.service.worker.ready.result(300)  # type: ignore[attr-defined]

    def wait(*_: object) -> int:
        asked.append(1)
        answered.wait(300)
        return 4

    monkeypatch.setattr(own_gallery._state.store, "count", wait)
    monkeypatch.setattr(worker, "SIZE_TIMEOUT_SECONDS", 0.2)
    for _ in range(3):
        assert refusal(client.get("/healthz"))[:2] == (503, "store_refuses")
        assert "cskt_gallery_up 0.0" in client.get("/metrics").text
    assert client.get("/api/thumbnail", **NAME).status_code == 200 and len(asked) == 1
    answered.set()
    monkeypatch.setattr(worker, "SIZE_TIMEOUT_SECONDS", 10.0)
    assert client.get("/healthz").status_code == 200 and "cskt_gallery_up 1.0" in client.get("/metrics").text


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has other rights")
@pytest.mark.parametrize("what", ["closed", "cut short"])
def test_unreadable_vectors_are_answered_503(
    ask: Ask, encoder: Encoder, four_crops: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(four_crops, Path(scratch) / "gallery"))
        Path(scratch).chmod(0o755)
        (data,) = folder.rglob("crops.lance/data")
        with Gallery.open(folder, encoder=encoder) as gallery:
            client = ask(gallery, token=TOKEN)
            client.app.state.service.worker.ready.result(300)  # type: ignore[attr-defined]
            if what == "closed":
                data.chmod(0)
            for path in data.glob("*.lance") if what == "cut short" else ():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            with another_user():
                for method, path, sent in (("GET", "/api/crop", NAME), ("GET", "/api/image", NAME)):
                    status, code, message = refusal(client.request(method, path, **sent, headers=WRITER))
                    assert (status, code) == (503, "store_refuses") and scratch not in message
            data.chmod(0o755)
        output = [record for record in caplog.records if record.name.startswith("cskt.service")]
        assert len(output) == 2 and not any(record.exc_info for record in output)
        assert all("\n" not in record.getMessage() and len(record.getMessage()) < 500 for record in output)
