"""One image of one person: scene, figure and camera put together."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cskt.data.paperdoll.attributes import COLOURS, HAIR_COLOURS, NONE, PART_COLOURS, Attributes, Colour
from cskt.data.paperdoll.canvas import PART_LABELS, SUPERSAMPLING, Canvas, Placement
from cskt.data.paperdoll.doll import Doll, Pose, View, build_skeleton, sample_pose
from cskt.data.paperdoll.figure import draw_figure
from cskt.data.paperdoll.scene import draw_occluder, draw_shadow, draw_street, draw_studio
from cskt.data.paperdoll.upper import weave
from cskt.data.paperdoll.variety import (
    StyledCanvas,
    draw_backdrop,
    draw_obstacle,
    paint,
    photograph_anyhow,
    place_anywhere,
    vary_body,
)

Domain: TypeAlias = Literal["source", "target", "varied"]
Pixels: TypeAlias = NDArray[np.float32]
Range: TypeAlias = tuple[float, float]
"""Bounds of a number that is drawn anew for each image."""

MIN_VISIBLE_SHARE = 0.0012
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


@dataclasses.dataclass(frozen=True)
class CameraStyle:
    """Surroundings and camera of a domain. Shares are of the width or height of the image."""

    draw_background: Callable[[tuple[int, int], random.Random], Image.Image]
    shadow_opacity: float
    occluder_probability: float
    height_share: Range
    """Height of the person."""
    top_share: Range
    """Space above the head."""
    max_offset_share: float
    """Distance of the person from the middle."""
    lean: Range
    colour_spread: float
    """Difference of a channel, of 255, from the named colour."""
    blur_probability: float
    expose: Callable[[Pixels, Pixels, random.Random], Pixels]
    """Pixels [h, w, 3] and noise [h, w, 1] to the pixels that the sensor records."""
    jpeg_quality: tuple[int, int]


def draw_person(
    attributes: Attributes, rng: random.Random, *, domain: Domain = "target", view: View | None = None,
    size_pixels: tuple[int, int] | None = None,
) -> Drawing:  # fmt: skip
    """Draw one image of a person; all differences between images are drawn from `rng`.

    Args:
        attributes: the person, from `sample_attributes`.
        rng: decides pose, crop, scene and camera; an equally seeded one gives equal pixels.
        domain: "source", a plain studio, "target", a street camera, or "varied", any backdrop, rendering and camera
            but those of the street.
        view: place of the camera; drawn when not given.
        size_pixels: width and height of the crop; drawn when not given (heights of 110 to 190).
    """
    if domain == "varied":
        return _draw_varied(attributes, rng, view, size_pixels)
    style = CAMERA_STYLES[domain]
    pose = sample_pose(rng, view)
    height = rng.randint(110, 190)
    width, height = size_pixels or (round(height * rng.uniform(0.42, 0.50)), height)
    sheet_size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    placement = _place(attributes, sheet_size, style, rng)
    background = style.draw_background(sheet_size, rng)
    draw_shadow(background, placement, style.shadow_opacity)
    canvas = Canvas(background, placement)
    colours = _image_colours(attributes, style.colour_spread, rng)
    fabric = weave(attributes, colours, canvas)
    draw_figure(Doll(canvas, attributes, build_skeleton(attributes, pose), colours, fabric))
    if style.occluder_probability and rng.random() < style.occluder_probability:
        draw_occluder(canvas, rng)

    return _drawing(canvas, _photograph(canvas.image, style, rng), pose, rng.randint(*style.jpeg_quality))


def _draw_varied(
    attributes: Attributes, rng: random.Random, view: View | None, size_pixels: tuple[int, int] | None
) -> Drawing:
    """Draw one image of the varied domain; see `variety`."""
    pose = sample_pose(rng, view)
    height = rng.randint(96, 170)
    width, height = size_pixels or (round(height * rng.uniform(0.40, 0.55)), height)
    sheet_size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    room_above = 0.19 if attributes.held == "umbrella" else 0.06
    placement = place_anywhere(sheet_size, room_above, rng)
    background = draw_backdrop(sheet_size, rng)
    if rng.random() < 0.5:
        draw_shadow(background, placement, rng.uniform(0.05, 0.5))
    canvas = StyledCanvas(background, placement, rng)
    colours = _image_colours(attributes, rng.uniform(2, 12), rng)
    fabric = weave(attributes, colours, canvas)
    draw_figure(Doll(canvas, attributes, vary_body(build_skeleton(attributes, pose), rng), colours, fabric))
    if rng.random() < 0.25:
        draw_obstacle(canvas, rng)
    return _drawing(canvas, photograph_anyhow(paint(canvas, rng), rng), pose, rng.randint(35, 95))


def _drawing(canvas: Canvas, image: Image.Image, pose: Pose, jpeg_quality: int) -> Drawing:
    """Return an image with its mask and with the parts that are large enough to be seen."""
    width, height = image.size
    labels = canvas.labels.resize((width, height), Image.Resampling.NEAREST)
    areas = labels.histogram()
    visible = frozenset(
        name for index, name in enumerate(PART_LABELS) if areas[index] > MIN_VISIBLE_SHARE * width * height
    )
    mask = Image.frombytes("P", labels.size, labels.tobytes())
    mask.putpalette([channel for colour in PART_COLOURS.values() for channel in colour])
    return Drawing(image, mask, pose.view, pose.walking, visible - {"background"}, jpeg_quality)


def _place(attributes: Attributes, size: tuple[int, int], style: CameraStyle, rng: random.Random) -> Placement:
    width, height = size
    height_share, top_share = rng.uniform(*style.height_share), rng.uniform(*style.top_share)
    if attributes.age == "child":
        height_share *= 0.84
    if attributes.held == "umbrella":
        height_share, top_share = 0.84 * height_share, top_share + 0.16
    elif attributes.headwear != NONE or attributes.hair == "bun":
        height_share, top_share = 0.97 * height_share, top_share + 0.03
    return Placement(
        x_pixels=width * (0.5 + rng.uniform(-style.max_offset_share, style.max_offset_share)),
        y_pixels=height * top_share,
        scale_pixels=height * height_share,
        lean=rng.uniform(*style.lean),
        mirrored=rng.random() < 0.5,
    )


def _image_colours(attributes: Attributes, spread: float, rng: random.Random) -> dict[str, Colour]:
    """Return the RGB of every coloured thing in this image: the named colour, each channel moved by up to `spread`."""
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


def _photograph(sheet: Image.Image, style: CameraStyle, rng: random.Random) -> Image.Image:
    """Reduce the sheet to the crop, with the light, lens and sensor of the camera."""
    image = sheet.reduce(SUPERSAMPLING)
    if style.blur_probability and rng.random() < style.blur_probability:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.9)))
    width, height = image.size
    noise_rng = np.random.default_rng(rng.getrandbits(64))
    noise = noise_rng.standard_normal((height, width, 1), dtype=np.float32)
    pixels = style.expose(np.asarray(image, dtype=np.float32), noise, rng)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _expose_in_studio(pixels: Pixels, noise: Pixels, rng: random.Random) -> Pixels:
    return pixels * rng.uniform(0.95, 1.03) + noise * 1.5


def _expose_in_street(pixels: Pixels, noise: Pixels, rng: random.Random) -> Pixels:
    """Expose with a colour cast, light from a side, low contrast and saturation, and haze."""
    colour_cast = [rng.uniform(0.88, 1.06) for _ in range(3)]
    light = rng.uniform(0.72, 1.12)
    side_light = rng.uniform(-0.14, 0.14)
    contrast, grey_share, haze = rng.uniform(0.78, 1.05), rng.uniform(0.0, 0.30), rng.uniform(0, 26)
    pixels = pixels + grey_share * (pixels.mean(axis=2, keepdims=True) - pixels)
    across = np.linspace(1 - side_light, 1 + side_light, pixels.shape[1], dtype=np.float32)[None, :, None]
    gain = across * np.array([light * contrast * channel for channel in colour_cast], dtype=np.float32)
    return pixels * gain + (haze + noise * rng.uniform(2.0, 7.0))


CAMERA_STYLES: dict[Domain, CameraStyle] = {
    "source": CameraStyle(
        draw_studio, shadow_opacity=0.15, occluder_probability=0, height_share=(0.84, 0.94), top_share=(0.02, 0.05),
        max_offset_share=0.03, lean=(-0.02, 0.02), colour_spread=5, blur_probability=0, expose=_expose_in_studio,
        jpeg_quality=(88, 94),
    ),
    "target": CameraStyle(
        draw_street, shadow_opacity=0.35, occluder_probability=0.25, height_share=(0.78, 0.98), top_share=(-0.01, 0.06),
        max_offset_share=0.07, lean=(-0.05, 0.05), colour_spread=9, blur_probability=0.6, expose=_expose_in_street,
        jpeg_quality=(45, 85),
    ),
}  # fmt: skip
