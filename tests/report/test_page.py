"""The HTML report: complete, escaped, self-contained."""

import base64
import io
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cskt.report import pages
from cskt.report.learning_curves import learning_curves
from cskt.report.pages import Chart, Section, write_report
from cskt.report.pictured_results import PicturedHit, PicturedResult
from cskt.report.style import new_figure
from cskt.report.tables import ResultRow
from cskt.types import Hit

VOID = {"meta", "img", "br", "link", "input", "hr"}
NASTY = "<script>alert('x')</script> \"quoted\" & {braces} %s"
SUMMARY = {
    "r1": 0.697, "r5": 0.82, "r10": 0.9, "mean_ap": 0.6, "mean_inp": 0.5,
    "num_queries": 6156, "num_gallery": 3074, "num_unmatched_queries": 0,
}  # fmt: skip
CURVES = Chart("curves", learning_curves([]), "learning curves")
ROW = ResultRow("cskt", SUMMARY, 12_117_888, 161_735_552, "selected on test")


class Page(HTMLParser):
    """Elements with their attributes, all text, and a check that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and wanted.items() <= found.items()]


def write_and_read(path: Path, **parts: Any) -> tuple[str, Page]:
    write_report(path, **{"title": "A run", "rows": [ROW], **parts})
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture
def full(tmp_path: Path, answer: PicturedResult) -> tuple[str, Page]:
    nasty = PicturedResult(NASTY, [replace(hit, right=None) for hit in answer.hits])
    return write_and_read(
        tmp_path / "new" / "report.html",
        title=NASTY,
        rows=[ResultRow(NASTY, SUMMARY, note=NASTY), ROW],
        headline=ROW,
        sections=[
            Section("Answers", answers=[answer, nasty]),
            Section(NASTY, NASTY, [CURVES, Chart("b", new_figure(2, 1), NASTY, NASTY)], [(NASTY, NASTY)], half=True),
        ],
        configs={NASTY: {"name": NASTY, "optim": {"lr": 3e-4}, "milestones": [20, 50]}, "other": {"name": "b"}},
        facts={"machine": NASTY, "note <b>": "x"},
        next_commands=[f"cskt search run '{NASTY}'"],
    )


def test_the_page_needs_nothing_but_itself(full: tuple[str, Page]) -> None:
    text, parsed = full
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert not re.search(r"url\(", text)
    assert not parsed.all("script")
    assert not parsed.all("link")
    assert all(image["src"].startswith("data:image/") for image in parsed.all("img"))
    policy = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_users_string_is_escaped_and_shown(full: tuple[str, Page]) -> None:
    text, parsed = full
    assert "<script" not in text
    assert len(parsed.all("b")) == 6  # the rank of each hit; the fact's name adds none
    # title twice, row label, its note, sentence, config, fact, command
    assert parsed.text.count(NASTY) >= 7
    assert "note <b>" in parsed.text


def test_each_hit_has_rank_score_and_verdict_as_text(full: tuple[str, Page]) -> None:
    _, parsed = full
    figures = [figure["class"] for figure in parsed.all("figure")]
    assert figures == ["hit right", "hit wrong", "hit right", "hit unknown", "hit unknown", "hit unknown"]
    alts = [image["alt"] for image in parsed.all("img")]
    assert alts[:2] == ["Rank 1, right: cam_a/crop_0.png", "Rank 2, wrong: cam_a/crop_1.png"]
    assert alts[2:4] == ["Rank 1: cam_a/crop_0.png", "Rank 2: cam_a/crop_1.png"]
    missing = parsed.all("div", role="img")
    assert [box["aria-label"] for box in missing] == ["cam_a/crop_2.png: image not found"] * 2
    assert "1 0.500 ✓" in parsed.text
    assert "2 0.400 ✗" in parsed.text
    assert "first right image at rank 1" in parsed.text


def test_crops_are_embedded_as_readable_pictures(full: tuple[str, Page]) -> None:
    _, parsed = full
    media_type, content = parsed.all("img")[0]["src"].split(";base64,")
    assert media_type == "data:image/jpeg"
    with Image.open(io.BytesIO(base64.b64decode(content))) as crop:
        assert crop.size == (48, 128)


def test_the_table_has_headers_and_the_figures_in_percent(full: tuple[str, Page]) -> None:
    _, parsed = full
    assert len(parsed.all("th", scope="col")) == 7
    assert len(parsed.all("th", scope="row")) == 2
    for expected in ("69.70", "12,117,888 (7.49 %)", "selected on test", "6,156 queries against 3,074 images"):
        assert expected in parsed.text


def test_notes_are_below_the_names(full: tuple[str, Page]) -> None:
    text, parsed = full
    assert len(parsed.all("small", **{"class": "note"})) == 2
    assert re.search(r'<th scope="row">cskt<small class="note">selected on test</small></th>', text)


def test_headings_leave_no_level_out(full: tuple[str, Page]) -> None:
    levels = [int(tag[1]) for tag, _ in full[1].elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


AGAINST = {
    "above": ({"r1": (0.69, 0.71)}, 0.6, "+9.70", "above, for the whole 95 % interval of R1, 69.0 – 71.0, is above it"),
    "below": ({"r1": (0.69, 0.71)}, 0.8, "−10.30", "below, for the whole 95 % interval of R1, 69.0 – 71.0, is below"),
    "unclear": ({"r1": (0.6, 0.75)}, 0.7, "−0.30", "no clear difference, for the 95 % interval of R1, 60.0 – 75.0, in"),
}


@pytest.mark.parametrize("word", AGAINST)
def test_colour_and_words_say_how_a_run_stands_against_zero_shot(word: str, tmp_path: Path) -> None:
    intervals, zero_shot_r1, difference, sentence = AGAINST[word]
    row = replace(ROW, intervals=intervals, zero_shot_r1=zero_shot_r1)
    text, parsed = write_and_read(tmp_path / "report.html", rows=[row], headline=row)
    assert len(parsed.all("tr", **{"class": word})) == 1
    assert len(parsed.all("section", **{"class": f"headline {word}"})) == 1
    assert f'{difference}<small class="standing">{word}</small>' in text
    assert sentence in parsed.text.replace("\u00a0", " ")


def test_without_zero_shot_a_row_has_no_colour(tmp_path: Path) -> None:
    text, parsed = write_and_read(tmp_path / "report.html", headline=ROW)
    assert "vs zero-shot" not in parsed.text and 'class="standing"' not in text
    assert [row.get("class") for row in parsed.all("tr")] == [None, None]


def test_a_phone_a_dark_page_and_a_screen_reader_are_served(full: tuple[str, Page]) -> None:
    text, parsed = full
    assert parsed.all("html", lang="en")
    assert "width=device-width" in parsed.all("meta", name="viewport")[0]["content"]
    assert "prefers-color-scheme: dark" in text
    identifiers = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in parsed.elements:
        assert attributes.get("aria-labelledby", identifiers[0]) in identifiers


def test_the_configuration_is_shown_as_yaml(full: tuple[str, Page]) -> None:
    assert "optim:\n  lr: 0.0003\nmilestones:\n- 20\n- 50" in full[1].text


def test_empty_parts_are_omitted(tmp_path: Path) -> None:
    _, parsed = write_and_read(tmp_path / "report.html", rows=[])
    assert not parsed.all("section")
    _, parsed = write_and_read(tmp_path / "report.html")
    assert [section["aria-labelledby"] for section in parsed.all("section")] == ["results"]


def test_warnings_and_commands_are_shown_as_written(tmp_path: Path) -> None:
    section = Section("W", warnings={"": ["no label"], NASTY: [NASTY, "rate"]}, commands=["cskt evaluate 'a b'"])
    text, parsed = write_and_read(tmp_path / "report.html", sections=[section])
    assert "<script" not in text and parsed.text.count(NASTY) == 2
    assert len(parsed.all("h3")) == 1 and len(parsed.all("li")) == 4
    assert "cskt evaluate 'a b'" in parsed.text


def test_an_answer_without_right_images_or_without_hits_says_so(tmp_path: Path, answer: PicturedResult) -> None:
    wrong = PicturedResult("x", [replace(hit, right=False) for hit in answer.hits])
    _, parsed = write_and_read(
        tmp_path / "report.html", sections=[Section("a", answers=[wrong, PicturedResult("y", [])])]
    )
    assert "no right image among the first 3" in parsed.text
    assert "No image found." in parsed.text


def test_a_section_shows_its_parts_in_order_and_omits_empty_ones(tmp_path: Path) -> None:
    sections = [
        Section("Only words", "in 95 % of cases"),
        Section("Hardest", sentences=[("a man in red", "rank 7"), ("a woman", "rank 6")]),
        Section("Curves", "how to read", [CURVES, Chart("b", new_figure(6, 2), "second", "run b")], half=True),
    ]
    text, parsed = write_and_read(tmp_path / "report.html", sections=sections)
    labels = [section["aria-labelledby"] for section in parsed.all("section")]
    assert labels == ["results", "part-1", "part-2", "part-3"]
    assert [section.get("class") for section in parsed.all("section")] == [None, None, None, "half"]
    assert "in 95\u00a0% of cases" in parsed.text, "a number and its sign stay on one line"
    assert parsed.text.index("a man in red") < parsed.text.index("rank 7") < parsed.text.index("a woman")
    assert len(parsed.all("ol")) == 1 and len(parsed.all("li")) == 2
    images = parsed.all("img")
    assert [image["alt"] for image in images] == ["learning curves", "second"]
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    assert images[1]["style"] == "min-width:414px", "a narrow screen scrolls rather than making words tiny"
    assert "<h3>run b</h3>" in text


def test_a_table_has_headers_lines_its_figures_up_and_scrolls(tmp_path: Path) -> None:
    table = [["Method", "R1", "Note"], [NASTY, "69.70", "selected on test"], ["b", "60.00", ""]]
    text, parsed = write_and_read(tmp_path / "report.html", rows=[], sections=[Section("Comparison", table=table)])
    assert [len(parsed.all("th", scope=scope)) for scope in ("col", "row")] == [3, 2]
    assert [cell.get("class") for cell in parsed.all("td")] == ["number", "note-cell"] * 2
    (region,) = parsed.all("div", role="group")
    assert (region["class"], region["tabindex"], region["aria-labelledby"]) == ("card scroll", "0", "part-1")
    assert "<script" not in text and NASTY in parsed.text and "69.70" in parsed.text


def test_intervals_are_below_their_means(tmp_path: Path) -> None:
    row = ResultRow("cskt", SUMMARY, intervals={"r1": (0.6804, 0.7129), "mean_inp": (0.4, 0.6)})
    text, parsed = write_and_read(tmp_path / "report.html", rows=[row, ROW])
    assert re.findall(r"<small>([^<]*)</small></td>", text) == ["68.0 – 71.3", "40.0 – 60.0"]
    assert "Small: 95\u00a0% intervals, over people." in parsed.text
    assert "intervals" not in write_and_read(tmp_path / "report.html")[1].text


def test_every_configuration_is_folded_away_under_its_name(full: tuple[str, Page]) -> None:
    text, parsed = full
    assert len(parsed.all("details")) == 2
    assert "<summary>other</summary>" in text


def test_crops_shrink_until_the_page_is_small_enough_and_too_many_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = tmp_path / "noisy.png"
    Image.effect_noise((200, 400), 90).save(noisy)
    many = PicturedResult("x", [PicturedHit(Hit("a", 0.5, 1), noisy)] * 20)
    path = tmp_path / "report.html"
    write_report(path, title="A run", rows=[], sections=[Section("a", answers=[many])])
    whole = path.stat().st_size

    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", whole // 2)
    write_report(path, title="A run", rows=[], sections=[Section("a", answers=[many])])
    assert path.stat().st_size <= whole // 2

    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", whole // 50)
    with pytest.raises(ValueError, match=r"report\.html: the report would take .* MB; show fewer answers"):
        write_report(path, title="A run", rows=[], sections=[Section("a", answers=[many])])
