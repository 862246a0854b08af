"""Crops by HTTP: facts, pictures and their headers; adding and deleting with the token."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doll_service import TOKEN, WRITER, Ask, metadata_of, name_of, refusal
from PIL import Image

from cskt.gallery.gallery import Gallery
from cskt.service.uploads import content_type, download_name


def sent(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def encoded(kind: str, colour: str = "red", **how: Any) -> bytes:
    """A small picture in a format."""
    file = io.BytesIO()
    Image.new("RGB", (24, 48), colour).save(file, kind, **how)
    return file.getvalue()


def test_facts_and_pictures_of_a_crop(ask: Ask, gallery: Gallery, crops: Path) -> None:
    client = ask(gallery)
    name, data = name_of(6), (crops / name_of(6)).read_bytes()
    facts = client.get("/api/crop", params={"id": name}).raise_for_status().json()
    with Image.open(io.BytesIO(data)) as image:
        assert (facts["width"], facts["height"]) == image.size
    assert facts["image_id"] == name and facts["num_bytes"] == len(data)
    assert facts["sha256"] == hashlib.sha256(data).hexdigest()
    assert facts["metadata"] == metadata_of(6) | {"time": "2026-01-07T00:00:00Z"}
    original = client.get("/api/image", params={"id": name})
    assert original.content == data and original.headers["content-type"] == "image/jpeg"
    assert original.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert original.headers["content-disposition"] == 'inline; filename="006.jpg"'
    assert original.headers["cache-control"] == "no-store"
    small = client.get("/api/thumbnail", params={"id": name})
    assert small.content == gallery.thumbnail(name) and small.headers["content-type"] == "image/jpeg"
    again = client.get("/api/thumbnail", params={"id": name}, headers={"If-None-Match": small.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    other = client.get("/api/thumbnail", params={"id": name_of(7)}, headers={"If-None-Match": small.headers["etag"]})
    assert other.status_code == 200


def test_crops_are_added_replaced_and_removed(
    ask: Ask, own_gallery: Gallery, crops: Path, noted: Callable[[], Any]
) -> None:
    client = ask(own_gallery, token=TOKEN)
    first, second = (crops / name_of(8)).read_bytes(), (crops / name_of(9)).read_bytes()

    def add(*added: dict[str, Any]) -> Any:
        return client.post("/api/crops", json={"crops": list(added)}, headers=WRITER).raise_for_status().json()

    metadata = {"camera": "c9", "track": 77, "sure": True, "note": None}
    answer = add(
        {"image_id": "new/a", "image": sent(first), "metadata": metadata}, {"image_id": "b", "image": sent(second)}
    )
    assert answer == {"added": 2, "replaced": 0, "unreadable": []}
    facts = client.get("/api/crop", params={"id": "new/a"}).json()
    assert facts["metadata"] == {"camera": "c9", "track": 77, "sure": True}
    assert client.get("/api/image", params={"id": "new/a"}).content == first
    found = client.post("/api/search", json={"image": sent(first), "k": 1}).json()["hits"]
    assert found[0]["image_id"] == "new/a" and found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert add({"image_id": "b", "image": sent(first)}) == {"added": 0, "replaced": 1, "unreadable": []}
    assert client.get("/api/image", params={"id": "b"}).content == first

    def delete(*names: str) -> Any:
        return client.request("DELETE", "/api/crops", params={"id": list(names)}, headers=WRITER).json()

    assert delete("new/a", "nobody") == {"removed": 1}
    assert client.get("/api/crop", params={"id": "new/a"}).status_code == 404
    assert client.get("/api/image", params={"id": "b"}).content == first, "its bytes were those of the deleted crop"
    assert delete("b") == {"removed": 1}
    assert own_gallery.count() == 4 and not list(own_gallery.folder.rglob("originals/*/*"))
    lines = [line for line in noted() if line["action"] in ("add", "delete")]
    assert [(line["action"], line["stage"], line.get("added"), line.get("removed")) for line in lines] == [
        ("add", "asked", None, None), ("add", "ended", 2, None),
        ("add", "asked", None, None), ("add", "ended", 0, None),
        ("delete", "asked", None, None), ("delete", "ended", None, 1),
        ("delete", "asked", None, None), ("delete", "ended", None, 1),
    ]  # fmt: skip
    assert lines[4]["image_ids"] == lines[5]["image_ids"] == ["new/a", "nobody"]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../b", "a//b", "a\\b", "a/", ".", "..", "\x1bx", "a\nb", "", "x" * 513]
)
def test_bad_names_of_crops_are_refused(name: str, ask: Ask, own_gallery: Gallery) -> None:
    client = ask(own_gallery, token=TOKEN)
    body = {"crops": [{"image_id": name, "image": sent(encoded("PNG"))}]}
    before = sorted(own_gallery.folder.parent.rglob("*"))
    assert refusal(client.post("/api/crops", json=body, headers=WRITER))[0] in (400, 422)
    assert own_gallery.count() == 4
    assert sorted(own_gallery.folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "crop",
    [
        {"image_id": "a"},
        {"image_id": "a", "image": 5},
        {"image_id": "a", "image": "@@@"},
        {"image_id": "a", "image": "AAAA", "metadata": {"camera": {"name": "c1"}}},
        {"image_id": "a", "image": "AAAA", "metadata": {"camera": ["c1"]}},
        {"image_id": "a", "image": "AAAA", "path": "/etc/passwd"},
        {"image_id": name_of(0), "image": sent(encoded("PNG"))},
        {"image_id": "a", "image": sent(encoded("PNG")), "metadata": {"vector": "x"}},
        {"image_id": "a", "image": sent(encoded("PNG")), "metadata": {"track": "no number"}},
        {"image_id": "a", "image": sent(encoded("PNG")), "metadata": {f"column{n}": n for n in range(101)}},
    ],
)
def test_bad_crops_are_refused(crop: dict[str, Any], ask: Ask, own_gallery: Gallery) -> None:
    client = ask(own_gallery, token=TOKEN)
    answer = client.post("/api/crops", json={"crops": [crop]}, headers=WRITER)
    assert refusal(answer)[0] in (400, 422)
    assert own_gallery.count() == 4


def test_one_bad_crop_does_not_prevent_the_others(ask: Ask, own_gallery: Gallery) -> None:
    client = ask(own_gallery, token=TOKEN)
    cut = encoded("JPEG")[:-40]
    body = {
        "crops": [
            {"image_id": "good", "image": sent(encoded("PNG"))},
            {"image_id": "cut", "image": sent(cut)},
            {"image_id": "none", "image": sent(b"<svg/>")},
        ]
    }
    answer = client.post("/api/crops", json=body, headers=WRITER).json()
    assert answer["added"] == 1
    assert sorted(entry["image_id"] for entry in answer["unreadable"]) == ["cut", "none"]
    assert own_gallery.count() == 5


def test_the_number_and_size_of_crops_are_limited(ask: Ask, own_gallery: Gallery) -> None:
    client = ask(own_gallery, token=TOKEN, crops_per_request=2, crops_bytes=5000)
    crop = {"image": sent(encoded("PNG"))}
    body = {"crops": [crop | {"image_id": str(number)} for number in range(3)]}
    status, _, message = refusal(client.post("/api/crops", json=body, headers=WRITER))
    assert status == 422 and "limited to 2" in message
    body = {"crops": [{"image_id": "a", "image": "A" * 8000}]}
    assert refusal(client.post("/api/crops", json=body, headers=WRITER))[:2] == (413, "too_large")
    many = client.request("DELETE", "/api/crops", params={"id": ["a"] * 1001}, headers=WRITER)
    assert refusal(many)[0] == 422
    assert refusal(client.request("DELETE", "/api/crops", headers=WRITER))[0] == 422


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("JPEG", "image/jpeg"), ("PNG", "image/png"), ("WEBP", "image/webp"), ("GIF", "image/gif"), ("BMP", "image/bmp"),
     ("TIFF", "image/tiff"), ("PPM", "application/octet-stream")],
)  # fmt: skip
def test_the_type_is_read_from_the_content(kind: str, expected: str, ask: Ask, own_gallery: Gallery) -> None:
    data = encoded(kind)
    assert content_type(data) == expected
    own_gallery.add([data], ["page.html"])
    answer = ask(own_gallery).get("/api/image", params={"id": "page.html"})
    assert answer.headers["content-type"] == expected and answer.content == data
    shown, _, name = answer.headers["content-disposition"].partition("; ")
    assert shown == ("attachment" if kind == "PPM" else "inline")
    assert name.startswith('filename="page.') and not name.endswith('.html"')


@pytest.mark.parametrize(
    "data", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>", b"RIFF....WAVE", b"GIF", b" \xff\xd8\xff"]
)
def test_other_files_have_no_image_type(data: bytes) -> None:
    assert content_type(data) == "application/octet-stream"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("c0/001.jpg", "001.png"), ('a"; x="b.jpg', "a-x-b.png"), ("x\r\ny.jpg", "x-y.png"), ("人.jpg", "crop.png"),
     ("cam.1/a.b.c", "a-b.png"), ("..", "crop.png"), ("noending", "noending.png"),
     ("d/" + "x" * 300, "x" * 80 + ".png")],
)  # fmt: skip
def test_names_of_downloads_are_harmless(name: str, expected: str) -> None:
    assert download_name(name, "image/png") == expected


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({f"column {number}": "x" for number in range(100)}, "a gallery has at most 100"),
        ({"note": "x" * 2001}, "has 2,001 characters; shorten it to 2,000"),
    ],
    ids=["columns", "value"],
)
def test_metadata_beyond_the_limits_is_refused_whole(
    ask: Ask, own_gallery: Gallery, row: dict[str, str], problem: str
) -> None:
    before = dict(own_gallery.columns), own_gallery.count()
    crops = [
        {"image_id": "new/0.jpg", "image": sent(encoded("JPEG")), "metadata": {"fine": "yes"}},
        {"image_id": "new/1.jpg", "image": sent(encoded("JPEG")), "metadata": row},
    ]
    status, code, message = refusal(
        ask(own_gallery, token=TOKEN).post("/api/crops", json={"crops": crops}, headers=WRITER)
    )
    assert (status, code) == (400, "bad_crop") and problem in message
    assert (dict(own_gallery.columns), own_gallery.count()) == before
