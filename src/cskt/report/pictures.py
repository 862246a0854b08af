"""Search answers as pictures: the sentence, and below it the best crops with rank, score and verdict."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
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
EMPTY: Color = (217, 221, 227)


@dataclass(frozen=True)
class Answer:
    """What a search gave for one query, best hit first.

    Raises:
        CsktError: there is not one image path, and where verdicts are given one verdict, for each hit.
    """

    query: str
    """The sentence that was searched for."""
    hits: Sequence[Hit]
    image_paths: Sequence[str | Path]
    """Image file of each hit, in the order of the hits."""
    right: Sequence[bool] | None = None
    """Whether each hit shows the person who was asked for; none where nobody knows."""

    def __post_init__(self) -> None:
        for name, values in (("image_paths", self.image_paths), ("right", self.right)):
            if values is not None and len(values) != len(self.hits):
                raise CsktError(f"answer to '{self.query}': {len(self.hits)} hits but {len(values)} {name}")

    def verdict(self, position: int) -> bool | None:
        """Right or wrong at a position in `hits` (from 0); none where nobody knows."""
        return None if self.right is None else bool(self.right[position])

    @property
    def outcome(self) -> str:
        """The rank of the first right image in words; empty where nobody knows or there are no hits."""
        if self.right is None or not self.hits:
            return ""
        ranks = [hit.rank for hit, right in zip(self.hits, self.right, strict=True) if right]
        return (
            f"first right image at rank {min(ranks)}" if ranks else f"no right image among the first {len(self.hits)}"
        )


def load_crop(image: str | Path | bytes) -> Image.Image | None:
    """Read an image file, or its bytes, as RGB, upright; none, with a warning in the log, where that is impossible."""
    try:
        return Image.fromarray(decode_image(image if isinstance(image, bytes) else Path(image), apply_orientation=True))
    except ValueError as error:
        logger.warning("%s: shown as a grey box", error)
        return None


def answer_sheet(answer: Answer, *, crop_height: int = 256) -> Image.Image:
    """One picture of an answer: the sentence on top, the crops in a row below it.

    A crop is framed green with a check mark when right, red with a cross when wrong, grey without a mark when unknown.
    A file that is missing or unreadable shows as a grey box.

    Args:
        answer: the query and its hits; may be without hits.
        crop_height: height of the crops in pixels, at least 32; everything else scales with it.
    """
    if crop_height < 32:
        raise CsktError(f"crop_height is {crop_height} pixels; expected at least 32")
    margin, border = crop_height // 12, max(3, crop_height // 48)
    font = load_font(max(11, crop_height // 15))
    line_height = round(1.4 * font.size)

    crops = [load_crop(path) for path in answer.image_paths]
    cell_width = _cell_width(crops, crop_height)
    frame_width, frame_height = cell_width + 2 * border, crop_height + 2 * border
    row_width = len(crops) * (frame_width + margin) - margin
    width = max(row_width, 2 * crop_height) + 2 * margin  # a sentence needs room even above a single crop
    lines = wrap(drawable(answer.query), font, width - 2 * margin)
    frames_top = margin + len(lines) * line_height + margin // 2

    sheet = Image.new("RGB", (width, frames_top + frame_height + 2 * line_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((margin, margin + number * line_height), line, INK, font)
    if not crops:
        draw.text((width // 2, frames_top + frame_height // 2), "no image found", NEUTRAL, font, anchor="mm")
    for position, crop in enumerate(crops):
        left = margin + position * (frame_width + margin)
        verdict = answer.verdict(position)
        color = {True: RIGHT, False: WRONG, None: NEUTRAL}[verdict]
        draw.rectangle((left, frames_top, left + frame_width - 1, frames_top + frame_height - 1), color)
        box = _boxed(crop, (cell_width, crop_height), font)
        sheet.paste(box, (left + border, frames_top + border))
        hit = answer.hits[position]
        below = frames_top + frame_height + line_height // 4
        draw.text((left, below), f"{hit.rank}  {hit.score:.3f}", INK, font)
        mark = {True: "✓", False: "✗", None: ""}[verdict]
        draw.text((left + frame_width, below), mark, color, font, anchor="ra")
    return sheet


@lru_cache(maxsize=8)
def load_font(size_pixels: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib ships: it has accents, Cyrillic, Greek and the check marks."""
    return ImageFont.truetype(findfont("DejaVu Sans"), size_pixels)


def drawable(text: str) -> str:
    """Text on one line; the full-width punctuation that real captions hold becomes its usual form."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def wrap(text: str, font: ImageFont.FreeTypeFont, width_pixels: int) -> list[str]:
    """Lines of `text` that each fit into a width; a word that is wider than a line is broken."""
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


def _cell_width(crops: Sequence[Image.Image | None], height: int) -> int:
    """Room for the widest crop at a height, between the usual shape of a person's crop and three quarters."""
    widths = [round(crop.width * height / crop.height) for crop in crops if crop is not None]
    return min(max([round(0.4 * height), *widths]), round(0.75 * height))


def _boxed(crop: Image.Image | None, size: tuple[int, int], font: ImageFont.FreeTypeFont) -> Image.Image:
    if crop is not None:
        return ImageOps.pad(crop, size, color=EMPTY)
    box = Image.new("RGB", size, EMPTY)
    lines = "\n".join(wrap("no image", font, size[0]))
    ImageDraw.Draw(box).multiline_text((size[0] / 2, size[1] / 2), lines, NEUTRAL, font, anchor="mm", align="center")
    return box
