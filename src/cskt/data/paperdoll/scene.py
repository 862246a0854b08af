"""Surroundings of a paper doll: a plain studio (`source`) or a street with occluders (`target`)."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from cskt.data.paperdoll.attributes import Colour
from cskt.data.paperdoll.canvas import Canvas, Placement, box, shade

_STUDIO: tuple[Colour, ...] = (
    (236, 236, 238), (246, 240, 228), (226, 234, 242), (240, 228, 230), (228, 240, 230), (214, 216, 220),
)  # fmt: skip
_WALLS: tuple[Colour, ...] = ((168, 104, 84), (190, 178, 158), (150, 152, 156), (206, 198, 176), (120, 128, 140))
_GROUNDS: tuple[Colour, ...] = ((146, 146, 148), (172, 164, 150), (112, 114, 120), (186, 182, 176))
_CARS: tuple[Colour, ...] = ((186, 40, 44), (44, 74, 140), (232, 232, 234), (50, 52, 58), (196, 170, 60))
_LEAVES: tuple[Colour, ...] = ((56, 104, 50), (78, 124, 58), (44, 84, 52))


def draw_studio(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw a flat light backdrop over a floor of nearly the same colour; `size` is width, height in pixels."""
    width, height = size
    colour = rng.choice(_STUDIO)
    image = Image.new("RGB", size, colour)
    floor = round(height * rng.uniform(0.78, 0.92))
    ImageDraw.Draw(image).rectangle((0, floor, width, height), fill=shade(colour, rng.uniform(0.90, 0.97)))
    return image


