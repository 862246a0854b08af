"""The `varied` domain, for pre-training: many ways to draw, light and photograph one person.

Nothing here is shared with the street of the `target` domain: no wall, shop, hedge, road, car or post. Backdrops,
obstacles, rendering, proportions and camera are drawn independently of each other and over wide ranges, so that a model
learns what a garment looks like and not how one domain draws it.
"""

from __future__ import annotations

import colorsys
import dataclasses
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from cskt.data.paperdoll.attributes import Colour
from cskt.data.paperdoll.canvas import SUPERSAMPLING, Canvas, Placement, Polygon, box, ellipse, shade
from cskt.data.paperdoll.doll import Skeleton

Pixels = NDArray[np.float32]

_OUTLINES = (0.0, 0.5, 1.0, 1.0, 1.9)
"""Widths of the outline relative to that of the other domains."""
_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.NEAREST, Image.Resampling.BICUBIC)


class StyledCanvas(Canvas):
    """A canvas with an outline of its own: none, thin or thick, darker than the shape or nearly black."""

    def __init__(self, background: Image.Image, placement: Placement, rng: random.Random) -> None:
        super().__init__(background, placement)
        self._outline, self._edge = rng.choice(_OUTLINES), rng.uniform(0.2, 0.8)

    def _draw_outline(self, polygon: Polygon, colour: Colour) -> None:
        width = round(self._outline * 0.011 * self.placement.scale_pixels)
        if width > 0:
            points = self._place(polygon)
            self._draw.line([*points, points[0], points[1]], fill=shade(colour, self._edge), width=width)


def vary_body(skeleton: Skeleton, rng: random.Random) -> Skeleton:
    """Return a body of slightly other proportions."""
    x, y = skeleton.head_radius
    size = rng.uniform(0.86, 1.14)
    return dataclasses.replace(
        skeleton,
        shoulder=skeleton.shoulder * rng.uniform(0.9, 1.12),
        waist=skeleton.waist * rng.uniform(0.9, 1.15),
        hip=skeleton.hip * rng.uniform(0.92, 1.12),
        limb=skeleton.limb * rng.uniform(0.82, 1.2),
        head=(skeleton.head[0], 0.182 - y * size),
        head_radius=(x * size * rng.uniform(0.92, 1.08), y * size),
    )


def place_anywhere(size: tuple[int, int], room_above: float, rng: random.Random) -> Placement:
    """Place a figure of any size in the crop; now and then its feet or its crown are cut off.

    Args:
        size: width and height of the sheet in pixels.
        room_above: share of the body's height that a hat or an umbrella needs above the crown.
        rng: makes every choice.
    """
    width, height = size
    tall = rng.uniform(0.72, 1.02) if rng.random() < 0.85 else rng.uniform(0.95, 1.2)
    tall /= 1 + room_above
    slack = 1 - tall * (1 + room_above)
    top = tall * room_above + (rng.uniform(0.0, slack) if slack > 0 else rng.uniform(slack / 2, 0.03))
    return Placement(
        x_pixels=width * (0.5 + rng.uniform(-0.12, 0.12)),
        y_pixels=height * top,
        scale_pixels=height * tall,
        lean=rng.uniform(-0.06, 0.06),
        mirrored=rng.random() < 0.5,
    )


