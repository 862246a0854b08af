"""Answers as one HTML file: complete, escaped, self-contained."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from cskt.report.pages import MAX_PAGE_BYTES, write_answer_page
from cskt.report.pictured_results import PicturedHit, PicturedResult
from cskt.types import Hit

NASTY = "<script>alert('x')</script> \"quoted\" & {braces} %s"
VOID = {"meta", "img"}
BLUE, RED, GREEN = (30, 60, 200), (200, 40, 30), (20, 160, 60)


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (48, 128)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "JPEG", quality=95)
    return file.getvalue()


def hit(rank: int, image_id: str = "cam1/a.jpg", **metadata: object) -> Hit:
    return Hit(image_id, 0.5 - rank / 10, rank, metadata)


class Page(HTMLParser):
    """Elements, their attributes and all text; every element must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
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

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder: Path, *answers: PicturedResult, title: str = "Answers") -> Page:
    write_answer_page(folder / "new" / "answers.html", title, answers)
    return Page(folder / "new" / "answers.html")


def test_every_hit_is_shown_with_score_and_metadata(tmp_path: Path) -> None:
    hits = [
        PicturedHit(hit(1, camera="c3", night=False), jpeg(BLUE)),
        PicturedHit(Hit("cam2/b.jpg", 0.3, 2, {"camera": "c4", "width": 64, "height": 160}, group_size=3), jpeg(RED)),
    ]
    page = page_of(tmp_path, PicturedResult("a man in blue", hits))
    pictures = page.attributes("img")
    assert [picture["alt"] for picture in pictures] == ["Rank 1: cam1/a.jpg", "Rank 2: cam2/b.jpg"]
    for picture, shown in zip(pictures, hits, strict=True):
        start, _, content = str(picture["src"]).partition(",")
        assert start == "data:image/jpeg;base64" and base64.b64decode(content) == shown.picture
    for text in ("a man in blue", "0.400", "c3", "night", "False", "same group", "2 more", "64 × 160"):
        assert text in page.text


def test_heat_maps_are_beside_their_crop(tmp_path: Path) -> None:
    maps = [("whole sentence", jpeg(RED)), ("bag", jpeg(GREEN))]
    page = page_of(tmp_path, PicturedResult("a red bag", [PicturedHit(hit(1), jpeg(BLUE), heat_maps=maps)]))
    assert [picture["alt"] for picture in page.attributes("img")] == [
        "Rank 1: cam1/a.jpg",
        "Heat map of whole sentence",
        "Heat map of bag",
    ]
    assert "heat map: where the model sees" in page.text


def test_an_answer_without_hits_says_why(tmp_path: Path) -> None:
    page = page_of(tmp_path, PicturedResult("nobody", [], note="no crop scores at least 0.3"))
    assert "no crop scores at least 0.3" in page.text
    assert page.attributes("img") == []


def test_all_text_is_escaped(tmp_path: Path) -> None:
    nasty = Hit(NASTY, 0.5, 1, {NASTY: NASTY})
    pictured = PicturedHit(nasty, jpeg(BLUE), heat_maps=[(NASTY, jpeg(RED))])
    page = page_of(tmp_path, PicturedResult(NASTY, [pictured], NASTY), title=NASTY)
    assert page.attributes("script") == []
    assert page.text.count(NASTY) == 8  # title, heading, query, note, image, column, value, map


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = page_of(tmp_path, PicturedResult("x", [PicturedHit(hit(1), jpeg(BLUE))]))
    (policy,) = [meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert not re.search(r"https?://|url\(|@import", page.source)
    assert all(key[:2] != "on" for _, attributes in page.elements for key in attributes)


def test_a_page_too_large_for_a_browser_is_refused(tmp_path: Path) -> None:
    large = PicturedHit(hit(1), bytes(MAX_PAGE_BYTES))
    with pytest.raises(ValueError, match=r"would take 13 MB; show fewer crops \(-k\)"):
        page_of(tmp_path, PicturedResult("x", [large]))
    assert not (tmp_path / "new").exists()
