"""A browser before the real service over a small gallery of paper dolls; every test also watches what the page does."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not os.environ.get("CI"):  # there, what is missing is an error
    for module in ("playwright.sync_api", "fastapi", "uvicorn", "lancedb"):
        pytest.importorskip(module)

import uvicorn
from on_page import HOSTILE_NAME, HOSTILE_TRACK, NUM_CROPS, PATIENCE_MS, TOKEN, Watch
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from cskt import load
from cskt.data.paperdoll import draw_person, sample_attributes, stable_random
from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.service.app import create_app
from cskt.service.server import address_of, listen
from cskt.service.settings import ServiceSettings

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The small backbone that comes with the package, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    encoder = load("clip-tiny", device="cpu")
    torch.set_num_threads(before)
    return encoder


@pytest.fixture(scope="session")
def gallery(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """Forty dolls, three crops each, with a column of every kind; one crop's name and track try to be HTML."""
    images, names, metadata = [], [], []
    for number in range(NUM_CROPS):
        doll = number // 3
        attributes = sample_attributes(stable_random("page", doll))
        images.append(draw_person(attributes, stable_random("page", number), size_pixels=(96, 216)).image)
        names.append(f"c{number % 3 + 1}/{number:03d}.jpg" if number != 9 else HOSTILE_NAME)
        metadata.append({
            "camera": f"c{number % 3 + 1}",
            "track": f"t{doll:02d}" if number != 9 else HOSTILE_TRACK,
            "time": f"2026-01-{number % 28 + 1:02d}T{number % 24:02d}:30:00",
            "indoor": number % 4 == 0,
            "speed": number / 100,
        })  # fmt: skip
    with Gallery.create(tmp_path_factory.mktemp("page") / "dolls", encoder) as made:
        report = made.add(images, names, metadata)
        assert report.added == NUM_CROPS
        yield made


@pytest.fixture(scope="session")
def empty_gallery(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    """A gallery without a crop."""
    with Gallery.create(tmp_path_factory.mktemp("page") / "bare", encoder) as made:
        yield made


def _served(gallery: Gallery, settings: ServiceSettings) -> Iterator[str]:
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(create_app(gallery, settings), log_config=None, access_log=False, ws="none", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield address_of(listener)
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def address(gallery: Gallery) -> Iterator[str]:
    """Return the address of the page."""
    yield from _served(gallery, ServiceSettings(rate=1000, keep_audit_log=False))


@pytest.fixture
def empty_address(empty_gallery: Gallery) -> Iterator[str]:
    """Return the address of the page of the empty gallery."""
    yield from _served(empty_gallery, ServiceSettings(rate=1000, keep_audit_log=False))


@pytest.fixture
def locked_address(gallery: Gallery) -> Iterator[str]:
    """Return the address of the page of a service that needs the token."""
    settings = ServiceSettings(allow_hosts=("gallery.example",), token=TOKEN, rate=1000, keep_audit_log=False)
    yield from _served(gallery, settings)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's chromium. Without one, tests fail in CI and are skipped elsewhere.

    Not kept for the session: playwright leaves an event loop running in this thread for as long as it is open.
    """
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        message = "no chromium here; type: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def watch(address: str) -> Watch:
    """Record the requests and errors of the test's page, and check them when the test ends."""
    return Watch(address)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without memories, on a desktop."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True, locale="en-GB")
    yield context
    context.close()


def _watched(page: Page, watch: Watch) -> Page:
    page.on("request", watch.on_request)
    page.on("console", watch.on_console)
    page.on("pageerror", lambda error: watch.complaints.append(f"uncaught: {error}"))
    page.on("dialog", lambda dialog: (watch.complaints.append(f"dialog: {dialog.message}"), dialog.accept()))
    return page


@pytest.fixture
def blank(context: BrowserContext, watch: Watch) -> Iterator[Page]:
    """A watched page that has not gone anywhere yet."""
    yield _watched(context.new_page(), watch)
    watch.check()


@pytest.fixture
def page(blank: Page, address: str) -> Page:
    """The search page, just opened."""
    blank.goto(address)
    expect(blank.locator("#gallery-facts")).to_contain_text("120 crops")
    return blank


@pytest.fixture
def context_page(context: BrowserContext, watch: Watch) -> Page:
    """A second, watched tab of the same browser."""
    return _watched(context.new_page(), watch)


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Return the folder of the screenshots: CSKT_TEST_ARTEFACTS, or build/screenshots."""
    folder = Path(os.environ.get("CSKT_TEST_ARTEFACTS") or Path(__file__).parents[2] / "build" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
