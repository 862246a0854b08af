"""Pages that the commands write as files, in a browser: report, answers, people."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from on_page import CONTRAST
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import Browser, Locator, Page

from cskt.report.evidence import Curve, cmc_curves
from cskt.report.pages import Chart, Section, write_answer_page, write_people_page, write_report
from cskt.report.people import ShownImage, ShownPerson
from cskt.report.pictured_results import PicturedHit, PicturedResult
from cskt.report.tables import ResultRow
from cskt.types import Hit

pytestmark = pytest.mark.browser

LONG = "a-very-long-name-of-a-run-with-prompts-and-adapters-in-both-towers-seed-1"
UNBROKEN = "20260101_120000_" + "x" * 60
HEBREW = "אישה במעיל אדום עם תיק שחור"
SUMMARY = {"r1": 0.6, "r5": 0.8, "r10": 1.0, "mean_ap": 0.5, "mean_inp": 0.3, "num_queries": 6156, "num_gallery": 3074}
INTERVALS = {key: (value - 0.05, value) for key, value in SUMMARY.items() if value <= 1}
NAMES = ("zero-shot", LONG, UNBROKEN, HEBREW, *(f"run {number}" for number in range(8)))
COMPARISON = (
    ("Method", "Trained on", "Seeds", "Δ R1", "p people (R1)", "Δ mAP", "p people (mAP)", "Note"),
    *((name, "cuhk-pedes", "1", "−56.67", "<0.001", "+0.12", "1.000", "no better than zero-shot") for name in NAMES),
)
SETTINGS = (
    ("Setting", *NAMES[:8]),
    ("augment.erase_probability", *["0.5"] * 8),
    ("loss.weights", *["sdm 1 mlm 0.5 identity 0.25"] * 8),
)
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter((node) => {
  const { left, right, width } = node.getBoundingClientRect();
  return width && (left < -0.5 || right > innerWidth + 0.5) && !node.parentElement.closest(".scroll");
}).map((node) => `${node.tagName}.${node.className} ${node.textContent.trim().slice(0, 30)}`)"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of twelve models, the answers of a gallery and the people of a data set, all with awkward texts."""
    folder = tmp_path_factory.mktemp("pages")
    crop = folder / "crop.png"
    Image.new("RGB", (48, 128), (30, 60, 200)).save(crop)
    file = io.BytesIO()
    Image.new("RGB", (48, 128), (200, 60, 30)).save(file, "JPEG")
    row = ResultRow(LONG, SUMMARY, 14_203_200, 14_203_200, "selected on test", INTERVALS)
    rows = [
        replace(row, label=name, zero_shot_r1=reference)
        for name, reference in zip(NAMES, [None, 0.5, 0.58, 0.7] * 3, strict=True)
    ]
    hits = [
        PicturedHit(Hit(UNBROKEN, -0.068, rank, {"camera": UNBROKEN}), picture, right)
        for rank, picture, right in ((1, crop, True), (9, folder / "absent.png", False), (1026, crop, True))
    ]
    answers = [PicturedResult(text, hits * 3) for text in (HEBREW, "a red coat " * 60, UNBROKEN)]
    mean = np.linspace(0.5, 0.9, 20)
    curves = cmc_curves([Curve(name, mean, mean - 0.1, mean + 0.05) for name in NAMES[:8]])
    sections = [
        Section("Warnings", warnings={LONG: [UNBROKEN], HEBREW: ["a rate"]}),
        Section("Comparison", "words " * 40, table=COMPARISON, commands=[f"cskt evaluate {UNBROKEN}"]),
        Section("Settings", table=SETTINGS),
        Section("Curves", charts=[Chart("cmc", curves, "curves")], half=True),
        Section("Hardest", sentences=[(HEBREW, LONG), (UNBROKEN, UNBROKEN)], half=True),
        Section("Best", answers=answers),
    ]
    write_report(
        folder / "report.html", title=UNBROKEN, rows=rows, headline=rows[3], sections=sections,
        configs={LONG: {"name": UNBROKEN}}, facts={LONG: UNBROKEN}, next_commands=[f"cskt query {UNBROKEN}"],
    )  # fmt: skip
    maps = [(word, file.getvalue()) for word in ("whole sentence", HEBREW, UNBROKEN)]
    drawn = [replace(hit, picture=file.getvalue()) for hit in hits]
    explained = PicturedResult(HEBREW, [replace(hit, heat_maps=maps) for hit in drawn], note=LONG)
    write_answer_page(folder / "answers.html", LONG, [explained, PicturedResult(UNBROKEN, drawn)])
    shown = [ShownImage(crop, [HEBREW, "a red coat " * 30, UNBROKEN]), ShownImage(folder / "absent.png", [])]
    people = [ShownPerson(name, "2 images, 3 captions", shown) for name in (HEBREW, UNBROKEN)]
    write_people_page(folder / "people.html", UNBROKEN, people)
    return {path.stem: path for path in folder.glob("*.html")}


