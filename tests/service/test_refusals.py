"""Wrong requests get a clear 4xx in the one form, never a 500, and the next request is answered."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doll_service import PLENTY, TOKEN, WRITER, Ask, client_of, name_of, refusal
from PIL import Image
from starlette.testclient import TestClient

from cskt.errors import CsktError, FileSystemError, OutOfMemoryError
from cskt.gallery.gallery import Gallery
from cskt.service.app import create_app
from cskt.service.settings import ServiceSettings

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def one_service(gallery: Gallery) -> Iterator[TestClient]:
    with client_of(create_app(gallery, ServiceSettings(keep_audit_log=False, **PLENTY))) as client:
        yield client


@pytest.fixture
def client(one_service: TestClient) -> Iterator[TestClient]:
    """A service that must still answer after the test."""
    client = one_service
    yield client
    assert len(client.post("/api/search", json={"text": "a man", "k": 3}).json()["hits"]) == 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"text": "a man"', "Expecting"),
        (b'{"text": "a man", "text": "a woman"}', "twice"),
        (b'{"text": "a man", "min_score": NaN}', "a number is too large, or none"),
        (b'{"text": "a man", "min_score": -Infinity}', "a number is too large, or none"),
        (b'{"text": "a man", "min_score": 1e999}', "too large"),
        (b'{"text": "a man", "k": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"text": "a man", "k": ' + b"9" * 50 + b"}", "too large"),
        (b'{"text": "a \xff man"}', "not UTF-8"),
        ('{"text": "a man"}'.encode("utf-16"), "not UTF-8"),
        (b'{"text": "a \\ud800 man"}', "surrogate"),
        (b'{"\\udfff": "a man"}', "surrogate"),
        (b'{"text": "a \\u0000 man"}', "NUL"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"text":' * 100_000, "nested too deep"),
        (b"[" * 17 + b"]" * 17, "nested too deep"),
        (b"\xef\xbb\xbf{}", "BOM"),
    ],
)
def test_a_body_that_is_not_strict_json(client: TestClient, body: bytes, reason: str) -> None:
    status, code, message = refusal(client.post("/api/search", content=body, headers=JSON))
    assert (status, code) == (400, "bad_json")
    assert reason in message


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({}, "give text, image or like"),
        ({"text": None}, "give text, image or like"),
        ({"text": ""}, "text"),
        ({"text": "  \n"}, "text"),
        ({"text": 5}, "text"),
        ({"text": ["a man"]}, "text"),
        ({"text": "a man\x07"}, "control character"),
        ({"text": "a man\x1b[2J"}, "control character"),
        ({"text": "a man", "colour": "red"}, "colour"),
        ({"text": "a man", "k": 0}, "k"),
        ({"text": "a man", "k": "10"}, "k"),
        ({"text": "a man", "k": 2.5}, "k"),
        ({"text": "a man", "k": True}, "k"),
        ({"text": "a man", "k": 501}, "limited to 500"),
        ({"text": "a man", "offset": -1}, "offset"),
        ({"text": "a man", "offset": 9001}, "limited to 9,000"),
        ({"text": "a man", "text_weight": 0}, "text_weight"),
        ({"text": "a man", "min_score": 1.5}, "min_score"),
        ({"text": "a man", "exclude": ["a hat"] * 9}, "limited to 8"),
        ({"text": "a man", "exclude": [""]}, "exclude"),
        ({"text": "a man", "where": "x" * 100_001}, "limited to 100,000"),
        ({"text": "x" * 2001}, "limited to 2,000"),
        ({"text": "word " * 100_000}, "limited to 2,000"),
        ({"text": "a man", "exclude": ["x" * 2001]}, "limited to 2,000"),
        ({"image": "not base64!"}, "base64"),
        ({"like": "c0\n000.jpg"}, "line break"),
        ({"like": "x" * 513}, "like"),
        ([], "body"),
        ("a man", "body"),
    ],
)
def test_a_search_that_does_not_fit_the_schema(client: TestClient, asked: Any, place: str) -> None:
    status, _, message = refusal(client.post("/api/search", json=asked))
    assert status == 422
    assert place in message


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("camera = 'c1'; DROP TABLE crops", ""),
        ("camera = 'c1' OR 1 = 1", ""),
        ("camera IN (SELECT note FROM crops)", ""),
        ("read_csv('/etc/passwd') = 'root'", "function"),
        ("camera = 'c1' UNION SELECT 1", ""),
        ("note = 'x' -- and so on", "comments"),
        ("camera = 'c1' /* */", "comments"),
        ("vector IS NOT NULL", "vector"),
        ("thumbnail IS NOT NULL", "thumbnail"),
        ("camara = 'c1'", "camera"),
        ("camera = note", ""),
        ("COPY crops TO '/tmp/stolen'", ""),
        ("(" * 500, ""),
    ],
)
def test_a_filter_that_is_more_than_a_filter(client: TestClient, where: str, reason: str) -> None:
    status, code, message = refusal(client.post("/api/search", json={"text": "a man", "where": where}))
    assert (status, code) == (400, "bad_filter")
    assert reason in message


def test_a_quote_in_a_value_is_escaped(client: TestClient) -> None:
    where = "note = '<script>alert(''1'')</script>'"
    hits = client.post("/api/search", json={"text": "a man", "where": where}).json()["hits"]
    assert [hit["image_id"] for hit in hits] == [name_of(0)]


def test_large_bodies_are_refused_by_their_header_and_while_they_arrive(client: TestClient) -> None:
    output = client.post("/api/explain", content=b"x" * 10_000_000, headers=JSON)
    assert refusal(output)[:2] == (413, "too_large")
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        while taken < 60:  # the limit is 4 MiB
            taken += 1
            yield b"x" * 100_000

    assert refusal(client.post("/api/explain", content=chunks(), headers=JSON))[:2] == (413, "too_large")
    status, _, message = refusal(client.post("/api/search", json={"text": "x" * 10_000_000}))
    assert status == 422 and "10,000,000" in message


def test_other_content_types(client: TestClient) -> None:
    body = json.dumps({"text": "a man"}).encode()
    for name in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
        answer = client.post("/api/search", content=body, headers={"Content-Type": name})
        assert refusal(answer)[:2] == (415, "json_expected"), name
    fine = client.post("/api/search", content=body, headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert fine.status_code == 200


def test_unknown_paths_and_methods(client: TestClient) -> None:
    for path in (
        "/api",
        "/api/nothing",
        "/api/search/",
        "/page/../app.py",
        "/page/%2e%2e/%2e%2e/__init__.py",
        "/page/",
    ):
        assert refusal(client.get(path))[:2] == (404, "not_found"), path
    answer = client.request("GET", "/api/search")
    assert refusal(answer)[:2] == (405, "method_not_allowed") and answer.headers["allow"] == "POST"
    answer = client.request("GET", "/api/crops")
    assert refusal(answer)[0] == 405 and answer.headers["allow"] == "DELETE, POST"


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "c0/../c0/000.jpg", "..\\..\\x", "gallery.json", "%2e%2e/x", "c9/999.jpg"],
)
def test_names_that_look_like_paths_are_only_names(client: TestClient, name: str) -> None:
    for path in ("crop", "thumbnail", "image"):
        assert refusal(client.get(f"/api/{path}", params={"id": name}))[:2] == (404, "unknown_crop"), path
    assert refusal(client.post("/api/explain", json={"text": "a man", "image_id": name}))[:2] == (404, "unknown_crop")
    assert refusal(client.post("/api/search", json={"like": name}))[:2] == (404, "unknown_crop")


def test_an_error_contains_no_path_of_the_machine(client: TestClient, gallery: Gallery) -> None:
    answers = [
        client.get("/api/crop", params={"id": "nobody"}),
        client.post("/api/search", json={"like": "nobody"}),
        client.post("/api/search", json={"text": "a man", "group_by": "colour"}),
        client.post("/api/explain", json={"text": "a man", "image_id": "nobody"}),
    ]
    for answer in answers:
        assert str(gallery.folder.parent) not in refusal(answer)[2]


def test_a_short_name_of_a_gallery_is_not_replaced_inside_words(
    ask: Ask, own_gallery: Gallery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder `g` is removed from messages; the letter in other words is not."""
    (tmp_path / "g").symlink_to(own_gallery.folder)
    monkeypatch.chdir(tmp_path)
    with Gallery.open("g", encoder=own_gallery.encoder) as gallery:
        client = ask(gallery)
        asked = {"text": "a man", "where": "größ = 'g'"}
        assert "no column 'größ'" in refusal(client.post("/api/search", json=asked))[2]
        message = refusal(client.post("/api/search", json={"text": "a man", "group_by": "g"}))[2]
        assert message.startswith("unknown column 'g' to group by"), message

        def fail(*_: object, **__: object) -> None:
            raise CsktError(f"g: {gallery.folder.resolve()}/x and g/x are no good")

        monkeypatch.setattr(gallery, "search_vectors", fail)
        message = refusal(client.post("/api/search", json={"text": "a man"}))[2]
        assert message == "the gallery: the gallery/x and the gallery/x are no good"