def draw_street(size: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw a wall, shop window, hedge or road with parked cars over pavement or grass; see `draw_studio`."""
    width, height = size
    image = Image.new("RGB", size)
    draw = ImageDraw.Draw(image)
    horizon = round(height * rng.uniform(0.42, 0.80))
    rng.choice((_draw_bricks, _draw_shop, _draw_hedge, _draw_open_road))(draw, width, horizon, rng)
    _draw_ground(draw, width, horizon, height, rng)
    if rng.random() < 0.35:
        _draw_car(draw, width, horizon, rng)
    if rng.random() < 0.25:
        x = rng.randrange(width)
        draw.rectangle((x, 0, x + width // 18, horizon + height // 20), fill=(92, 94, 98))
    return image


def _draw_bricks(draw: ImageDraw.ImageDraw, width: int, horizon: int, rng: random.Random) -> None:
    colour = rng.choice(_WALLS)
    draw.rectangle((0, 0, width, horizon), fill=shade(colour, 0.78))
    brick_height, brick_width = rng.randint(12, 24), rng.randint(24, 60)
    for row, y in enumerate(range(0, horizon, brick_height)):
        for x in range(-(row % 2) * brick_width // 2, width, brick_width):
            tone = shade(colour, rng.uniform(0.88, 1.0))
            draw.rectangle((x, y, x + brick_width - 3, min(y + brick_height - 3, horizon)), fill=tone)


def _draw_shop(draw: ImageDraw.ImageDraw, width: int, horizon: int, rng: random.Random) -> None:
    colour = rng.choice(_WALLS)
    draw.rectangle((0, 0, width, horizon), fill=colour)
    awning = rng.choice(_CARS)
    band = max(8, horizon // 6)
    for index, x in enumerate(range(0, width, band)):
        draw.rectangle((x, 0, x + band, band), fill=awning if index % 2 else (236, 234, 226))
    pane = max(20, round(width * rng.uniform(0.3, 0.6)))
    for x in range(rng.randint(-pane, 0), width, pane):
        glass = shade((112, 136, 154), rng.uniform(0.6, 1.3))
        draw.rectangle((x + 4, band + 6, x + pane - 4, horizon - 10), fill=glass)
        draw.line((x + 8, horizon - 20, x + pane - 10, band + 12), fill=shade(glass, 1.3), width=3)


def _draw_hedge(draw: ImageDraw.ImageDraw, width: int, horizon: int, rng: random.Random) -> None:
    draw.rectangle((0, 0, width, horizon), fill=rng.choice(((176, 204, 228), (206, 212, 216), (226, 222, 208))))
    top = round(horizon * rng.uniform(0.0, 0.5))
    leaf = rng.choice(_LEAVES)
    draw.rectangle((0, top, width, horizon), fill=shade(leaf, 0.9))
    for _ in range(34):
        x, y, radius = rng.randrange(width), rng.randint(top, horizon), rng.randint(6, 18)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade(leaf, rng.uniform(0.75, 1.25)))


def _draw_open_road(draw: ImageDraw.ImageDraw, width: int, horizon: int, rng: random.Random) -> None:
    draw.rectangle((0, 0, width, horizon), fill=rng.choice(((186, 208, 228), (212, 214, 218), (232, 222, 204))))
    x = rng.randint(-20, 0)
    while x < width:
        wide, top = rng.randint(width // 5, width // 2), round(horizon * rng.uniform(0.0, 0.6))
        wall = shade(rng.choice(_WALLS), rng.uniform(0.8, 1.2))
        draw.rectangle((x, top, x + wide, horizon), fill=wall)
        for window_y in range(top + 8, horizon - 10, 22):
            for window_x in range(x + 6, x + wide - 8, 18):
                draw.rectangle((window_x, window_y, window_x + 8, window_y + 11), fill=shade(wall, 0.6))
        x += wide


def _draw_ground(draw: ImageDraw.ImageDraw, width: int, horizon: int, height: int, rng: random.Random) -> None:
    if rng.random() < 0.25:
        grass = rng.choice(((104, 146, 72), (128, 152, 84)))
        draw.rectangle((0, horizon, width, height), fill=grass)
        for _ in range(40):
            x, y = rng.randrange(width), rng.randint(horizon, height)
            draw.line((x, y, x + rng.randint(-3, 3), y - 8), fill=shade(grass, rng.uniform(0.75, 1.2)), width=2)
        return
    colour = rng.choice(_GROUNDS)
    draw.rectangle((0, horizon, width, height), fill=colour)
    vanishing = rng.uniform(-0.5, 1.5) * width
    for x in range(-2 * width, 3 * width, max(24, width // 3)):
        draw.line((vanishing + 0.25 * (x - vanishing), horizon, x, height), fill=shade(colour, 0.84), width=2)
    line_y, gap = float(horizon), rng.uniform(6, 14)
    while line_y < height:
        draw.line((0, line_y, width, line_y), fill=shade(colour, 0.86), width=2)
        line_y, gap = line_y + gap, gap * 1.6
    if rng.random() < 0.15:
        for x in range(0, width, width // 4):
            draw.rectangle((x, height - (height - horizon) // 2, x + width // 8, height), fill=(234, 234, 230))


def _draw_car(draw: ImageDraw.ImageDraw, width: int, horizon: int, rng: random.Random) -> None:
    colour = rng.choice(_CARS)
    length, height = width * rng.uniform(0.8, 1.4), width * rng.uniform(0.22, 0.32)
    left = rng.uniform(-0.8, 0.7) * width
    bottom = horizon + height * 0.35
    draw.polygon(
        [(left + 0.18 * length, bottom - height), (left + 0.32 * length, bottom - 1.8 * height),
         (left + 0.68 * length, bottom - 1.8 * height), (left + 0.82 * length, bottom - height)],
        fill=(96, 116, 132), outline=shade(colour, 0.7),
    )  # fmt: skip
    draw.rectangle((left, bottom - height, left + length, bottom - 0.2 * height), fill=colour)
    for wheel in (0.22, 0.78):
        x, radius = left + wheel * length, 0.32 * height
        draw.ellipse((x - radius, bottom - 2 * radius, x + radius, bottom), fill=(34, 34, 36))


def draw_shadow(image: Image.Image, placement: Placement, strength: float) -> None:
    """Darken the ground under the feet; `strength` in [0, 1]."""
    x, y, unit = placement.x_pixels, placement.y_pixels + 0.99 * placement.scale_pixels, placement.scale_pixels
    patch = (round(x - 0.19 * unit), round(y - 0.025 * unit), round(x + 0.19 * unit), round(y + 0.03 * unit))
    spot = Image.new("L", (patch[2] - patch[0], patch[3] - patch[1]))
    ImageDraw.Draw(spot).ellipse((0, 0, spot.width - 1, spot.height - 1), fill=round(255 * strength))
    image.paste((20, 20, 26), patch[:2], spot)


def draw_occluder(canvas: Canvas, rng: random.Random) -> None:
    """Draw a post, a bush, a car's bonnet or a barrier before the person, over at most a quarter of the figure."""
    width, height = canvas.image.size
    kind = rng.choice(("post", "bush", "bonnet", "barrier"))
    if kind == "post":
        x = canvas.placement.x_pixels + rng.choice((-1, 1)) * rng.uniform(0.05, 0.3) * width
        half = rng.uniform(0.025, 0.05) * width
        canvas.occlude(box(x - half, 0, x + half, height), (84, 88, 94))
    elif kind == "bush":
        leaf = rng.choice(_LEAVES)
        for _ in range(9):
            x, y, radius = rng.uniform(-0.1, 0.6) * width, height * rng.uniform(0.88, 1.02), 0.11 * width
            angles = [math.tau * step / 10 for step in range(10)]
            canvas.occlude([(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles],
                           shade(leaf, rng.uniform(0.8, 1.3)))  # fmt: skip
    elif kind == "bonnet":
        colour, top = rng.choice(_CARS), height * rng.uniform(0.80, 0.90)
        reach = width * rng.uniform(0.4, 0.8)
        canvas.occlude([(0, top), (0.7 * reach, top + 0.02 * height), (reach, height), (0, height)], colour)
        canvas.occlude([(0.72 * reach, top + 0.04 * height), (0.82 * reach, top + 0.04 * height),
                        (0.86 * reach, top + 0.08 * height), (0.72 * reach, top + 0.08 * height)],
                       (250, 244, 206))  # fmt: skip
    else:
        top = height * rng.uniform(0.82, 0.90)
        for index in range(6):
            board = box(index * width / 6, top, (index + 1) * width / 6, top + 0.05 * height)
            canvas.occlude(board, (214, 70, 50) if index % 2 else (240, 240, 236))
