"""Searching on the page: by sentence, picture, filter, group and threshold; the address contains the search."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from on_page import NUM_CROPS, SENTENCE, Watch, asked, expect_names, hand_over, hits, jpeg, names, type_sentence
from playwright.sync_api import Page, Route, expect

from cskt.gallery.gallery import Gallery

pytestmark = pytest.mark.browser


def test_a_sentence_finds_what_python_finds(page: Page, gallery: Gallery, watch: Watch) -> None:
    expect(page.locator("#sentence")).to_be_focused()
    expect(page.locator("#warning")).to_contain_text("paper dolls")
    page.keyboard.type(SENTENCE)
    found = gallery.search(SENTENCE, k=48)
    expect_names(page, [hit.image_id for hit in found])
    assert hits(page).first.locator(".score").inner_text() == f"{found[0].score:.3f}"
    assert hits(page).first.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    # 22 letters typed at once are one question, or two on a slow machine.
    assert len(watch.searches) <= 4
    assert page.title().startswith(SENTENCE)


def test_an_older_answer_never_replaces_a_newer_one(page: Page, gallery: Gallery) -> None:
    held_back: list[Route] = []

    def answer(route: Route) -> None:
        if "umbrella" in (route.request.post_data or ""):
            held_back.append(route)
        else:
            route.continue_()

    page.route("**/api/search", answer)
    page.locator("#sentence").fill("someone with an umbrella")
    page.keyboard.press("Enter")
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "true")
    type_sentence(page)
    wanted = [hit.image_id for hit in gallery.search(SENTENCE, k=48)]
    expect_names(page, wanted)
    held_back[0].continue_()
    page.wait_for_timeout(200)
    expect_names(page, wanted)


def test_warnings_are_shown_below_the_text_box(page: Page) -> None:
    note = page.locator("#box-note")
    type_sentence(page, "a woman in a blue dress " + "and a red hat " * 60)
    expect(note).to_contain_text("the model reads 77 tokens of the sentence")
    type_sentence(page)
    expect(note).to_be_empty()
    page.get_by_role("button", name="but not").click()
    page.locator("#not").fill("a green hat " * 60)
    expect(note).to_contain_text("excluded sentence: the model reads 77 tokens of the sentence")


def test_times_are_shown_in_utc_without_the_z(page: Page) -> None:
    type_sentence(page)
    hits(page).first.click()
    expect(page.locator("#facts")).to_contain_text(re.compile(r"2026-01-\d\d \d\d:30 UTC"))
    assert "Z" not in page.locator("#facts dt:text-is('time') + dd").inner_text()
    expect(hits(page).first).to_have_accessible_name(re.compile(r"time 2026-01-\d\d \d\d:30$"))


def test_more_crops_follow_by_scrolling(page: Page, gallery: Gallery) -> None:
    type_sentence(page)
    expect(page.locator("#status")).to_contain_text(f"{NUM_CROPS} crops, the best 48 shown")
    for shown in (96, NUM_CROPS):
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        expect(hits(page)).to_have_count(shown)
    expect(page.locator("#more")).to_be_hidden()
    expect_names(page, [hit.image_id for hit in gallery.search(SENTENCE, k=NUM_CROPS)])


def test_filters_write_text_and_text_sets_filters(page: Page, gallery: Gallery) -> None:
    type_sentence(page)
    page.get_by_text("c2", exact=False).locator("xpath=ancestor::label").first.click()
    page.get_by_label("speed to").fill("0.5")
    page.locator("[data-column=indoor]").get_by_text("no").click()
    where = "camera = 'c2' AND indoor = false AND speed <= 0.5"
    expect(page.locator("#where")).to_have_value(where)
    wanted = [hit.image_id for hit in gallery.search(SENTENCE, k=48, where=where)]
    expect(hits(page)).to_have_count(len(wanted))
    expect_names(page, wanted)
    assert 5 < len(wanted) < 30
    assert asked(page)["where"] == where

    page.locator("summary").click()
    page.locator("#where").fill("camera IN ('c1', 'c3') AND time >= '2026-01-20T00:00:00'")
    expect(page.get_by_label("time from, UTC")).to_have_value(re.compile("2026-01-20T00:00"))
    assert [box.is_checked() for box in page.locator("[data-column=camera] input").all()].count(True) == 2
    page.locator("#where").fill("camera = 'c1' OR speed > 1")
    expect(page.locator("#facets")).to_contain_text("by hand")
    page.locator("#filters-clear").click()
    expect(page.locator("#where")).to_have_value("")
    expect(page.locator("[data-column=camera]")).to_be_visible()


def test_filter_text_and_controls_mean_the_same(page: Page) -> None:
    columns = [{"name": name, "kind": kind} for name, kind in
               (("camera", "text"), ("time", "time"), ("speed", "number"), ("indoor", "boolean"),
                ("カメラ", "text"))]  # fmt: skip
    round_trip = """async ([text, columns]) => {
      const { compose, parse } = await import("./page/filters.js");
      const selection = parse(text, columns);
      return selection && [selection, compose(selection, columns)];
    }"""
    same = {
        "": {},
        "camera = 'it''s'": {"camera": {"values": ["it's"]}},
        "camera IN ('a AND b', 'c')": {"camera": {"values": ["a AND b", "c"]}},
        "camera LIKE '%x%'": {"camera": {"contains": "x"}},
        "カメラ = '東京'": {"カメラ": {"values": ["東京"]}},
        "time >= '2026-01-01' AND speed >= -1.5 AND speed <= 2e3 AND indoor = true": {
            "time": {"from": "2026-01-01"}, "speed": {"from": "-1.5", "to": "2e3"}, "indoor": {"is": True}},
    }  # fmt: skip
    for text, selection in same.items():
        assert page.evaluate(round_trip, [text, columns]) == [selection, text]
    assert page.evaluate(round_trip, ["CAMERA='a' and Speed<=1", columns])[1] == "camera = 'a' AND speed <= 1"
    for text in ("camera = 'a' OR speed > 1", "camera = 'a' AND", "camera != 'a'", "unknown = 'a'", "camera = 'a", "(",
                 "camera = 'a' AND camera = 'b'", "camera LIKE 'a%'", "speed >= 'x'", "NOT camera = 'a'"):  # fmt: skip
        assert page.evaluate(round_trip, [text, columns]) is None, text


def test_the_threshold_hides_crops_and_a_message_replaces_no_hits(page: Page, gallery: Gallery, watch: Watch) -> None:
    type_sentence(page)
    expect(page.locator("#cut-off-value")).to_have_text("everything")
    slider = page.locator("#cut-off-slider")
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator("#message h2")).to_contain_text("Nothing above the threshold")
    assert hits(page).count() == 0
    page.get_by_role("button", name="Lower it to").click()
    expect(hits(page).first).to_be_visible()
    threshold = float(asked(page)["min"])
    expect_names(page, [hit.image_id for hit in gallery.search(SENTENCE, k=48, min_score=threshold)])
    assert watch.searches[-1]["min_score"] == threshold
    page.locator("#cut-off-reset").click()
    expect(hits(page)).to_have_count(48)


def test_crops_below_the_threshold_fade_before_the_answer_arrives(page: Page, gallery: Gallery) -> None:
    type_sentence(page)
    middle = gallery.search(SENTENCE, k=48)[20].score
    page.locator("#cut-off-slider").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", middle)  # fmt: skip
    assert 20 <= page.locator("#grid li.below").count() <= 35
    expect(page.locator("#grid li.below")).to_have_count(0)
    assert 15 <= hits(page).count() <= 28


def test_one_crop_per_track(page: Page, gallery: Gallery) -> None:
    type_sentence(page)
    page.get_by_label("Group by").select_option("track")
    found = gallery.search(SENTENCE, k=48, group_by="track")
    expect(page.locator("#status")).to_contain_text("tracks")
    expect_names(page, [hit.image_id for hit in found])
    grouped = next(hit for hit in found if hit.group_size > 1)
    card = page.locator(f".hit[data-id='{grouped.image_id}']").locator("xpath=..")
    expect(card.locator(".group-size")).to_have_text(f"×{grouped.group_size}")
    card.locator(".hit").click()
    page.locator("#whole-group").click()
    expect(hits(page)).to_have_count(gallery.count(f"track = '{grouped.metadata['track']}'"))


def test_a_sentence_to_exclude(page: Page, gallery: Gallery) -> None:
    type_sentence(page)
    page.get_by_role("button", name="but not").click()
    page.keyboard.type("with a hat")
    wanted = [hit.image_id for hit in gallery.search(SENTENCE, k=48, exclude=["with a hat"])]
    expect(hits(page).first).to_have_attribute("data-id", wanted[0])
    expect_names(page, wanted)
    assert wanted != [hit.image_id for hit in gallery.search(SENTENCE, k=48)]
    assert asked(page)["not"] == "with a hat"


def test_a_dropped_picture_finds_itself(page: Page, gallery: Gallery) -> None:
    hand_over(page, jpeg(gallery, "c2/004.jpg"), "dragover")
    expect(page.locator("#veil")).to_be_visible()
    hand_over(page, jpeg(gallery, "c2/004.jpg"), "drop")
    expect(page.locator("#veil")).to_be_hidden()
    expect(hits(page).first).to_have_attribute("data-id", "c2/004.jpg")
    expect(page.locator("#reference-image")).to_be_visible()

    page.locator("#sentence").click()
    page.keyboard.type(SENTENCE)
    balance = page.locator("#balance")
    expect(balance).to_be_visible()
    balance.focus()
    page.keyboard.press("Home")  # nearly all weight to the sentence
    wanted = gallery.search(SENTENCE, k=1, image=jpeg(gallery, "c2/004.jpg"), text_weight=1.9, image_weight=0.1)
    expect(hits(page).first).to_have_attribute("data-id", wanted[0].image_id)
    page.get_by_role("button", name="Remove the picture").click()
    expect(hits(page).first).to_have_attribute("data-id", gallery.search(SENTENCE, k=1)[0].image_id)


def test_a_pasted_and_a_chosen_picture(page: Page, gallery: Gallery, tmp_path: Path) -> None:
    hand_over(page, jpeg(gallery, "c3/005.jpg"), "paste")
    expect(hits(page).first).to_have_attribute("data-id", "c3/005.jpg")
    page.locator("#file").set_input_files(
        {"name": "mine.jpg", "mimeType": "image/jpeg", "buffer": jpeg(gallery, "c1/006.jpg")})  # fmt: skip
    expect(hits(page).first).to_have_attribute("data-id", "c1/006.jpg")
    hand_over(page, b"this is no picture", "drop")
    expect(page.locator("#box-note")).to_have_text("crop.jpg is not a picture that can be read.")
    assert names(page)[0] == "c1/006.jpg"


def test_a_link_without_its_picture_shows_a_message(blank: Page, address: str) -> None:
    blank.goto(f"{address}?picture=gone-1&q=red")
    expect(hits(blank).first).to_be_visible()
    expect(blank.locator("#box-note")).to_contain_text("drop it here again")
    assert asked(blank) == {"q": "red"}


def test_the_back_button_and_a_shared_link(page: Page, gallery: Gallery, context_page: Page) -> None:
    type_sentence(page)
    page.keyboard.press("Enter")
    page.locator("#sentence").fill("a man in a black coat")
    page.keyboard.press("Enter")
    second = gallery.search("a man in a black coat", k=1)[0].image_id
    expect(hits(page).first).to_have_attribute("data-id", second)
    page.get_by_label("Group by").select_option("track")
    expect(page.locator("#status")).to_contain_text("track")
    link = page.url
    page.go_back()
    expect(page.get_by_label("Group by")).to_have_value("")
    page.go_back()
    expect(page.locator("#sentence")).to_have_value(SENTENCE)
    expect(hits(page).first).to_have_attribute("data-id", gallery.search(SENTENCE, k=1)[0].image_id)
    page.go_back()
    expect(page.locator("h1")).to_be_visible()
    assert hits(page).count() == 0

    context_page.goto(link)
    expect(context_page.locator("#sentence")).to_have_value("a man in a black coat")
    expect(context_page.get_by_label("Group by")).to_have_value("track")
    expect(hits(context_page).first).to_have_attribute("data-id", second)


def test_a_png_with_transparency_is_a_picture_too(page: Page, gallery: Gallery) -> None:
    from PIL import Image

    file = io.BytesIO()
    with Image.open(gallery.original("c2/001.jpg")) as image:
        image.convert("RGBA").save(file, "PNG")
    hand_over(page, file.getvalue(), "drop", "image/png")
    expect(hits(page).first).to_have_attribute("data-id", "c2/001.jpg")


def test_a_slash_focuses_the_text_box(page: Page) -> None:
    page.keyboard.press("/")  # the box has the focus already
    page.keyboard.type("red")
    expect(page.locator("#sentence")).to_have_value("red")
    page.keyboard.press("Tab")
    page.keyboard.press("/")
    expect(page.locator("#sentence")).to_be_focused()
    expect(page.locator("#sentence")).to_have_value("red")