def png_of_size(width: int, height: int) -> bytes:
    """A sound PNG of one colour, as its header states it, in a few bytes where it is large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(((width + 7) // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
BAD_PICTURES = {
    "an SVG": SVG,
    "text": b"hello",
    "a page": b"<!doctype html><script>alert(1)</script>",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "a bomb": png_of_size(12_000, 12_000),
    "a large one": png_of_size(6000, 4001),
    "a PNG cut short": png_of_size(64, 64)[:50],
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_files_that_are_no_images(kind: str, ask: Ask, own_gallery: Gallery, noted: Callable[[], Any]) -> None:
    sent = base64.b64encode(BAD_PICTURES[kind]).decode()
    writer = ask(own_gallery, token=TOKEN)
    assert refusal(writer.post("/api/search", json={"image": sent}))[:2] == (422, "bad_image")
    answer = writer.post("/api/crops", json={"crops": [{"image_id": "new", "image": sent}]}, headers=WRITER)
    assert answer.status_code == 200 and answer.json()["added"] == 0
    assert [entry["image_id"] for entry in answer.json()["unreadable"]] == ["new"]
    assert own_gallery.count() == 4
    assert not list((own_gallery.folder).rglob("originals/*/*"))
    assert sent[:20] not in json.dumps(noted()), "pictures are not noted"


def test_the_size_of_an_image_is_limited(ask: Ask, gallery: Gallery) -> None:
    client = ask(gallery, image_pixels=64 * 32, image_bytes=3000)
    fits, wide = png_of_size(64, 32), png_of_size(65, 32)
    assert client.post("/api/search", json={"image": base64.b64encode(fits).decode()}).status_code == 200
    assert refusal(client.post("/api/search", json={"image": base64.b64encode(wide).decode()}))[1] == "bad_image"
    noise = io.BytesIO()
    Image.effect_noise((64, 32), 90).save(noise, "PNG", compress_level=0)
    long = base64.b64encode(noise.getvalue() + bytes(3000)).decode()
    assert refusal(client.post("/api/search", json={"image": long}))[:2] == (413, "image_too_large")


def test_a_deleted_original(ask: Ask, own_gallery: Gallery, tmp_path: Path) -> None:
    (own_gallery.folder / "images" / name_of(1)).unlink()
    client = ask(own_gallery)
    status, code, message = refusal(client.get("/api/image", params={"id": name_of(1)}))
    assert (status, code) == (404, "no_original") and str(tmp_path) not in message
    status, _, message = refusal(client.post("/api/explain", json={"text": "a man", "image_id": name_of(1)}))
    assert status == 400 and str(tmp_path) not in message
    assert client.get("/api/thumbnail", params={"id": name_of(1)}).status_code == 200
    assert len(client.post("/api/search", json={"text": "a man"}).json()["hits"]) == 4


def test_an_original_that_was_replaced_by_a_link_is_not_sent(ask: Ask, own_gallery: Gallery, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"\xff\xd8\xff secret")
    place = own_gallery.folder / "images" / name_of(1)
    place.unlink()
    place.symlink_to(secret)
    answer = ask(own_gallery).get("/api/image", params={"id": name_of(1)})
    assert refusal(answer)[:2] == (404, "no_original")


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,{}", "DATA:Image/PNG;Base64,{}", "data:;base64,{}", "data:text/plain;base64,{}",
        "data:image/png;name=a%20b.png;base64,{}", "data:application/octet-stream;charset=utf-8;base64,{}",
    ],
)  # fmt: skip
def test_data_urls_are_accepted_as_images(ask: Ask, own_gallery: Gallery, url: str) -> None:
    """The type is read from the content."""
    file = io.BytesIO()
    Image.effect_noise((20, 40), 90).convert("RGB").save(file, "PNG")
    plain = base64.b64encode(file.getvalue()).decode()
    assert "+" in plain or "/" in plain
    client = ask(own_gallery, token=TOKEN)
    expected = client.post("/api/search", json={"image": plain}).raise_for_status().json()["hits"]
    for text in (plain, plain.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")):
        assert client.post("/api/search", json={"image": url.format(text)}).json()["hits"] == expected
    crop = {"image_id": "live/1", "image": url.format(plain)}
    added = client.post("/api/crops", json={"crops": [crop]}, headers=WRITER).json()
    assert (added["added"], added["unreadable"]) == (1, [])
    original = client.get("/api/image", params={"id": "live/1"})
    assert original.content == file.getvalue() and original.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "url",
    [
        "data:", "data:,", "data:image/png,{}", "data:image/png;base64", "data:image/png;base64;{}", "data:base64,{}",
        "data:image/png;base64,", "data:image/png;base64,!!", "data:image/png;base64,%zz",
        "data:image/png;base64,%C3%A9",
        " data:image/png;base64,{}", "data:image/png;base32,{}", "data:" + "x" * 5000 + ";base64,{}",
        "data:image/png;base64,data:image/png;base64,{}", "https://example.org/a.png", "blob:{}",
        "data:image/png;base64,PHN2Zy8+",
    ],
)  # fmt: skip
def test_bad_data_urls_are_refused(client: TestClient, url: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (20, 40)).save(file, "PNG")
    asked = url.format(base64.b64encode(file.getvalue()).decode())
    status, code, _ = refusal(client.post("/api/search", json={"image": asked}))
    assert status == 422 and code in ("bad_base64", "bad_image")


def broadcasting_bug(*_: Any, **__: Any) -> Any:
    return np.zeros((2, 3)) + np.zeros((4, 5))


@pytest.mark.parametrize(
    ("method", "broken", "path", "body"),
    [
        ("POST", "search_vectors", "/api/search", {"text": "a man"}),
        ("POST", "search_vectors", "/api/search", {"text": "a man", "where": "camera = 'c1'"}),
        ("POST", "encode", "/api/search", {"text": "a man"}),
        ("POST", "resize", "/api/search", {"image": base64.b64encode(png_of_size(24, 48)).decode()}),
        ("POST", "explain", "/api/explain", {"text": "a man", "image_id": name_of(0)}),
        ("POST", "uploaded", "/api/marks/export", {"format": "csv", "marks": []}),
        ("POST", "add", "/api/crops", {"crops": [{"image_id": "new", "image": "AAAA"}]}),
        ("GET", "crop", f"/api/crop?id={name_of(0)}", None),
        ("GET", "thumbnail", f"/api/thumbnail?id={name_of(0)}", None),
        ("GET", "original", f"/api/image?id={name_of(0)}", None),
        ("GET", "facets", "/api/gallery", None),
        ("DELETE", "remove", "/api/crops?id=a", None),
    ],
)
def test_a_bug_is_a_500_with_a_request_id_that_is_logged(
    method: str,
    broken: str,
    path: str,
    body: Any,
    ask: Ask,
    own_gallery: Gallery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A ValueError of NumPy is not an error of the gallery and must not become a 400."""
    client = ask(own_gallery, token=TOKEN)
    client.app.state.service.worker.ready.result(300)  # type: ignore[attr-defined]
    monkeypatch.setattr(own_gallery, broken, broadcasting_bug)
    answer = client.request(method, path, json=body, headers=WRITER)
    assert refusal(answer)[:2] == (500, "internal")
    (record,) = [record for record in caplog.records if record.name.startswith("cskt.service")]
    route, identifier = path.partition("?")[0], answer.headers["x-request-id"]
    assert record.getMessage() == f"{method} {route} failed, request {identifier}"
    assert record.exc_text is not None and "in broadcasting_bug" in record.exc_text
    assert record.exc_text.endswith("ValueError") and "shapes" not in record.exc_text, "no message: it may quote"
    assert f'code="500",method="{method}",route="{route}"' in client.get("/metrics", headers=WRITER).text


