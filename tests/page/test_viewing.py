"""One crop large, why it was found, and what the user says of it."""

from __future__ import annotations

import csv
import io
import re

import pytest
from on_page import SENTENCE, Watch, asked, expect_names, hits, names, type_sentence
from playwright.sync_api import Page, expect

from cskt.gallery.gallery import Gallery

pytestmark = pytest.mark.browser

MEAN_HEAT = """canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((part, place) => place % 4 === 3).reduce((sum, part) => sum + part, 0) / (data.length / 4);
}"""


def heat(page: Page) -> float:
    """Mean opacity of the heat map, 0 to 255."""
    return float(page.locator("#heat").evaluate(MEAN_HEAT))


def test_open_turn_and_close(page: Page, gallery: Gallery) -> None:
    type_sentence(page)
    first, second = gallery.search(SENTENCE, k=2)
    hits(page).first.click()
    viewer = page.locator("#viewer")
    expect(viewer).to_be_visible()
    facts = page.locator("#facts")
    expect(facts).to_contain_text(gallery.crop(first.image_id).sha256[:12])
    for part in (first.image_id, f"{first.metadata['camera']}", "96 × 216", "UTC"):
        expect(facts).to_contain_text(part)
    expect(page.locator("#previous")).to_be_disabled()
    page.keyboard.press("ArrowRight")
    expect(facts).to_contain_text(second.image_id)
    assert asked(page) == {"q": SENTENCE, "open": second.image_id}
    page.keyboard.press("Escape")
    expect(viewer).to_be_hidden()
    expect(hits(page).nth(1)).to_be_focused()
    assert asked(page) == {"q": SENTENCE}
    hits(page).nth(1).press("Enter")
    expect(viewer).to_be_visible()
    page.go_back()
    expect(viewer).to_be_hidden()
    expect(page.locator("#sentence")).to_have_value(SENTENCE)


def test_each_word_has_its_heat_map(page: Page, gallery: Gallery, watch: Watch) -> None:
    watch.allowed = "willReadFrequently"  # the test reads the canvas, the page never does
    type_sentence(page, "a woman in a red dress, and in red shoes")
    hits(page).first.click()
    words = page.locator("#words .word:not(.whole)")
    expect(words.first).to_be_visible()
    explained = [word for word, _ in gallery.explain(names(page)[0], "a woman in a red dress, and in red shoes").words]
    shown = words.all_inner_texts()
    assert [word.strip(",") for word in shown] == explained
    assert shown.count("red") == 2 and "dress," in shown and "a" not in shown
    assert heat(page) == 0
    words.nth(shown.index("red")).click()
    assert heat(page) > 1
    red = page.locator("#heat").evaluate("canvas => canvas.toDataURL()")
    page.locator("#words .whole").click()
    assert page.locator("#heat").evaluate("canvas => canvas.toDataURL()") != red
    expect(page.locator("#words .word[aria-pressed=true]")).to_have_count(1)
    page.locator("#heat-opacity").focus()
    page.keyboard.press("Home")
    assert page.locator("#heat").evaluate("canvas => canvas.style.opacity") == "0"
    page.locator("#words .whole").click()
    page.locator("#viewer-name").hover()
    assert heat(page) == 0
    expect(page.locator("#words")).to_have_text("a woman in a red dress, and in red shoes the whole sentence")


def test_more_like_this_and_the_original(page: Page, gallery: Gallery, watch: Watch) -> None:
    type_sentence(page)
    best = names(page)[0]
    hits(page).first.click()
    page.locator("#original").click()
    expect(page.locator("#viewer-image")).to_have_attribute("src", re.compile("^blob:"))
    assert page.locator("#viewer-image").evaluate("image => image.decode().then(() => image.naturalHeight)") == 216
    page.locator("#like").click()
    expect(page.locator("#viewer")).to_be_hidden()
    wanted = [hit.image_id for hit in gallery.search(k=48, like=best)]
    expect(hits(page).nth(1)).to_have_attribute("data-id", wanted[1])
    expect_names(page, wanted)
    assert "text" not in watch.searches[-1]
    page.go_back()
    expect(page.locator("#viewer")).to_be_visible()


def test_marks_are_exported_as_csv_and_as_a_data_set(page: Page, gallery: Gallery) -> None:
    type_sentence(page)
    found = names(page)
    hits(page).first.focus()
    page.keyboard.press("r")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("w")
    page.locator("#grid li").nth(2).hover()
    page.locator("#grid li").nth(2).get_by_role("button", name="Mark as right").click()
    hits(page).nth(3).click()
    page.keyboard.press("w")
    expect(page.locator("#verdict [data-verdict=wrong]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("w")  # the same again takes it back
    page.keyboard.press("Escape")
    expect(page.locator("#tray")).to_contain_text("2 right · 1 wrong")
    expect(hits(page).nth(1)).to_have_attribute("aria-label", re.compile("marked wrong$"))

    with page.expect_download() as table:
        page.get_by_role("button", name="as CSV").click()
    assert table.value.suggested_filename == "marks.csv"
    rows = list(csv.DictReader(io.StringIO(table.value.path().read_text())))
    assert rows == [{"text": SENTENCE, "image": image_id, "right": right}
                    for image_id, right in zip(found[:3], "101", strict=True)]  # fmt: skip
    with page.expect_download() as data_set:
        page.get_by_role("button", name="data set").click()
    assert data_set.value.suggested_filename == "marks.jsonl"
    assert data_set.value.path().read_text() == "", "uploaded crops have no file in the folder"
    expect(page.locator("#status")).to_contain_text("Left out: 2 crops")

    page.reload()
    expect(page.locator("#tray")).to_contain_text("2 right · 1 wrong")
    expect(page.locator("#grid li").first).to_have_attribute("data-verdict", "right")


def test_a_mark_needs_a_sentence(page: Page) -> None:
    type_sentence(page)
    hits(page).first.click()
    page.locator("#like").click()
    expect(page.locator("#sentence")).to_have_value("")
    expect(page.locator("#status")).to_contain_text("best 48")
    hits(page).first.focus()
    page.keyboard.press("r")
    expect(page.locator("#status")).to_contain_text("type one first")
    expect(page.locator("#tray")).to_be_hidden()


def test_the_page_works_with_the_keyboard_alone(page: Page) -> None:
    type_sentence(page)
    page.keyboard.press("ArrowDown")
    expect(hits(page).first).to_be_focused()
    tops = page.evaluate("[...document.querySelectorAll('.hit')].map((hit) => hit.getBoundingClientRect().top)")
    per_row = next(place for place, top in enumerate(tops) if top > tops[0])
    page.keyboard.press("ArrowDown")
    expect(hits(page).nth(per_row)).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    expect(hits(page).nth(1)).to_be_focused()
    assert page.locator("#grid [tabindex='0']").count() == 1
    page.keyboard.press("End")
    expect(hits(page).last).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer")).to_be_visible()
    inside = "document.activeElement === document.body || Boolean(document.activeElement.closest('#viewer'))"
    for _ in range(20):
        page.keyboard.press("Tab")
        assert page.evaluate(inside)
    page.keyboard.press("Escape")
    expect(hits(page).first).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.locator("#sentence")).to_be_focused()
    page.locator("#share").focus()
    page.keyboard.press("/")
    expect(page.locator("#sentence")).to_be_focused()
    page.keyboard.type("x/y")  # it had been selected; a slash within it is a letter
    expect(page.locator("#sentence")).to_have_value("x/y")
