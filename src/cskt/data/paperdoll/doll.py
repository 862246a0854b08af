"""All that the drawing functions need to know of one doll in one image, and the fabric of its upper garment."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from cskt.data.paperdoll.attributes import SKIN_TONES, Attributes, Colour
from cskt.data.paperdoll.canvas import Canvas
from cskt.data.paperdoll.pose import Skeleton


@dataclass(frozen=True)
class Doll:
    """One person in one pose on one sheet."""

    canvas: Canvas
    attributes: Attributes
    skeleton: Skeleton
    colours: dict[str, Colour]
    """RGB by field name of `Attributes` (`upper_colour`, ...), as it looks in this image."""
    fabric: Image.Image | None
    """Sheet filled with the upper garment's pattern; none where the garment is plain."""

    @property
    def skin(self) -> Colour:
        """RGB of face and hands."""
        return SKIN_TONES[self.attributes.skin]


def weave(attributes: Attributes, colours: dict[str, Colour], canvas: Canvas) -> Image.Image | None:
    """The fabric of the upper garment, as fine as the figure is large, or none for a plain or printed one."""
    if attributes.pattern not in ("striped", "checked", "dotted"):
        return None
    ground, ink = colours["upper_colour"], colours["pattern_colour"]
    sheet = Image.new("RGB", canvas.image.size, ground)
    draw = ImageDraw.Draw(sheet)
    unit = canvas.placement.scale_pixels
    if attributes.pattern == "striped":
        _stripe(draw, sheet.size, max(10, round(0.062 * unit)), ink)
    elif attributes.pattern == "checked":
        _check(draw, sheet.size, max(10, round(0.066 * unit)), ground, ink)
    else:
        _dot(draw, sheet.size, max(10, round(0.058 * unit)), ink)
    return sheet


def _stripe(draw: ImageDraw.ImageDraw, size: tuple[int, int], period: int, ink: Colour) -> None:
    for y in range(0, size[1], period):
        draw.rectangle((0, y, size[0], y + period // 2 - 1), fill=ink)


def _check(draw: ImageDraw.ImageDraw, size: tuple[int, int], period: int, ground: Colour, ink: Colour) -> None:
    band = period // 3
    mixed = ((ground[0] + ink[0]) // 2, (ground[1] + ink[1]) // 2, (ground[2] + ink[2]) // 2)
    for x in range(0, size[0], period):
        draw.rectangle((x, 0, x + band, size[1]), fill=mixed)
    for y in range(0, size[1], period):
        draw.rectangle((0, y, size[0], y + band), fill=mixed)
        for x in range(0, size[0], period):
            draw.rectangle((x, y, x + band, y + band), fill=ink)


def _dot(draw: ImageDraw.ImageDraw, size: tuple[int, int], period: int, ink: Colour) -> None:
    radius = 0.30 * period
    for row, y in enumerate(range(0, size[1], period)):
        for x in range((row % 2) * period // 2, size[0], period):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