def test_a_bug_in_a_validator_is_a_500(
    ask: Ask, gallery: Gallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """pydantic reports every ValueError of a validator as invalid input."""
    monkeypatch.setattr("cskt.service.schemas.check_wording", broadcasting_bug)
    assert refusal(ask(gallery).post("/api/search", json={"text": "a man"}))[:2] == (500, "internal")
    assert "in broadcasting_bug" in caplog.text


@pytest.mark.parametrize("function", ["cskt.service.routes.base._check", "cskt.utils.json_files._object"])
def test_a_bug_while_a_body_is_read_is_a_500(
    function: str, ask: Ask, gallery: Gallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """FastAPI makes a 400 of everything that its own reading of a body raises."""
    client = ask(gallery)
    monkeypatch.setattr(function, broadcasting_bug)
    assert refusal(client.post("/api/search", json={"text": "a man"}))[:2] == (500, "internal")
    assert "in broadcasting_bug" in caplog.text


def test_a_client_that_leaves_while_it_sends_is_no_bug(
    ask: Ask, gallery: Gallery, caplog: pytest.LogCaptureFixture
) -> None:
    app = ask(gallery).app
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json"), (b"content-length", b"9")]
    scope = {
        "type": "http", "method": "POST", "path": "/api/search", "raw_path": b"/api/search", "query_string": b"",
        "root_path": "", "scheme": "http", "http_version": "1.1", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 400 and b"ended too early" in sent[1]["body"]
    assert "failed" not in caplog.text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CsktError("no"), (400, "bad_query", "no")),
        (FileSystemError("/secret: no space"), (503, "store_refuses", "the gallery's store is unavailable")),
        (OutOfMemoryError("/secret: no memory"), (503, "out_of_memory", "the service is out of memory")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_statuses_of_errors_of_the_package(
    error: CsktError,
    expected: tuple[int, str, str],
    ask: Ask,
    gallery: Gallery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    client = ask(gallery)
    client.app.state.service.worker.ready.result(300)  # type: ignore[attr-defined]
    monkeypatch.setattr(gallery, "search_vectors", fail)
    monkeypatch.setattr(gallery, "crop", fail)
    for answer in (client.post("/api/search", json={"text": "a"}), client.get("/api/crop", params={"id": "a"})):
        status, code, message = refusal(answer)
        assert (status, code) == expected[:2] and message.startswith(expected[2]) and "secret" not in message