SCREENS = [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]


@pytest.fixture(params=SCREENS, ids=lambda screen: f"{screen[0]}-{screen[1]}")
def screen(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """An empty page of one width and colour scheme; a complaint of the browser is an error."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    yield page
    page.close()
    assert complaints == []


@pytest.mark.parametrize("name", ["report", "answers", "people"])
def test_nothing_is_wider_than_the_screen_and_all_text_can_be_read(
    name: str, pages: dict[str, Path], screen: Page, artefacts: Path
) -> None:
    screen.goto(pages[name].as_uri())
    width = screen.viewport_size["width"]  # type: ignore[index]
    dark = screen.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    screen.screenshot(path=artefacts / f"{name}-{width}-{'dark' if dark else 'light'}.png", full_page=True)
    assert screen.evaluate("document.documentElement.scrollWidth") == width
    assert screen.evaluate(OUTSIDE) == []
    assert screen.evaluate(CONTRAST) == []


def test_the_page_of_the_http_api_fits_and_can_be_read(address: str, screen: Page, artefacts: Path) -> None:
    screen.goto(f"{address}docs")
    width = screen.viewport_size["width"]  # type: ignore[index]
    for summary in screen.locator("summary").all():
        summary.click()
    dark = screen.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    screen.screenshot(path=artefacts / f"api-{width}-{'dark' if dark else 'light'}.png", full_page=True)
    assert screen.evaluate("document.documentElement.scrollWidth") == width
    assert screen.evaluate(OUTSIDE) == []
    assert screen.evaluate(CONTRAST) == []
    assert (screen.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 21)") == dark


def edge(region: Locator) -> Image.Image:
    """The last twelve columns of pixels of a region below its headings, without its border."""
    with Image.open(io.BytesIO(region.screenshot())) as picture:
        return picture.convert("L").crop(
            (picture.width - 13, picture.height // 2, picture.width - 1, picture.height - 20)
        )


def test_a_table_fits_its_card_or_shows_that_it_scrolls(pages: dict[str, Path], screen: Page) -> None:
    screen.goto(pages["report"].as_uri())
    is_wide = screen.viewport_size["width"] == 1280  # type: ignore[index]
    for heading in ("Results", "Comparison"):
        region = screen.get_by_role("group", name=heading)
        hidden = region.evaluate("node => node.scrollWidth - node.clientWidth")
        assert (hidden <= 0) if is_wide else (hidden > 100)
        if hidden > 0:
            before = edge(region)
            region.focus()
            screen.keyboard.press("End")
            region.evaluate("node => { node.scrollLeft = node.scrollWidth; }")
            shade = ImageStat.Stat(ImageChops.difference(before, edge(region))).mean[0]
            assert shade > 8, "the shade at the edge ends where the table ends"


def test_rows_differ_by_colour_symbol_and_word(pages: dict[str, Path], screen: Page) -> None:
    screen.goto(pages["report"].as_uri())
    found = {
        word: screen.locator(f"tr.{word} .standing").first.evaluate(
            "node => [node.textContent, getComputedStyle(node).color, getComputedStyle(node, '::before').content]"
        )
        for word in ("above", "below", "unclear")
    }
    assert [texts[0] for texts in found.values()] == list(found)
    for place in (1, 2):
        assert len({texts[place] for texts in found.values()}) == 3
