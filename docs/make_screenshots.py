"""Take the screenshots of docs/images: pages as a browser shows them.

    python docs/make_screenshots.py                        search-*.png: the search page over `cskt serve --demo`
    cskt demo --output demo
    python docs/make_screenshots.py --report demo/report.html      demo.png: the report of the demo

`--output FOLDER` writes them elsewhere. Needs the extras `gallery` and `serve`, playwright, and a chromium on the path.
"""

from __future__ import annotations

import argparse
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
REPORT = {"width": 1000, "height": 1500}


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


def save(page: Page, path: Path) -> None:
    """Write what the page shows with 256 colours, enough for paper dolls, at a third of the size."""
    shown = Image.open(io.BytesIO(page.screenshot()))
    shown.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=4).save(path, optimize=True)


def draw_report(browser: Browser, report: Path, folder: Path) -> None:
    """Take the picture of the upper part of a report."""
    page = browser.new_page(viewport=REPORT, color_scheme="light")  # type: ignore[arg-type]
    page.goto(report.resolve().as_uri())
    save(page, folder / "demo.png")


def draw(browser: Browser, address: str, empty_address: str, folder: Path) -> None:
    """Take all screenshots."""

    def keep(page: Page, name: str) -> None:
        page.wait_for_timeout(300)  # pictures fade in
        save(page, folder / f"search-{name}.png")

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
    """Take the picture of a report, or those of two galleries in a temporary folder, one with generated pedestrians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder (default: docs/images)")
    parser.add_argument("--report", type=Path, help="take demo.png of this report instead")
    flags = parser.parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit("no chromium here; type: apt-get install chromium")
    folder: Path = flags.output
    folder.mkdir(parents=True, exist_ok=True)
    if flags.report:
        with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path) as browser:
            draw_report(browser, flags.report, folder)
        return
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
