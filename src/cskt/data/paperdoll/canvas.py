"""A sheet on which every shape is drawn twice: in colour, and as a part label in the mask.

Shapes are polygons in body units: x to the right from the body's middle, y down from the crown (0) to the soles (1).
Only the canvas places them in the image (shift, scale, lean, mirroring), so image and mask cannot disagree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageDraw

from cskt.data.paperdoll.attributes import PART_COLOURS, Colour

Point: TypeAlias = tuple[float, float]
Polygon: TypeAlias = Sequence[Point]

PART_LABELS = tuple(PART_COLOURS)
"""Name of each value of a part mask. A dress is `upper`; what an occluder covers is `background`."""

SUPERSAMPLING = 2
"""Pixels drawn per pixel kept, along each side."""


@dataclass(frozen=True)
class Placement:
    """Place of the body in the supersampled sheet."""

    x_pixels: float
    """Column of the body's middle at the soles."""
    y_pixels: float
    """Row of the crown."""
    scale_pixels: float
    """Height of the body."""
    lean: float = 0.0
    """Shift of the crown to the right, in body heights."""
    mirrored: bool = False


class Canvas:
    """An RGB sheet and its part mask, drawn together."""

    def __init__(self, background: Image.Image, placement: Placement) -> None:
        self.image = background
        self.labels = Image.new("L", background.size)
        self.placement = placement
        self._draw = ImageDraw.Draw(self.image)
        self._draw_labels = ImageDraw.Draw(self.labels)

    def shape(
        self, polygons: Sequence[Polygon], colour: Colour, part: str, fabric: Image.Image | None = None
    ) -> None:  # fmt: skip
        """Draw polygons as one shape: a common darker outline, then the filling, which hides the lines inside.

        A sheet-sized picture of fabric fills the shape in place of the colour.
        """
        for polygon in polygons:
            self._draw_outline(polygon, colour)
        self.detail(polygons, colour, part)
        if fabric is not None:
            stencil = Image.new("1", self.image.size)
            draw_stencil = ImageDraw.Draw(stencil)
            for polygon in polygons:
                draw_stencil.polygon(self._place(polygon), fill=1)
            self.image.paste(fabric, mask=stencil)

    def _draw_outline(self, polygon: Polygon, colour: Colour) -> None:
        points, width = self._place(polygon), max(2, round(0.011 * self.placement.scale_pixels))
        self._draw.line([*points, points[0], points[1]], fill=shade(colour, 0.6), width=width)

    def detail(self, polygons: Sequence[Polygon], colour: Colour, part: str) -> None:
        """Draw polygons without an outline: seams, straps, buttons, anything inside a shape."""
        label = PART_LABELS.index(part)
        for polygon in polygons:
            self._fill(self._place(polygon), colour, label)

    def occlude(self, pixels: Polygon, colour: Colour) -> None:
        """Draw something in front of the body, in pixels of the sheet; the mask is background there."""
        self._fill(list(pixels), colour, 0)

    def _fill(self, pixels: list[Point], colour: Colour, label: int) -> None:
        self._draw.polygon(pixels, fill=colour)
        self._draw_labels.polygon(pixels, fill=label)

    def _place(self, polygon: Polygon) -> list[Point]:
        """Convert body units to pixels of the sheet."""
        at = self.placement
        side = -at.scale_pixels if at.mirrored else at.scale_pixels
        return [(at.x_pixels + side * (x + at.lean * (1 - y)), at.y_pixels + at.scale_pixels * y) for x, y in polygon]


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour in less light (factor below 1) or mixed with white (above 1)."""
    if factor <= 1:
        red, green, blue = (round(value * factor) for value in colour)
    else:
        red, green, blue = (round(255 - (255 - value) / factor) for value in colour)
    return red, green, blue


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """Return an upright rectangle."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def ellipse(x: float, y: float, radii: Point, start: float = 0, end: float = 360) -> list[Point]:
    """Return a polygon along an ellipse from angle `start` to `end`, in degrees clockwise from the right."""
    steps = max(4, round((end - start) / 22.5))
    angles = [math.radians(start + (end - start) * step / steps) for step in range(steps + (end - start < 360))]
    return [(x + radii[0] * math.cos(angle), y + radii[1] * math.sin(angle)) for angle in angles]


def limb(joints: Sequence[Point], widths: Sequence[float]) -> list[list[Point]]:
    """Return a tapering tube through joints with round ends, as polygons: one per joint, then one per stretch."""
    polygons = [ellipse(x, y, (width / 2, width / 2)) for (x, y), width in zip(joints, widths, strict=True)]
    for (start, end), (first, second) in zip(itertools.pairwise(joints), itertools.pairwise(widths), strict=True):
        across_x, across_y = end[1] - start[1], start[0] - end[0]
        length = math.hypot(across_x, across_y) or 1.0
        across_x, across_y = across_x / length / 2, across_y / length / 2
        ends = ((start, first), (end, second), (end, -second), (start, -first))
        polygons.append([(x + across_x * width, y + across_y * width) for (x, y), width in ends])
    return polygons


def strip(start: Point, end: Point, width: float) -> list[Point]:
    """Return a straight band of that width: a strap, a shaft, a seam."""
    return limb((start, end), (width, width))[-1]


def between(start: Point, end: Point, fraction: float) -> Point:
    """Return the point at that fraction of the way from start to end."""
    return start[0] + (end[0] - start[0]) * fraction, start[1] + (end[1] - start[1]) * fraction


def shifted(polygon: Polygon, x: float, y: float) -> list[Point]:
    """Return a polygon whose origin was moved to (x, y)."""
    return [(x + right, y + down) for right, down in polygon]


def both_sides(polygon: Polygon, x: float = 0.0) -> list[list[Point]]:
    """Return a polygon on the left and on the right of x; its own x values are distances from there."""
    return [[(x + sign * right, down) for right, down in polygon] for sign in (-1, 1)]
