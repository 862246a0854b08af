"""Draw docs/images/search-*.png: the search page over the gallery of `cskt serve --demo`, as a browser shows it.

    python docs/make_screenshots.py [FOLDER]

Needs the extras `gallery` and `serve`, playwright, and a chromium on the path.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from cskt import load
from cskt.cli.demo_gallery import build_demo_gallery
from cskt.gallery.gallery import Gallery
from cskt.service.app import create_app
from cskt.service.server import address_of, listen
from cskt.service.settings import ServiceSettings

FOLDER = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SENTENCE = "a woman in a red dress with a black bag"
WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


@contextmanager
def served(gallery: Gallery) -> Iterator[str]:
    """Serve a gallery and yield the address of its page."""
    listener = listen("127.0.0.1", 0)
    app = create_app(gallery, ServiceSettings(keep_audit_log=False))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield address_of(listener)
    server.should_exit = True
    thread.join()


@contextmanager
def opened(browser: Browser, address: str, *, phone: bool = False, dark: bool = False, **search: str) -> Iterator[Page]:
    """Open the page in a browser and wait for the results of a search, if there is one."""
    context = browser.new_context(
        viewport=PHONE if phone else WIDE,  # type: ignore[arg-type]
        device_scale_factor=2 if phone else 1,
        is_mobile=phone,
        has_touch=phone,
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(f"{address}?{urlencode(search)}")
    if search:
        page.wait_for_selector(".frame.loaded")
        page.wait_for_load_state("networkidle")
    yield page
    context.close()


def mark(page: Page) -> None:
    """Mark three crops as right or wrong."""
    page.locator(".hit").first.focus()
    for key in ("r", "ArrowRight", "r", "ArrowRight", "w", "ArrowRight"):
        page.keyboard.press(key)


def explain(page: Page, rank: int, word: str) -> None:
    """Open a crop and show the heat map of a word."""
    page.locator(".hit").nth(rank - 1).click()
    page.locator("#words .word", has_text=word).first.click()
    page.locator("#viewer-name").hover()


def draw(browser: Browser, address: str, empty_address: str, folder: Path) -> None:
    """Take all screenshots."""

    def keep(page: Page, name: str) -> None:
        page.wait_for_timeout(300)  # pictures fade in
        shown = Image.open(io.BytesIO(page.screenshot()))
        # 256 colours are enough for paper dolls, at a third of the size
        few = shown.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=4)
        few.save(folder / f"search-{name}.png", optimize=True)

    with opened(browser, address) as page:
        page.wait_for_selector("#warning:not([hidden])")
        keep(page, "start")
    with opened(browser, address, q=SENTENCE) as page:
        mark(page)
        keep(page, "light")
    with opened(browser, address, dark=True, q=SENTENCE, where="camera IN ('hall', 'car park')", group="track") as page:
        keep(page, "dark")
    with opened(browser, address, q="a woman in a red coat with a brown bag") as page:
        explain(page, 1, "coat")
        keep(page, "explain")
    with opened(browser, address, phone=True, q=SENTENCE) as page:
        keep(page, "phone")
    with opened(browser, empty_address) as page:
        page.wait_for_selector("#message h2")
        keep(page, "empty")
    with opened(browser, address) as page:
        answer = {"error": {"code": "busy", "message": "256 queries are waiting for the model; try again in 1 s"}}
        page.route("**/api/search", lambda route: route.fulfill(status=503, body=json.dumps(answer)))
        page.locator("#sentence").fill(SENTENCE)
        page.wait_for_selector("#message h2")
        keep(page, "error")


def main() -> None:
    """Create two galleries in a temporary folder, one with generated pedestrians, and take the screenshots."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit("no chromium here; type: apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    encoder = load("clip-tiny", device="cpu")
    with (
        tempfile.TemporaryDirectory() as root,
        Gallery.open(build_demo_gallery(Path(root) / "demo"), encoder=encoder) as full,
        Gallery.create(Path(root) / "new", encoder) as new,
        sync_playwright() as playwright,
        served(full) as address,
        served(new) as empty_address,
        playwright.chromium.launch(executable_path=path) as browser,
    ):
        draw(browser, address, empty_address, folder)


if __name__ == "__main__":
    main()
