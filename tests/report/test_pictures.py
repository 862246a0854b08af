from pathlib import Path

import pytest
from PIL import Image

from cskt.report.pictures import (
    EMPTY,
    NEUTRAL,
    PAPER,
    RIGHT,
    WRONG,
    Answer,
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


def test_frames_tell_right_from_wrong(answer: Answer) -> None:
    assert frames(answer_sheet(answer, crop_height=200), 200) == [RIGHT, WRONG, RIGHT]


def test_frames_are_neutral_where_nobody_knows(answer: Answer) -> None:
    unknown = Answer(answer.query, answer.hits, answer.image_paths)
    sheet = answer_sheet(unknown, crop_height=200)
    assert frames(sheet, 200) == [NEUTRAL] * 3
    colors = {color for _, color in sheet.getcolors(1 << 20)}
    assert not {RIGHT, WRONG} & colors


def test_a_mark_below_the_frame_repeats_the_verdict(answer: Answer) -> None:
    sheet = answer_sheet(answer, crop_height=200)
    below = sheet.crop((0, sheet.height - 30, sheet.width, sheet.height))
    colors = {color for _, color in below.getcolors(1 << 20)}
    assert {RIGHT, WRONG} <= colors


def test_crops_are_shown_and_a_missing_one_is_a_grey_box(answer: Answer, caplog: pytest.LogCaptureFixture) -> None:
    colors = {color: count for count, color in answer_sheet(answer, crop_height=128).getcolors(1 << 20)}
    crop_color = Image.open(answer.image_paths[0]).getpixel((0, 0))
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


def test_a_crop_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    Image.new("RGB", (128, 48)).save(tmp_path / "turned.jpg", exif=exif)
    crop = load_crop(tmp_path / "turned.jpg")
    assert crop is not None
    assert crop.size == (48, 128)


def test_a_long_sentence_makes_the_sheet_higher_and_not_wider(answer: Answer) -> None:
    long = Answer("a man with a large blue backpack " * 20, answer.hits, answer.image_paths, answer.right)
    short_sheet, long_sheet = answer_sheet(answer), answer_sheet(long)
    assert long_sheet.width == short_sheet.width
    assert long_sheet.height > short_sheet.height + 100


def test_an_answer_without_hits_is_drawn() -> None:
    assert answer_sheet(Answer("nobody", [], [])).width > 100


def test_wrapped_lines_fit_and_lose_nothing() -> None:
    font = load_font(14)
    text = "a red coat " * 12 + "w" * 80 + " end"
    lines = wrap(text, font, 150)
    assert all(font.getlength(line) <= 150 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_full_width_punctuation_becomes_drawable() -> None:
    assert drawable("a red coat，black\nshoes。") == "a red coat,black shoes。"


def test_lengths_that_differ_are_refused() -> None:
    hit = Hit("a.png", 0.5, 1)
    with pytest.raises(ValueError, match="answer to 'x': 1 hits but 0 image_paths"):
        Answer("x", [hit], [])
    with pytest.raises(ValueError, match="1 hits but 2 right"):
        Answer("x", [hit], ["a.png"], [True, False])


def test_a_crop_height_too_small_to_read_is_refused(answer: Answer) -> None:
    with pytest.raises(ValueError, match="crop_height is 8 pixels"):
        answer_sheet(answer, crop_height=8)
