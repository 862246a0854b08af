"""Another process reindexes or deletes the gallery of a running service, which then answers 503 and changes nothing."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doll_service import TOKEN, WRITER, Ask, name_of, refusal

from cskt.embed import Encoder, load
from cskt.gallery.gallery import Gallery
from tiny_run import write_backbone

NAME = {"params": {"id": name_of(0)}}
TEXT = {"text": "a man"}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    path = write_backbone(tmp_path_factory.mktemp("backbone") / "other.safetensors", seed=1)
    return load(path, device="cpu", num_workers=0)


@pytest.mark.parametrize("is_gone", [False, True], ids=["reindexed", "gone"])
def test_every_answer_says_that_the_gallery_has_changed(
    is_gone: bool, ask: Ask, own_gallery: Gallery, encoder: Encoder, other_model: Encoder, crops: Path,
    noted: Callable[[], Any],
) -> None:  # fmt: skip
    client = ask(own_gallery, token=TOKEN)
    client.app.state.service.worker.ready.result(300)  # type: ignore[attr-defined]
    assert client.get("/healthz").status_code == 200
    if is_gone:
        shutil.rmtree(own_gallery.folder)
    else:
        with Gallery.open(own_gallery.folder, encoder=encoder) as elsewhere:
            elsewhere.reindex(other_model)
    picture = base64.b64encode((crops / name_of(9)).read_bytes()).decode()
    mark = {**TEXT, "image_id": name_of(0), "right": True}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/healthz", {}), ("GET", "/api/gallery", {}), ("GET", "/api/crop", NAME),
        ("GET", "/api/thumbnail", NAME), ("GET", "/api/image", NAME),
        ("POST", "/api/search", {"json": TEXT}), ("POST", "/api/search", {"json": {"like": name_of(0)}}),
        ("POST", "/api/search", {"json": {**TEXT, "where": "camera = 'c1'"}}),
        ("POST", "/api/search", {"json": {**TEXT, "group_by": "track", "histogram": True}}),
        ("POST", "/api/explain", {"json": {**TEXT, "image_id": name_of(0)}}),
        ("POST", "/api/marks/export", {"json": {"format": "jsonl", "marks": [mark]}}),
        ("POST", "/api/marks/export", {"json": {"format": "csv", "marks": [mark]}}),
        ("POST", "/api/crops", {"json": {"crops": [{"image_id": "new", "image": picture}]}}),
        ("DELETE", "/api/crops", NAME),
    ]  # fmt: skip
    for method, path, sent in requests:
        status, code, message = refusal(client.request(method, path, **sent, headers=WRITER))
        assert (status, code) == (503, "gallery_changed"), path
        assert "restart the service" in message and str(own_gallery.folder.parent) not in message
    assert "cskt_gallery_up 0.0" in client.get("/metrics", headers=WRITER).text, "figures are wanted most of all now"
    ended = [line for line in noted() if line.get("stage") != "asked"]
    assert len(ended) == 10 and {line["error"] for line in ended} == {"gallery_changed"}
    if not is_gone:
        with Gallery.open(own_gallery.folder, encoder=other_model) as elsewhere:
            assert elsewhere.count() == 4, "nothing was added or deleted"
