"""The service as a whole: warm-up, health, figures, the page, headers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from doll_service import Ask, name_of, refusal
from starlette.testclient import TestClient
from uvicorn.server import ServerState

from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery
from cskt.service.connections import Connection
from cskt.service.middleware import RequestMiddleware
from cskt.service.monitoring import Metrics
from cskt.service.pages import TYPES, page_files
from cskt.service.settings import ServiceSettings


def wait_until_ready(client: TestClient) -> None:
    deadline = time.monotonic() + 300
    while client.get("/healthz").status_code == 503 and time.monotonic() < deadline:
        time.sleep(0.01)


def test_health_says_loading_until_model_and_vectors_are_there(
    gallery: Gallery, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, search = threading.Event(), gallery.search_vectors

    def slow_search(*asked: Any, **more: Any) -> Any:
        assert loading.wait(300)
        return search(*asked, **more)

    monkeypatch.setattr(gallery, "search_vectors", slow_search)
    client = ask(gallery, is_ready=False)
    answer = client.get("/healthz")
    assert refusal(answer)[:2] == (503, "loading") and answer.headers["retry-after"] == "1"
    assert client.get("/api/gallery").status_code == 200
    loading.set()
    wait_until_ready(client)
    assert client.get("/healthz").json() == {"status": "ok"}


def test_health_says_broken_where_the_model_cannot_be_loaded(
    gallery: Gallery, ask: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(queries: Any) -> Any:
        raise CsktError("/secret/place: no such model")

    monkeypatch.setattr(gallery, "encode", broken)
    client = ask(gallery)
    client.app.state.service.worker.ready.exception(timeout=300)  # type: ignore[attr-defined]
    status, code, message = refusal(client.get("/healthz"))
    assert (status, code) == (503, "broken") and "secret" not in message
    assert "/secret/place: no such model" in caplog.text


def test_metrics_for_prometheus(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    wait_until_ready(client)
    for _ in range(3):
        client.post("/api/search", json={"text": "a man"})
    client.get("/somewhere/else")
    client.request("BREW", "/api/search")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert lines['cskt_requests_total{code="200",method="POST",route="/api/search"}'] == "3.0"
    assert lines['cskt_requests_total{code="404",method="GET",route="none"}'] == "1.0"
    assert lines['cskt_requests_total{code="405",method="other",route="/api/search"}'] == "1.0"
    assert lines["cskt_crops"] == "40.0" and lines["cskt_gallery_up"] == "1.0"
    files = [path for path in (gallery.folder / "vectors").rglob("*") if path.is_file()]
    assert float(lines["cskt_index_bytes"]) == sum(path.stat().st_size for path in files)
    assert float(lines["cskt_disk_free_bytes"]) > 0
    (facts,) = [line for line in lines if line.startswith("cskt_gallery_info{")]
    assert f'fingerprint="{gallery.manifest.fingerprint}"' in facts and 'store="lance"' in facts
    assert lines["cskt_requests_in_flight"] == "1.0"
    assert lines["cskt_batch_size_sum"] == "4.0", "three queries and the one that warmed up"
    for stage in ("encode", "search"):
        assert lines[f'cskt_stage_seconds_count{{stage="{stage}"}}'] == "4.0"
        assert float(lines[f'cskt_stage_seconds_sum{{stage="{stage}"}}']) > 0
        assert lines[f'cskt_wait_seconds_count{{stage="{stage}"}}'] == "4.0"
        assert lines[f'cskt_pending{{stage="{stage}"}}'] == "0.0"
    assert lines['cskt_stage_seconds_count{stage="decode"}'] == "0.0", "every stage is there from the start"
    assert lines['cskt_pending_limit{stage="encode"}'] == "257.0"
    assert lines['cskt_request_seconds_count{route="/api/search"}'] == "4.0"
    assert 'cskt_requests_total{code="200",method="POST",route="/api/search"}' not in ask(gallery).get("/metrics").text


def test_every_file_of_the_page_has_its_type(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    files = page_files()
    assert {"index.html", "app.js"} <= files.keys()
    for path, content in files.items():
        answer = client.get(f"/page/{path}")
        assert answer.content == content
        assert answer.headers["content-type"].startswith(TYPES[Path(path).suffix])
        again = client.get(f"/page/{path}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    page = client.get("/")
    assert page.content == files["index.html"] and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "img-src 'self' blob: data:" in policy and "unsafe" not in policy
    assert client.get("/page/nothing.js").status_code == 404


def test_the_list_of_operations_has_no_script_and_no_link_elsewhere(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    page = client.get("/docs")
    described = client.get("/openapi.json").json()
    for path, operations in described["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in page.text
    for name in described["components"]["schemas"]["SearchRequest"]["properties"]:
        assert f"<code>{name}</code>" in page.text
    assert "<script" not in page.text and "http://" not in page.text and "https://" not in page.text
    (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{allowed}'" in page.headers["content-security-policy"]


def test_security_headers_are_on_every_answer(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    answers = [
        client.get(path)
        for path in ("/", "/page/app.js", "/docs", "/openapi.json", "/api/gallery", "/healthz", "/metrics", "/nothing")
    ]
    answers.append(client.get("/", headers={"Host": "evil.example"}))
    answers.append(client.post("/api/crops", json={}))
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_head_is_get_without_the_body(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery)
    wait_until_ready(client)
    crop = f"?id={name_of(0)}"
    described = client.get("/openapi.json").json()["paths"]
    paths = [path for path, operations in described.items() if "get" in operations]
    paths += ["/", "/docs", "/openapi.json", "/page/app.js"]
    asked = {"/api/crop": crop, "/api/thumbnail": crop, "/api/image": crop}
    assert asked.keys() < set(paths) and len(paths) == 10
    for path in [*(path + asked.get(path, "") for path in paths), "/nothing"]:
        answer, head = client.get(path), client.head(path)
        assert head.status_code == answer.status_code, path
        assert head.content == b"" != answer.content, path
        if path != "/metrics":  # whose figures have changed meanwhile
            assert head.headers.pop("x-request-id") != answer.headers.pop("x-request-id")
            assert head.headers == answer.headers, path
            assert int(head.headers["content-length"]) == len(answer.content), path
    same = client.head("/page/app.js", headers={"If-None-Match": client.head("/page/app.js").headers["etag"]})
    assert same.status_code == 304
    assert client.head("/", headers={"Host": "evil.example"}).status_code == 403
    refused = client.head("/api/search")
    assert refused.status_code == 405 and refused.headers["allow"] == "POST" and refused.content == b""
    assert client.request("BREW", "/api/crop").headers["allow"] == "GET, HEAD"
    assert 'code="200",method="HEAD",route="/api/image"' in client.get("/metrics").text


def test_an_empty_gallery_has_no_hits(ask: Ask, own_gallery: Gallery) -> None:
    own_gallery.remove([hit.image_id for hit in own_gallery.search("a man")])
    client = ask(own_gallery)
    wait_until_ready(client)
    assert client.get("/healthz").status_code == 200
    answer = client.post("/api/search", json={"text": "a man", "histogram": True}).json()
    assert answer["hits"] == [] and sum(answer["histogram"]["counts"]) == 0
    assert client.get("/api/gallery").json()["count"] == 0


def test_a_request_that_outlasts_the_service_gets_503(caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn cancels running requests after the time to stop."""
    sent: list[Any] = []

    async def never(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def stop() -> None:
        scope = {"type": "http", "method": "POST", "path": "/api/explain", "headers": []}
        request = asyncio.create_task(RequestMiddleware(never, metrics=Metrics())(scope, None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        request.cancel()
        await request

    asyncio.run(stop())
    start, body = sent
    assert start["status"] == 503 and json.loads(body["body"])["error"]["code"] == "stopping"
    assert caplog.text == ""


class FakeTransport(asyncio.Transport):
    """A transport whose client takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed, self.aborted = False, asyncio.Event()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.aborted.set()


def test_a_connection_that_closes_is_still_aborted_if_its_client_takes_no_answer() -> None:
    async def main() -> None:
        transport, settings = FakeTransport(), ServiceSettings(answer_seconds=0.01)
        options = {"config": uvicorn.Config(ServerState), "server_state": ServerState(), "app_state": {}}
        connection = Connection(settings, 10, **options)
        connection.connection_made(transport)
        connection.pause_writing()
        transport.close()
        await asyncio.wait_for(transport.aborted.wait(), 60)

    asyncio.run(main())
