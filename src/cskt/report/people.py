"""People of a data set with their images and captions, and one picture of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cskt.report.pictured_results import (
    EMPTY,
    MUTED,
    PAPER,
    boxed,
    cell_width_of,
    draw_lines,
    drawable,
    load_crop,
    load_font,
    wrap,
)

TEXT_WIDTH = 1.25
"""Width of the captions beside an image, as a share of its height: about six words to a line."""


@dataclass(frozen=True)
class ShownImage:
    """An image of a data set."""

    picture: Path
    captions: Sequence[str]


@dataclass(frozen=True)
class ShownPerson:
    """Some images of one person."""

    name: str
    """The identity, as the annotation file writes it."""
    note: str
    """Number of images and captions in the split."""
    images: Sequence[ShownImage]


def people_sheet(title: str, people: Sequence[ShownPerson], *, crop_height: int = 224) -> Image.Image:
    """Draw people below each other: the identity, and in a row the images, each with its captions to the right.

    An image that is missing or unreadable is a grey box; captions are cut to its height. Everything scales with
    `crop_height`, in pixels.
    """
    margin, font, large = (
        crop_height // 10,
        load_font(max(11, crop_height // 17)),
        load_font(max(13, crop_height // 12)),
    )
    line_height, large_line = round(1.35 * font.size), round(1.6 * large.size)
    crops = [[load_crop(image.picture) for image in person.images] for person in people]
    box = (cell_width_of([crop for row in crops for crop in row], crop_height), crop_height)
    text_width = round(TEXT_WIDTH * crop_height)
    step = box[0] + margin // 2 + text_width + margin
    width = margin + step * max(map(len, crops))
    row_height = large_line + crop_height + 2 * margin
    heading = wrap(drawable(title), large, width - 2 * margin)
    top = 2 * margin + len(heading) * large_line
    sheet = Image.new("RGB", (width, top + len(people) * row_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw_lines(draw, (margin, margin), heading, large, large_line)
    for number, (person, row) in enumerate(zip(people, crops, strict=True)):
        upper = top + number * row_height
        draw.line((margin, upper - margin // 2, width - margin, upper - margin // 2), EMPTY)
        name = wrap(drawable(person.name), large, width - 2 * margin)[0]
        draw_lines(draw, (margin, upper), [name], large, large_line)
        after_name = margin + large.getlength(name) + margin
        draw.text((after_name, upper + large.getmetrics()[0]), person.note, MUTED, font, anchor="ls")
        for column, (image, crop) in enumerate(zip(person.images, row, strict=True)):
            left = margin + column * step
            sheet.paste(boxed(crop, box, font), (left, upper + large_line))
            lines = _caption_lines(image, font, text_width, crop_height // line_height)
            draw_lines(draw, (left + box[0] + margin // 2, upper + large_line), lines, font, line_height)
    return sheet


def _caption_lines(image: ShownImage, font: ImageFont.FreeTypeFont, width_pixels: int, most: int) -> list[str]:
    lines = [line for caption in image.captions for line in wrap(f"– {drawable(caption)}", font, width_pixels)]
    return lines if len(lines) <= most else [*lines[: most - 1], "…"]
