"""Helpers of the tests of the service: names and metadata of the crops, a client, a token."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery

ADDRESS = "http://127.0.0.1:8000"
TOKEN = "correct-horse-battery-staple"
WRITER = {"Authorization": f"Bearer {TOKEN}"}
PLENTY: dict[str, Any] = {"rate": 1e6}

Ask = Callable[..., TestClient]
"""Gallery and settings -> a client of the service over it; the service runs until the test ends."""


def name_of(number: int) -> str:
    """The name of a crop."""
    return f"c{number % 4}/{number:03d}.jpg"


def metadata_of(number: int) -> dict[str, str | int]:
    """Return the metadata of a crop; its note must never be interpreted."""
    note = "<script>alert('1')</script>" if number == 0 else "plain"
    return {"camera": f"c{number % 4}", "time": f"2026-01-{1 + number % 20:02d}", "track": number // 2, "note": note}


def fill(folder: Path, encoder: Encoder, backbone: Path, images: Path, *, within: bool = False) -> Gallery:
    """A new gallery of the crops in a folder, of which it gets a copy `within` its own if it is to be moved."""
    gallery = Gallery.create(folder, encoder)
    if within:
        images = shutil.copytree(images, folder / "images")
    names = [path.relative_to(images).as_posix() for path in images.rglob("*.jpg")]
    gallery.index(images, metadata={name: metadata_of(int(Path(name).stem)) for name in names})
    return gallery


def client_of(app: FastAPI, address: str = ADDRESS) -> TestClient:
    """A client that sees errors as a browser would."""
    return TestClient(app, base_url=address, raise_server_exceptions=False)


def refusal(response: Any) -> tuple[int, str, str]:
    """Status, code and message of an error, whose form is checked."""
    assert response.headers["content-type"] == "application/json", response.text
    content = response.json()
    assert content.keys() == {"error"} and content["error"].keys() == {"code", "message", "request_id"}
    message = content["error"]["message"]
    assert content["error"]["request_id"] == response.headers["x-request-id"] != ""
    assert message and "\n" not in message and len(message) <= 500
    assert response.headers["x-content-type-options"] == "nosniff"
    return response.status_code, content["error"]["code"], message
