"""The page when there is nothing to show, when something is wrong, on a phone, in the dark - and under attack."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from on_page import CONTRAST, HOSTILE_NAME, HOSTILE_TRACK, SENTENCE, TOKEN, Watch, hits, type_sentence
from playwright.sync_api import Browser, Page, Route, expect

pytestmark = pytest.mark.browser

RESOURCE = "Failed to load resource"


def search_url(address: str, **parameters: str) -> str:
    """The address of a saved search."""
    return address + "?" + "&".join(f"{name}={quote(value)}" for name, value in ({"q": SENTENCE} | parameters).items())


def test_an_empty_gallery_shows_how_to_fill_it(blank: Page, empty_address: str, watch: Watch, artefacts: Path) -> None:
    watch.address = empty_address
    blank.goto(empty_address)
    expect(blank.locator("#message")).to_contain_text("cskt index GALLERY --images FOLDER")
    expect(blank.locator("#sentence")).to_be_hidden()
    blank.screenshot(path=artefacts / "empty.png")


def test_an_error_is_one_line_with_a_button_to_try_again(page: Page, watch: Watch, artefacts: Path) -> None:
    watch.allowed = RESOURCE
    refusal = json.dumps({"error": {"code": "busy", "message": "256 queries wait already; try again in a second"}})
    page.route("**/api/search", lambda route: route.fulfill(status=503, content_type="application/json", body=refusal))
    page.keyboard.type(SENTENCE)
    expect(page.locator("#message")).to_contain_text("256 queries wait already")
    assert hits(page).count() == 0
    page.screenshot(path=artefacts / "error.png")
    page.unroute("**/api/search")
    page.get_by_role("button", name="Try again").click()
    expect(hits(page)).to_have_count(48)
    expect(page.locator("#message")).to_be_hidden()


def test_an_unreachable_service_has_a_message_of_its_own(page: Page, watch: Watch) -> None:
    watch.allowed = RESOURCE
    page.route("**/api/**", lambda route: route.abort())
    page.keyboard.type(SENTENCE)
    expect(page.locator("#message")).to_contain_text("Is cskt serve still running?")
    page.unroute("**/api/**")
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(hits(page)).to_have_count(48)


def test_an_error_page_of_a_proxy_is_reported_by_its_status(page: Page, watch: Watch) -> None:
    watch.allowed = RESOURCE
    page.route("**/api/search", lambda route: route.fulfill(status=502, content_type="text/html", body="<h1>Bad</h1>"))
    page.keyboard.type(SENTENCE)
    expect(page.locator("#message")).to_contain_text("The service answered 502.")


def test_a_filter_error_is_shown_at_the_filter(page: Page, watch: Watch) -> None:
    watch.allowed = RESOURCE
    type_sentence(page)
    page.locator("summary").click()
    page.locator("#where").fill("camra = 'c1'")
    expect(page.locator("#where-note")).to_contain_text("camera")
    expect(page.locator("#where")).to_have_attribute("aria-invalid", "true")
    page.get_by_role("button", name="Clear the filter").click()
    expect(hits(page)).to_have_count(48)
    expect(page.locator("#where-note")).to_have_text("")
    page.locator("#where").fill("speed > 99")
    expect(page.locator("#message")).to_contain_text("No crop fulfils the filter")


def test_loading_crops_are_grey_placeholders(page: Page, artefacts: Path) -> None:
    waiting: list[Route] = []
    page.route("**/api/search", lambda route: waiting.append(route))  # noqa: PLW0108 - a bound method of list cannot be wrapped
    page.keyboard.type(SENTENCE)
    expect(page.locator(".skeleton").first).to_be_visible()
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "true")
    page.screenshot(path=artefacts / "loading.png")
    waiting[-1].continue_()
    expect(hits(page)).to_have_count(48)
    expect(page.locator(".skeleton")).to_have_count(0)


def test_the_token_is_asked_for_once(blank: Page, locked_address: str, watch: Watch, artefacts: Path) -> None:
    watch.address, watch.allowed = locked_address, RESOURCE
    blank.goto(search_url(locked_address))
    expect(blank.locator("#token")).to_be_visible()
    assert SENTENCE not in blank.locator("#status").inner_text()
    blank.get_by_role("textbox", name="Key").fill("not the token at all")
    blank.keyboard.press("Enter")
    expect(blank.locator("#token-note")).to_contain_text("not the right one")
    blank.screenshot(path=artefacts / "token.png")
    blank.get_by_role("textbox", name="Key").fill(TOKEN)
    blank.keyboard.press("Enter")
    expect(hits(blank)).to_have_count(48)
    assert hits(blank).first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    assert TOKEN not in blank.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    blank.reload()
    expect(hits(blank)).to_have_count(48)
    expect(blank.locator("#token")).to_be_hidden()


def test_html_in_names_and_metadata_is_text(blank: Page, address: str) -> None:
    blank.goto(search_url(address, where=f"image_id = '{HOSTILE_NAME}'", q="<script>alert(3)</script> <b>red</b>"))
    expect(hits(blank)).to_have_count(1)
    expect(hits(blank).first).to_contain_text("<img src=x onerror=alert(1)>.jpg")
    hits(blank).first.click()
    expect(blank.locator("#facts")).to_contain_text(HOSTILE_NAME)
    expect(blank.locator("#facts")).to_contain_text(HOSTILE_TRACK)
    expect(blank.locator("#viewer-name")).to_have_text("<img src=x onerror=alert(1)>.jpg")
    expect(blank.locator("#words .word").first).to_be_visible()
    blank.keyboard.press("Escape")
    blank.get_by_label("Group by").select_option("track")
    expect(hits(blank)).to_have_count(1)
    # a dialog or a script refused by the policy would be among the complaints
    assert blank.locator("body img[src=x], body b[onclick], main script").count() == 0


@pytest.mark.parametrize("name", ["start", "results", "viewer"])
def test_a_phone_shows_all_without_sideways_scrolling(
    name: str, browser: Browser, address: str, artefacts: Path
) -> None:
    context = browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, device_scale_factor=2
    )
    page = context.new_page()
    page.goto(address if name == "start" else search_url(address))
    expect(page.locator("#warning")).to_be_visible()
    if name != "start":
        expect(hits(page)).to_have_count(48)
        page.get_by_role("button", name="Threshold and filters").click()
        expect(page.locator("#cut-off")).to_be_visible()
        page.get_by_role("button", name="Threshold and filters").click()
    if name == "viewer":
        hits(page).first.click()
        expect(page.locator("#words .word").first).to_be_visible()
        page.locator("#words .word").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.screenshot(path=artefacts / f"phone-{name}.png")
    context.close()


NAMELESS = """[...document.querySelectorAll("button, input:not([hidden]), textarea, select, img, dialog")]
  .filter((node) => !(node.getAttribute("aria-label") || node.getAttribute("aria-labelledby") || node.labels?.length
    || node.textContent.trim() || node.hasAttribute("alt"))).map((node) => node.outerHTML)"""


def buttons(page: Page) -> list[str]:
    """The names of all buttons, as a screen reader says them."""
    return re.findall(r'^ *- \'?button\b(?: "((?:[^"\\]|\\.)*)")?', page.locator("body").aria_snapshot(), re.MULTILINE)


def test_every_button_has_a_name_of_its_own(page: Page) -> None:
    """Crops by name, rank and score; what marks them, clears and unfolds says what."""
    page.goto(search_url(page.url, where="indoor = true"))
    expect(hits(page)).to_have_count(30)
    hits(page).first.focus()
    page.keyboard.press("r")
    expect(page.locator("#tray")).to_be_visible()
    names = buttons(page)
    assert len(names) > 90 and "" not in names
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    first = hits(page).first
    image_id, score = first.get_attribute("data-id"), first.locator(".score").text_content()
    expect(first).to_have_accessible_name(re.compile(rf"^Crop {re.escape(str(image_id))}, rank 1, score {score}, "))
    for verdict in ("right", "wrong"):
        mark = page.get_by_role("button", name=f"Mark as {verdict}: crop {image_id}", exact=True)
        assert mark.count() == 1
    expect(page.locator("#filters-clear")).to_have_accessible_name("clear all filters")
    expect(page.locator("#marks-clear")).to_have_accessible_name("clear all marks")
    unfolds = page.locator("[data-column=track] .text-button")
    expect(unfolds).to_have_accessible_name(re.compile("more values of track$"))
    expect(page.locator("[data-column=camera] input").first).to_have_accessible_name("c1, 40 crops")
    page.keyboard.press("Enter")
    expect(page.locator("#words .word").first).to_be_visible()
    names = buttons(page)
    assert "" not in names and {"Close", "Next crop", "Previous crop", "More like this"} <= set(names)


FITS = """() => [...document.querySelectorAll("#facets .range input")].map((field) => {
  const [own, panel] = [field, field.closest("aside")].map((node) => node.getBoundingClientRect());
  const copy = field.cloneNode();
  Object.assign(copy.style, { width: "max-content", position: "absolute" });
  field.after(copy);
  const needed = field.type === "datetime-local" ? copy.getBoundingClientRect().width : 0;
  copy.remove();
  return own.left >= panel.left && own.right <= panel.right + 0.5 && own.width >= needed - 0.5;
})"""


@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_dates_are_shown_completely(locale: str, browser: Browser, address: str, artefacts: Path) -> None:
    context = browser.new_context(locale=locale)
    page = context.new_page()
    for width in (1280, 1101, 901, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(search_url(address))
        expect(hits(page).first).to_be_visible()
        if width <= 900:
            page.get_by_role("button", name="Threshold and filters").click()
        page.get_by_label("time from, UTC").fill("2026-01-20T10:30:15")
        assert page.evaluate(FITS) == [True] * 4, width
        assert page.evaluate("(panel => panel.scrollWidth - panel.clientWidth)(document.getElementById('panel'))") == 0
        page.screenshot(path=artefacts / f"dates-{width}-{locale}.png")
    context.close()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_contrast_and_accessible_names(colours: str, browser: Browser, address: str, artefacts: Path) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=colours)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#warning")).to_be_visible()
    assert page.evaluate(CONTRAST) == []
    page.screenshot(path=artefacts / f"start-{colours}.png")
    page.goto(search_url(address, where="camera = 'c1'"))
    expect(hits(page)).to_have_count(40)
    hits(page).first.focus()
    page.keyboard.press("r")
    assert page.evaluate(CONTRAST) == []
    page.screenshot(path=artefacts / f"results-{colours}.png")
    hits(page).first.click()
    expect(page.locator("#words .word").first).to_be_visible()
    page.locator("#words .word").first.click()
    assert page.evaluate(CONTRAST) == []
    page.screenshot(path=artefacts / f"viewer-{colours}.png")
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate("document.documentElement.lang") == "en"
    context.close()


def test_colours_can_be_chosen(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#theme").click()
    assert page.evaluate(ground) == light
    page.locator("#theme").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
    expect(page.locator("#theme")).to_have_attribute("aria-label", "Colours: dark")


def test_reduced_motion_is_respected(browser: Browser, address: str) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(address)
    moving = """[...document.querySelectorAll("*")].map((node) => getComputedStyle(node))
      .filter((style) => parseFloat(style.transitionDuration) > 0 || style.animationName !== "none").length"""
    assert page.evaluate(moving) == 0
    context.close()


def test_no_script_writes_html_into_the_page() -> None:
    from cskt.service.pages import page_files

    files = {name: data.decode() for name, data in page_files().items()}
    assert {"index.html", "style.css", "app.js", "icon.svg"} <= set(files)
    for name, text in files.items():
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://"):
            assert way not in text.replace("http://www.w3.org/2000/svg", ""), (name, way)
    for attribute in (" style=", " onclick=", "<style", "javascript:"):
        assert attribute not in files["index.html"]
