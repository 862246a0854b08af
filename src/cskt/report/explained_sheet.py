"""An answer with its heat maps as one picture: a line for each crop, the crop first, then what each word looks at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from cskt.report.answer_page import PicturedHit
from cskt.report.pictures import INK, NEUTRAL, PAPER, drawable, load_crop, load_font, wrap

CELL_WIDTH, CELL_HEIGHT = 144, 256
"""Of a picture, in pixels."""
MARGIN = 16
FONT_PIXELS = 15


def explained_sheet(query: str, hits: Sequence[PicturedHit]) -> Image.Image:
    """The sentence on top; below it a line for each hit.

    Args:
        query: the sentence.
        hits: each with its heat maps; may be none.
    """
    font = load_font(FONT_PIXELS)
    line_height = round(1.4 * FONT_PIXELS)
    num_columns = max([3, *(1 + len(pictured.heat_maps) for pictured in hits)])
    width = num_columns * (CELL_WIDTH + MARGIN) + MARGIN
    heading = wrap(drawable(query), font, width - 2 * MARGIN)
    top = MARGIN + len(heading) * line_height + MARGIN // 2
    row_height = CELL_HEIGHT + 2 * line_height + MARGIN
    sheet = Image.new("RGB", (width, top + max(1, len(hits)) * row_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(heading):
        draw.text((MARGIN, MARGIN + number * line_height), line, INK, font)
    if not hits:
        draw.text((width // 2, top + row_height // 2), "no image found", NEUTRAL, font, anchor="mm")
    for row, pictured in enumerate(hits):
        rank_and_score = f"{pictured.hit.rank}  {pictured.hit.score:.3f}"
        for column, (label, jpeg) in enumerate([(rank_and_score, pictured.picture), *pictured.heat_maps]):
            left, upper = MARGIN + column * (CELL_WIDTH + MARGIN), top + row * row_height
            crop = load_crop(jpeg)
            if crop is not None:
                sheet.paste(ImageOps.pad(crop, (CELL_WIDTH, CELL_HEIGHT), color=PAPER), (left, upper))
            for number, line in enumerate(wrap(drawable(label), font, CELL_WIDTH)[:2]):
                place = left + CELL_WIDTH // 2, upper + CELL_HEIGHT + 4 + number * line_height
                draw.text(place, line, INK, font, anchor="ma")
    return sheet