def draw_backdrop(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw one of several backdrops in any colours; `size` is width, height in pixels."""
    image = rng.choice((_plain, _gradient, _clouds, _paper, _clutter, _lights, _room))(size, rng)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(1, 6)))
    return image


def _any_colour(rng: random.Random) -> Colour:
    """Return a colour, more often a dull than a bright one."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.random() ** 1.6, rng.uniform(0.12, 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def _plain(size: tuple[int, int], rng: random.Random) -> Image.Image:
    return Image.new("RGB", size, _any_colour(rng))


def _gradient(size: tuple[int, int], rng: random.Random) -> Image.Image:
    corners = np.array([_any_colour(rng) for _ in range(4)], np.uint8).reshape(2, 2, 3)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def _clouds(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw spots of several sizes around one colour."""
    noise = np.random.default_rng(rng.getrandbits(64))
    base = np.array(_any_colour(rng), np.float32)
    pixels = np.zeros((size[1], size[0], 3), np.float32) + base
    for cells in (3, 8, 24):
        grid = noise.normal(0, rng.uniform(6, 34), (2 * cells, cells, 3)).clip(-127, 127) + 128
        layer = Image.fromarray(grid.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
        pixels += np.asarray(layer, np.float32) - 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _paper(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw stripes, squares or discs in two colours, in any direction."""
    width, height = size
    ground, ink = _any_colour(rng), _any_colour(rng)
    image = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(image)
    period, kind = rng.randint(8, 60), rng.choice(("upright", "level", "slanted", "squares", "discs"))
    for index, x in enumerate(range(-height, width + height, period)):
        if kind == "upright":
            draw.rectangle((x, 0, x + period // 2, height), fill=ink)
        elif kind == "level":
            draw.rectangle((0, x, width, x + period // 2), fill=ink)
        elif kind == "slanted":
            draw.line((x, 0, x + height, height), fill=ink, width=period // 3)
        elif x > -period and x < width:
            for y in range(-(index % 2) * period // 2, height, period):
                patch = (x, y, x + period // 2, y + period // 2)
                (draw.rectangle if kind == "squares" else draw.ellipse)(patch, fill=ink)
    return image


def _clutter(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw boxes and triangles of any colour over each other."""
    width, height = size
    image = Image.new("RGB", size, _any_colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(6, 30)):
        x, y = rng.uniform(-0.2, 1) * width, rng.uniform(-0.1, 1) * height
        right, down = x + rng.uniform(0.08, 0.7) * width, y + rng.uniform(0.04, 0.4) * height
        if rng.random() < 0.7:
            draw.rectangle((x, y, right, down), fill=_any_colour(rng))
        else:
            draw.polygon([(x, down), (right, down), (rng.uniform(x, right), y)], fill=_any_colour(rng))
    return image


def _lights(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw bright discs on a dark gradient, as far lights look out of focus."""
    image = _gradient(size, rng).point(lambda value: value // 2)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(5, 25)):
        x, y, radius = rng.randrange(size[0]), rng.randrange(size[1]), rng.randint(4, 26)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade(_any_colour(rng), 1.7))
    return image


def _room(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw a wall with a picture or a door over a floor of boards."""
    width, height = size
    wall, floor_colour = shade(_any_colour(rng), rng.uniform(1.0, 2.2)), _any_colour(rng)
    image = Image.new("RGB", size, wall)
    draw = ImageDraw.Draw(image)
    floor = round(height * rng.uniform(0.55, 0.95))
    for _ in range(rng.randint(0, 3)):
        x, y = rng.uniform(-0.2, 0.9) * width, rng.uniform(0, 0.6) * height
        frame = (x, y, x + rng.uniform(0.2, 0.5) * width, rng.uniform(0.4, 1.0) * floor + 0.1 * y)
        if frame[3] > y:
            draw.rectangle(frame, fill=_any_colour(rng), outline=_any_colour(rng), width=rng.randint(2, 6))
    draw.rectangle((0, floor, width, height), fill=floor_colour)
    for y in range(floor, height, rng.randint(6, 20)):
        draw.line((0, y, width, y), fill=shade(floor_colour, 0.8), width=2)
    draw.rectangle((0, floor - 6, width, floor), fill=shade(wall, 0.7))
    return image


def draw_obstacle(canvas: Canvas, rng: random.Random) -> None:
    """Draw something of any colour before the person, over at most a quarter of the figure."""
    width, height = canvas.image.size
    colour, kind = _any_colour(rng), rng.choice(("side", "below", "disc", "slant"))
    if kind == "side":
        left = rng.random() < 0.5
        edge = rng.uniform(0.1, 0.32) * width
        canvas.occlude(box(0, 0, edge, height) if left else box(width - edge, 0, width, height), colour)
    elif kind == "below":
        top = rng.uniform(0.76, 0.95) * height
        canvas.occlude(box(0, top, width, height), colour)
    elif kind == "disc":
        radius = rng.uniform(0.08, 0.2) * width
        canvas.occlude(ellipse(rng.uniform(0, 1) * width, rng.uniform(0, 1) * height, (radius, radius)), colour)
    else:
        x, half = rng.uniform(0, 1) * width, rng.uniform(0.02, 0.06) * width
        far = x + rng.uniform(-0.8, 0.8) * width
        canvas.occlude([(x - half, 0), (x + half, 0), (far + half, height), (far - half, height)], colour)


def paint(canvas: Canvas, rng: random.Random) -> Image.Image:
    """Return the sheet with the figure's surface changed: folds and light of cloth, a coarse weave, or left flat."""
    kind = rng.choice(("flat", "flat", "folds", "folds", "weave", "relief"))
    if kind == "flat":
        return canvas.image
    width, height = canvas.image.size
    noise = np.random.default_rng(rng.getrandbits(64))
    if kind == "weave":
        light: NDArray[np.floating] = 1 + noise.normal(0, rng.uniform(0.03, 0.1), (height, width, 1)).astype(np.float32)
    else:
        cells = (rng.randint(3, 9), rng.randint(6, 18))
        grid = Image.fromarray(noise.integers(0, 255, cells[::-1], np.uint8)).resize((width, height), _FILTERS[0])
        strength = rng.uniform(0.1, 0.45)
        light = 1 - strength / 2 + strength * np.asarray(grid, np.float32)[..., None] / 255
        if kind == "relief":  # a body that is lit from one side
            across = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * rng.choice((-1, 1))
            light = light * (1 + rng.uniform(0.1, 0.3) * across)
    figure = np.asarray(canvas.labels, np.uint8)[..., None] > 0
    pixels = np.asarray(canvas.image, np.float32)
    return Image.fromarray(np.where(figure, pixels * light, pixels).clip(0, 255).astype(np.uint8))


def photograph_anyhow(sheet: Image.Image, rng: random.Random) -> Image.Image:
    """Reduce a sheet to the crop with a lens, a light and a sensor from sharp and even to poor."""
    image = sheet.reduce(SUPERSAMPLING)
    width, height = image.size
    if rng.random() < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.1)))
    if rng.random() < 0.35:
        share = rng.uniform(0.45, 0.9)
        small = (max(16, round(width * share)), max(32, round(height * share)))
        image = image.resize(small, rng.choice(_FILTERS)).resize((width, height), rng.choice(_FILTERS))
    pixels = np.asarray(image, np.float32)
    if rng.random() < 0.7:
        pixels = _light(pixels, rng)
    if rng.random() < 0.6:
        noise = np.random.default_rng(rng.getrandbits(64))
        channels = rng.choice((1, 3))
        spread = rng.uniform(1, 12)
        pixels = pixels + spread * noise.standard_normal((height, width, channels), dtype=np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _light(pixels: Pixels, rng: random.Random) -> Pixels:
    """Change saturation, contrast, brightness, haze, tint, and the direction that light comes from."""
    height, width, _ = pixels.shape
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + rng.uniform(0.6, 1.2) * (pixels - grey)
    tint = np.array([rng.uniform(0.84, 1.12) for _ in range(3)], np.float32)
    slope_x, slope_y = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    across = np.linspace(-slope_x, slope_x, width, dtype=np.float32)[None, :, None]
    down = np.linspace(-slope_y, slope_y, height, dtype=np.float32)[:, None, None]
    lit = pixels * (rng.uniform(0.65, 1.2) * tint * (1 + across + down)) + rng.uniform(-10, 32)
    gamma = rng.uniform(0.75, 1.3)
    return np.asarray(255 * (lit.clip(0, 255) / 255) ** gamma, np.float32)
