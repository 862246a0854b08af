"""Pictures of answers: frames, marks, heat maps, missing files."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cskt.report.pictured_results import (
    EMPTY,
    NEUTRAL,
    PAPER,
    RIGHT,
    WRONG,
    PicturedHit,
    PicturedResult,
    answer_sheet,
    drawable,
    load_crop,
    load_font,
    wrap,
)
from cskt.types import Hit


def frames(sheet: Image.Image, crop_height: int) -> list[tuple[int, int, int]]:
    """Colours of the frames from left to right, read along the row of pixels through the crops' middle."""
    middle = sheet.height - 2 * round(1.4 * max(11, crop_height // 15)) - crop_height // 2
    row = [sheet.getpixel((column, middle)) for column in range(sheet.width)]
    return [pixel for pixel, before in zip(row[1:], row, strict=False) if before == PAPER and pixel != PAPER]


def test_frames_are_green_if_right_and_red_if_wrong(answer: PicturedResult) -> None:
    assert frames(answer_sheet(answer, crop_height=200), 200) == [RIGHT, WRONG, RIGHT]


def test_frames_are_neutral_if_it_is_unknown_who_is_right(answer: PicturedResult) -> None:
    unknown = PicturedResult(answer.query, [replace(hit, right=None) for hit in answer.hits])
    sheet = answer_sheet(unknown, crop_height=200)
    assert frames(sheet, 200) == [NEUTRAL] * 3
    colors = {color for _, color in sheet.getcolors(1 << 20)}
    assert not {RIGHT, WRONG} & colors


def test_a_mark_below_the_frame_repeats_the_verdict(answer: PicturedResult) -> None:
    sheet = answer_sheet(answer, crop_height=200)
    below = sheet.crop((0, sheet.height - 30, sheet.width, sheet.height))
    colors = {color for _, color in below.getcolors(1 << 20)}
    assert {RIGHT, WRONG} <= colors


def test_crops_are_shown_and_a_missing_one_is_a_grey_box(
    answer: PicturedResult, caplog: pytest.LogCaptureFixture
) -> None:
    colors = {color: count for count, color in answer_sheet(answer, crop_height=128).getcolors(1 << 20)}
    crop_color = Image.open(answer.hits[0].picture).getpixel((0, 0))
    assert colors[crop_color] >= 2 * 48 * 128 * 0.9
    assert colors[EMPTY] > 0.8 * 48 * 128
    assert "crop_2.png" in caplog.text


def test_an_unreadable_file_is_a_grey_box_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:200])
    assert load_crop(path) is None
    assert load_crop(tmp_path) is None
    assert "cut.png" in caplog.text


def test_a_crop_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (128, 48)).save(tmp_path / "turned.jpg", exif=exif)
    crop = load_crop(tmp_path / "turned.jpg")
    assert crop is not None
    assert crop.size == (48, 128)


def test_a_long_sentence_makes_the_sheet_higher_and_not_wider(answer: PicturedResult) -> None:
    long = PicturedResult("a man with a large blue backpack " * 20, answer.hits)
    short_sheet, long_sheet = answer_sheet(answer), answer_sheet(long)
    assert long_sheet.width == short_sheet.width
    assert long_sheet.height > short_sheet.height + 100


def test_an_answer_without_hits_is_drawn() -> None:
    assert answer_sheet(PicturedResult("nobody", [])).width > 100


def test_wrapped_lines_fit_and_lose_nothing() -> None:
    font = load_font(14)
    text = "a red coat " * 12 + "w" * 80 + " end"
    lines = wrap(text, font, 150)
    assert all(font.getlength(line) <= 150 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_full_width_punctuation_becomes_drawable() -> None:
    assert drawable("a red coat，black\nshoes。") == "a red coat,black shoes。"


def test_a_crop_height_too_small_to_read_is_refused(answer: PicturedResult) -> None:
    with pytest.raises(ValueError, match="crop_height is 8 pixels"):
        answer_sheet(answer, crop_height=8)


BLUE, RED, GREEN = (30, 60, 200), (200, 40, 30), (20, 160, 60)


def jpeg(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 128), color).save(file, "JPEG", quality=95)
    return file.getvalue()


def middle_of(sheet: Image.Image, row: int, column: int, *, height: int = 240) -> tuple[int, int, int]:
    """The pixel in the middle of a crop on a sheet of two rows with heat maps."""
    margin, border, line = height // 12, max(3, height // 48), round(1.4 * max(11, height // 15))
    width = round(0.4 * height) + 2 * border + margin
    bottom = sheet.height - (1 - row) * (height + 2 * border + 3 * line) - 3 * line - border
    found = sheet.getpixel((margin + column * width + width // 2 - margin // 2, bottom - height // 2))
    assert isinstance(found, tuple)
    return found[:3]


def test_an_explained_sheet_has_a_row_for_each_crop() -> None:
    hits = [
        PicturedHit(Hit("a.jpg", 0.4, 1), jpeg(BLUE), heat_maps=[("whole sentence", jpeg(RED)), ("bag", jpeg(GREEN))]),
        PicturedHit(Hit("b.jpg", 0.3, 2), jpeg(GREEN), heat_maps=[("whole sentence", jpeg(BLUE)), ("bag", jpeg(RED))]),
    ]
    sheet = answer_sheet(PicturedResult("a red bag", hits), crop_height=240)
    seen = [middle_of(sheet, row, column) for row in range(2) for column in range(3)]
    for found, wanted in zip(seen, (BLUE, RED, GREEN, GREEN, BLUE, RED), strict=True):
        assert max(abs(one - other) for one, other in zip(found, wanted, strict=True)) < 12
