"""Results of queries with the pictures of their hits, and one picture of a result."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from cskt.errors import CsktError
from cskt.image_files.decode import decode_image
from cskt.types import Hit

logger = logging.getLogger(__name__)

Color = tuple[int, int, int]
RIGHT: Color = (26, 127, 75)
WRONG: Color = (196, 49, 75)
NEUTRAL: Color = (128, 137, 150)
PAPER: Color = (255, 255, 255)
INK: Color = (28, 33, 40)
MUTED: Color = (91, 100, 114)
EMPTY: Color = (217, 221, 227)
FRAMES = {True: (RIGHT, "✓"), False: (WRONG, "✗"), None: (NEUTRAL, "")}
"""Colour of the frame and mark below it, by `PicturedHit.right`."""


@dataclass(frozen=True)
class PicturedHit:
    """A hit with its pictures."""

    hit: Hit
    picture: Path | bytes
    """The crop: an image file, or its content."""
    right: bool | None = None
    """True if it shows the person that was searched for; None if unknown."""
    heat_maps: Sequence[tuple[str, bytes]] = ()
    """(sentence or word, the crop under its heat map as JPEG)."""

    @property
    def facts(self) -> Mapping[str, object]:
        """Metadata, group and size, by the names that a page shows."""
        hit = self.hit
        facts = {key: value for key, value in hit.metadata.items() if key not in ("width", "height")}
        if hit.group_size > 1:
            facts["same group"] = f"{hit.group_size - 1} more"
        width, height = (hit.metadata.get(side) for side in ("width", "height"))
        if width and height:
            facts["pixels"] = f"{width} × {height}"
        return facts


@dataclass(frozen=True)
class PicturedResult:
    """The hits of one query, best first."""

    query: str
    """The sentence, or another heading."""
    hits: Sequence[PicturedHit]
    note: str = ""
    """For example why there are no hits."""

    @property
    def is_explained(self) -> bool:
        """True if any hit has heat maps."""
        return any(hit.heat_maps for hit in self.hits)

    @property
    def outcome(self) -> str:
        """Rank of the first right image in words; empty if unknown or without hits."""
        if not self.hits or self.hits[0].right is None:
            return ""
        ranks = [hit.hit.rank for hit in self.hits if hit.right]
        return (
            f"first right image at rank {min(ranks)}" if ranks else f"no right image among the first {len(self.hits)}"
        )


def load_crop(image: Path | bytes) -> Image.Image | None:
    """Read an image file, or its content, as upright RGB; None, with a warning in the log, if it cannot be read."""
    try:
        return Image.fromarray(decode_image(image, apply_orientation=True))
    except CsktError as error:
        logger.warning("%s: shown as a grey box", error)
        return None


def answer_sheet(answer: PicturedResult, *, crop_height: int = 256) -> Image.Image:
    """Draw an answer: the query on top, below it the crops in a row, or with heat maps one row for each crop.

    The frame of a crop is green with a check mark if it is right, red with a cross if it is wrong, grey if unknown.
    A file that is missing or unreadable is a grey box. Everything scales with `crop_height`, in pixels, at least 32.
    """
    if crop_height < 32:
        raise CsktError(f"crop_height is {crop_height} pixels; expected at least 32")
    cells = [
        [(hit.picture, f"{hit.hit.rank}  {hit.hit.score:.3f}", hit.right), *((jpeg, text, None) for text, jpeg in maps)]
        for hit in answer.hits
        for maps in [hit.heat_maps]
    ]
    rows = cells if answer.is_explained else [[cell for row in cells for cell in row]]
    crops = [[load_crop(picture) for picture, _, _ in row] for row in rows]
    margin, border = crop_height // 12, max(3, crop_height // 48)
    font = load_font(max(11, crop_height // 15))
    line_height = round(1.4 * font.size)
    cell_width = cell_width_of([crop for row in crops for crop in row], crop_height)
    frame_width, frame_height = cell_width + 2 * border, crop_height + 2 * border
    row_height = frame_height + (3 if answer.is_explained else 2) * line_height
    row_width = max(len(row) for row in rows) * (frame_width + margin) - margin
    width = max(row_width, 2 * crop_height) + 2 * margin  # a query needs space even above a single crop
    heading = wrap(drawable(answer.query), font, width - 2 * margin)
    top = margin + len(heading) * line_height + margin // 2

    sheet = Image.new("RGB", (width, top + len(rows) * row_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw_lines(draw, (margin, margin), heading, font, line_height)
    if not answer.hits:
        draw.text((width // 2, top + frame_height // 2), "no image found", MUTED, font, anchor="mm")
    for row_number, row in enumerate(rows):
        for column, (_, caption, right) in enumerate(row):
            left, upper = margin + column * (frame_width + margin), top + row_number * row_height
            color, mark = FRAMES[right]
            draw.rectangle((left, upper, left + frame_width - 1, upper + frame_height - 1), color)
            box = boxed(crops[row_number][column], (cell_width, crop_height), font)
            sheet.paste(box, (left + border, upper + border))
            below = upper + frame_height + line_height // 4
            draw_lines(draw, (left, below), wrap(drawable(caption), font, cell_width)[:2], font, line_height)
            draw.text((left + frame_width, below), mark, color, font, anchor="ra")
    return sheet


def draw_lines(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Iterable[str], font: ImageFont.FreeTypeFont, height: int
) -> None:
    """Draw lines of text below each other; `corner` is the upper left one, `height` that of a line."""
    for number, line in enumerate(lines):
        draw.text((corner[0], corner[1] + number * height), line, INK, font)


@lru_cache(maxsize=8)
def load_font(size_pixels: int) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans, which ships with matplotlib: it has accents, Cyrillic, Greek and check marks."""
    return ImageFont.truetype(findfont("DejaVu Sans"), size_pixels)


def drawable(text: str) -> str:
    """Return text on one line, full-width punctuation replaced by the usual form."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def wrap(text: str, font: ImageFont.FreeTypeFont, width_pixels: int) -> list[str]:
    """Return lines of `text` that each fit into a width; a word that is wider than a line is broken."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width_pixels:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width_pixels:
                lines.append("")
            lines[-1] += letter
    return lines


def cell_width_of(crops: Sequence[Image.Image | None], height: int) -> int:
    """Return the width of the widest crop at a height: between the usual shape of a person and three quarters."""
    widths = [round(crop.width * height / crop.height) for crop in crops if crop is not None]
    return min(max([round(0.4 * height), *widths]), round(0.75 * height))


def boxed(crop: Image.Image | None, size: tuple[int, int], font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return a crop in the middle of a box of (width, height) pixels, or the words `no image`."""
    if crop is not None:
        return ImageOps.pad(crop, size, color=EMPTY)
    box = Image.new("RGB", size, EMPTY)
    lines = "\n".join(wrap("no image", font, size[0]))
    ImageDraw.Draw(box).multiline_text((size[0] / 2, size[1] / 2), lines, INK, font, anchor="mm", align="center")
    return box
