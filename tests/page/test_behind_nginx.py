"""The page and the API behind nginx with TLS, with and without a path in front."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from behind_nginx import HOST, NGINX, Site, free_port, make_certificate, proxying, serving, write_configuration
from on_page import NUM_CROPS, SENTENCE, Watch, hits, type_sentence
from PIL import Image
from playwright.sync_api import Browser, expect

from cskt.gallery.gallery import Gallery
from cskt.service.access.keys import add_key

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="no nginx here; type: apt-get install nginx-light"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here"),
]
KEY_FIELD = "Key"


@pytest.fixture(scope="module")
def folder(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate and a copy of the gallery."""
    folder = tmp_path_factory.mktemp("site")
    make_certificate(folder)
    shutil.copytree(gallery.folder, folder / "gallery")
    return folder


@pytest.fixture(scope="module")
def reader(folder: Path) -> str:
    return add_key(folder / "keys.json", "reader", "read")


@pytest.fixture(scope="module")
def writer(folder: Path) -> str:
    return add_key(folder / "keys.json", "writer", "write")


@pytest.fixture(scope="module")
def service_port(folder: Path, reader: str, writer: str) -> Iterator[int]:
    """The port of a service whose proxy is on this machine."""
    flags = f"--port 0 --device cpu --rate 1000 --require-token --proxy 127.0.0.1 --key-file {folder / 'keys.json'}"
    with serving([str(folder / "gallery"), *flags.split()]) as port:
        yield port


@pytest.fixture(params=["", "/people"])
def site(request: pytest.FixtureRequest, folder: Path, service_port: int, tmp_path: Path) -> Iterator[Site]:
    for name in ("cert.pem", "key.pem"):
        shutil.copy(folder / name, tmp_path)
    with proxying(Site(service_port, free_port(), free_port(), request.param, tmp_path)) as running:
        yield running


def audited(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "gallery" / "audit.jsonl").read_text(encoding="ascii").splitlines()
    return [json.loads(line) for line in lines]


def test_nginx_accepts_the_shipped_files(folder: Path, tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        shutil.copy(folder / name, tmp_path)
    configuration = write_configuration(Site(8000, 8443, 8080, "", tmp_path))
    words = [str(NGINX), "-t", "-e", str(tmp_path / "error.log"), "-c", str(configuration)]
    tested = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr


def test_clients_behind_the_proxy(site: Site, folder: Path, reader: str) -> None:
    bearer = f"Bearer {reader}"
    assert site.ask("GET", "/api/gallery")[0] == 401
    claim = {"Authorization": bearer, "X_Forwarded_For": "203.0.113.9", "X_Forwarded_Host": "evil.example"}
    status, headers, body = site.ask("POST", "/api/search", {"text": SENTENCE, "k": 3}, sender="127.0.0.2", **claim)
    assert status == 200 and len(json.loads(body)["hits"]) == 3
    assert headers["Strict-Transport-Security"] and headers["X-Request-ID"]
    last = audited(folder)[-1]
    assert (last["client"], last["key"], last["text"]) == ("127.0.0.2", "reader", SENTENCE)
    assert site.ask("GET", "/metrics", Authorization=bearer)[0] == 404
    assert b'href="openapi.json"' in site.ask("GET", "/docs")[2]
    assert site.ask("GET", "/openapi.json")[0] == 200
    assert site.ask("GET", "/healthz", Host="evil.example")[0] == 403


def test_a_session_is_for_this_path_and_for_tls(site: Site, reader: str) -> None:
    origin = f"https://{HOST}:{site.port}"
    status, headers, _ = site.ask("POST", "/api/session", {"token": reader}, Origin=origin)
    assert status == 200
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert "Secure" in attributes and "HttpOnly" in attributes and not any("Path" in part for part in attributes)
    assert site.ask("GET", "/api/gallery", Cookie=cookie)[0] == 200
    assert site.ask("POST", "/api/session", {"token": reader}, Origin="https://evil.example")[0] == 403


def test_uploads_and_large_answers_pass_within_the_limits(site: Site, writer: str, tmp_path: Path) -> None:
    bearer = {"Authorization": f"Bearer {writer}"}
    noise = np.random.default_rng(0).integers(0, 256, (1200, 800, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    data = (tmp_path / "noise.png").read_bytes()
    assert len(data) > 2_000_000
    crop = {"image_id": "live/noise", "image": base64.b64encode(data).decode()}
    status, _, body = site.ask("POST", "/api/crops", {"crops": [crop]}, **bearer)
    assert (status, json.loads(body)["unreadable"]) == (200, [])
    status, headers, body = site.ask("GET", "/api/image?id=live/noise", **bearer)
    assert (status, headers["Content-Type"], body) == (200, "image/png", data)
    assert site.ask("DELETE", "/api/crops?id=live/noise", **bearer)[0] == 200
    status, _, body = site.ask("POST", "/api/search", {"image": "A" * 18 * 2**20}, **bearer)
    assert (status, json.loads(body)["error"]["code"]) == (413, "too_large"), "from the service"
    status, _, body = site.ask("POST", "/api/crops", Content_Length=str(65 * 2**20), **bearer)
    assert status == 413 and b"nginx" in body, "more than every limit of the service: not even read"


def test_the_page_through_the_proxy(site: Site, browser: Browser, reader: str, artefacts: Path) -> None:
    watch = Watch(site.address, allowed="401")
    context = browser.new_context(viewport={"width": 1280, "height": 800}, ignore_https_errors=True, locale="en-GB")
    page = context.new_page()
    page.on("request", watch.on_request)
    page.on("console", watch.on_console)
    page.goto(site.address)
    page.get_by_role("textbox", name=KEY_FIELD).fill(reader)
    page.keyboard.press("Enter")
    expect(page.locator("#gallery-facts")).to_contain_text(f"{NUM_CROPS} crops")
    type_sentence(page)
    expect(hits(page)).to_have_count(48)
    assert hits(page).first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    (cookie,) = context.cookies(site.address + "api/")
    assert (cookie["path"], cookie["secure"], cookie["httpOnly"]) == (f"{site.prefix}/api", True, True)
    assert context.cookies(f"https://{HOST}:{site.port}/elsewhere/") == [], "no other application of the host gets it"
    page.reload()
    expect(hits(page)).to_have_count(48)
    assert page.url.startswith(site.address + "?q=")
    page.screenshot(path=artefacts / f"behind-nginx{site.prefix.replace('/', '-')}.png")
    context.close()
    watch.check()


def test_plain_http_is_sent_to_tls_and_the_log_has_no_client_text(
    folder: Path, service_port: int, tmp_path: Path
) -> None:
    for name in ("cert.pem", "key.pem"):
        shutil.copy(folder / name, tmp_path)
    with proxying(Site(service_port, free_port(), free_port(), "", tmp_path)) as site:
        plain = http.client.HTTPConnection(HOST, site.plain_port, timeout=60)
        plain.request("GET", "/?q=secret")
        answer = plain.getresponse()
        assert (answer.status, answer.headers["Location"]) == (308, f"https://{HOST}/?q=secret")
        plain.close()
        assert site.ask("GET", "/?q=secret")[0] == 200
        assert site.ask("GET", "/api/thumbnail?id=secret.jpg")[0] == 401
    log = (tmp_path / "access.log").read_text(encoding="utf-8")
    assert '"GET /" 200' in log and '"GET /api/thumbnail" 401' in log
    assert "secret" not in log and "secret" not in (tmp_path / "error.log").read_text(encoding="utf-8")
