"""One image of one person: scene, figure and camera put together."""

from __future__ import annotations

import dataclasses
import random
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from cskt.data.paperdoll.attributes import COLOURS, HAIR_COLOURS, NONE, PART_COLOURS, Attributes, Colour
from cskt.data.paperdoll.canvas import PART_LABELS, SUPERSAMPLING, Canvas, Placement
from cskt.data.paperdoll.doll import Doll, View, build_skeleton, sample_pose
from cskt.data.paperdoll.figure import draw_figure
from cskt.data.paperdoll.scene import draw_occluder, draw_shadow, draw_street, draw_studio
from cskt.data.paperdoll.upper import weave

Domain: TypeAlias = Literal["source", "target"]

SMALLEST_VISIBLE_SHARE = 0.0012
"""A part that covers less of the image (10 of 64 x 128 pixels) is not visible."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One image of one person, with its part mask."""

    image: Image.Image
    """RGB."""
    mask: Image.Image
    """Palette image of the same size; each value is an index into `PART_LABELS`."""
    view: View
    walking: bool
    visible_parts: frozenset[str]
    """Names from `PART_LABELS` that cover enough pixels to be recognised."""
    jpeg_quality: int
    """Quality that the camera would save at, for `Image.save`."""


def draw_person(
    attributes: Attributes, rng: random.Random, *, domain: Domain = "target", view: View | None = None,
    size_pixels: tuple[int, int] | None = None,
) -> Drawing:  # fmt: skip
    """Draw one image of a person; all differences between images are drawn from `rng`.

    Args:
        attributes: the person, from `sample_attributes`.
        rng: decides pose, crop, scene and camera; an equally seeded one gives equal pixels.
        domain: "source", a plain studio, or "target", a street camera.
        view: place of the camera; drawn when not given.
        size_pixels: width and height of the crop; drawn when not given (heights of 110 to 190).
    """
    street = domain == "target"
    pose = sample_pose(rng, view)
    height = rng.randint(110, 190)
    width, height = size_pixels or (round(height * rng.uniform(0.42, 0.50)), height)
    sheet_size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    placement = _place(attributes, sheet_size, street, rng)
    background = (draw_street if street else draw_studio)(sheet_size, rng)
    draw_shadow(background, placement, 0.35 if street else 0.15)
    canvas = Canvas(background, placement)
    colours = _image_colours(attributes, street, rng)
    fabric = weave(attributes, colours, canvas)
    draw_figure(Doll(canvas, attributes, build_skeleton(attributes, pose), colours, fabric))
    if street and rng.random() < 0.25:
        draw_occluder(canvas, rng)

    labels = canvas.labels.resize((width, height), Image.Resampling.NEAREST)
    areas = labels.histogram()
    visible = frozenset(
        name for index, name in enumerate(PART_LABELS) if areas[index] > SMALLEST_VISIBLE_SHARE * width * height
    )
    mask = Image.frombytes("P", labels.size, labels.tobytes())
    mask.putpalette([channel for colour in PART_COLOURS.values() for channel in colour])
    return Drawing(
        image=_photograph(canvas.image, street, rng),
        mask=mask,
        view=pose.view,
        walking=pose.walking,
        visible_parts=visible - {"background"},
        jpeg_quality=rng.randint(45, 85) if street else rng.randint(88, 94),
    )


def _place(attributes: Attributes, size: tuple[int, int], street: bool, rng: random.Random) -> Placement:
    width, height = size
    tall = rng.uniform(0.84, 0.94) if not street else rng.uniform(0.78, 0.98)
    top = rng.uniform(0.02, 0.05) if not street else rng.uniform(-0.01, 0.06)
    if attributes.age == "child":
        tall *= 0.84
    if attributes.held == "umbrella":
        tall, top = 0.84 * tall, top + 0.16
    elif attributes.headwear != NONE or attributes.hair == "bun":
        tall, top = 0.97 * tall, top + 0.03
    sway = 0.03 if not street else 0.07
    return Placement(
        x_pixels=width * (0.5 + rng.uniform(-sway, sway)),
        y_pixels=height * top,
        scale_pixels=height * tall,
        lean=rng.uniform(-0.02, 0.02) if not street else rng.uniform(-0.05, 0.05),
        mirrored=rng.random() < 0.5,
    )


def _image_colours(attributes: Attributes, street: bool, rng: random.Random) -> dict[str, Colour]:
    """Return the RGB of every coloured thing in this image: the named colour with small changes."""
    spread = 9 if street else 5
    colours: dict[str, Colour] = {}
    for field in dataclasses.fields(attributes):
        if not field.name.endswith("_colour"):
            continue
        table = HAIR_COLOURS if field.name == "hair_colour" else COLOURS
        light = rng.uniform(0.86, 1.06)
        offsets = [rng.uniform(-spread, spread) for _ in range(3)]
        name = getattr(attributes, field.name)
        if name != NONE:
            red, green, blue = (
                min(255, max(0, round(value * light + offset)))
                for value, offset in zip(table[name], offsets, strict=True)
            )
            colours[field.name] = red, green, blue
    return colours


def _photograph(sheet: Image.Image, street: bool, rng: random.Random) -> Image.Image:
    """Reduce the sheet to the crop, with the light, lens and sensor of a studio or a street camera."""
    image = sheet.reduce(SUPERSAMPLING)
    if street and rng.random() < 0.6:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.9)))
    width, height = image.size
    noise_rng = np.random.default_rng(rng.getrandbits(64))
    noise = noise_rng.standard_normal((height, width, 1), dtype=np.float32)
    pixels = np.asarray(image, dtype=np.float32)
    if street:
        cast = [rng.uniform(0.88, 1.06) for _ in range(3)]
        light = rng.uniform(0.72, 1.12)
        side_light = rng.uniform(-0.14, 0.14)
        contrast, grey_share, haze = rng.uniform(0.78, 1.05), rng.uniform(0.0, 0.30), rng.uniform(0, 26)
        pixels = pixels + grey_share * (pixels.mean(axis=2, keepdims=True) - pixels)
        across = np.linspace(1 - side_light, 1 + side_light, width, dtype=np.float32)[None, :, None]
        gain = across * np.array([light * contrast * channel for channel in cast], dtype=np.float32)
        pixels = pixels * gain + (haze + noise * rng.uniform(2.0, 7.0))
    else:
        pixels = pixels * rng.uniform(0.95, 1.03) + noise * 1.5
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
