"""The upper garment: fabric, torso, sleeves, and the details of each type (collar, hood, zip, hem, print)."""

from __future__ import annotations

from PIL import Image, ImageDraw

from cskt.data.paperdoll.attributes import LAYERED, NONE, Attributes, Colour
from cskt.data.paperdoll.canvas import Canvas, Polygon, between, both_sides, box, ellipse, limb, shade, strip
from cskt.data.paperdoll.doll import WAIST_Y, Doll, Joints, Skeleton

_HEM_Y = {"coat": 0.74, "dress": 0.73, "jacket": 0.555, "hoodie": 0.56, "sweater": 0.555}
_FLARE = {"coat": 0.020, "dress": 0.052}
_SHORT_SLEEVE = {"t-shirt": 0.75, "tank top": 0.0, "dress": 0.6}
"""Share of the upper arm that is covered; other garments have long sleeves."""
_PATTERN_PERIODS = {"striped": 0.062, "checked": 0.066, "dotted": 0.058}
"""Period of each woven pattern, in body units."""


def weave(attributes: Attributes, colours: dict[str, Colour], canvas: Canvas) -> Image.Image | None:
    """Return a sheet of the garment's fabric, as fine as the figure is large; None for a plain or printed one."""
    if attributes.pattern not in _PATTERN_PERIODS:
        return None
    ground, ink = colours["upper_colour"], colours["pattern_colour"]
    width, height = canvas.image.size
    sheet = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(sheet)
    period = max(10, round(_PATTERN_PERIODS[attributes.pattern] * canvas.placement.scale_pixels))
    rows, columns = range(0, height, period), range(0, width, period)
    if attributes.pattern == "striped":
        for y in rows:
            draw.rectangle((0, y, width, y + period // 2 - 1), fill=ink)
    elif attributes.pattern == "checked":
        band = period // 3
        mixed = ((ground[0] + ink[0]) // 2, (ground[1] + ink[1]) // 2, (ground[2] + ink[2]) // 2)
        for x in columns:
            draw.rectangle((x, 0, x + band, height), fill=mixed)
        for y in rows:
            draw.rectangle((0, y, width, y + band), fill=mixed)
            for x in columns:
                draw.rectangle((x, y, x + band, y + band), fill=ink)
    else:
        radius = 0.30 * period
        for row, y in enumerate(rows):
            for x in range((row % 2) * period // 2, width, period):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return sheet


def draw_sleeve(doll: Doll, arm: Joints, light: float) -> None:
    """Cover an arm as far as the garment does; `light` below 1 for an arm behind the body."""
    shoulder, elbow, hand = arm
    size, colour = doll.skeleton.limb, shade(doll.colours["upper_colour"], light)
    share = _SHORT_SLEEVE.get(doll.attributes.upper)
    if share is None:
        tube = limb((shoulder, elbow, between(elbow, hand, 0.86)), [width * size for width in (0.066, 0.060, 0.054)])
        doll.canvas.shape(tube, colour, "upper", doll.fabric)
    elif share > 0:
        shoulder_end, _, tube_wall = limb((shoulder, between(shoulder, elbow, share)), (0.070 * size, 0.072 * size))
        doll.canvas.shape([shoulder_end, tube_wall], colour, "upper", doll.fabric)


def draw_upper(doll: Doll) -> None:
    """Draw neck, torso and the garment's details."""
    kind, view, colour = doll.attributes.upper, doll.skeleton.view, doll.colours["upper_colour"]
    hem_y = _HEM_Y.get(kind, 0.545)
    doll.canvas.shape([box(-0.030, 0.150, 0.030, 0.215)], shade(doll.skin, 0.9), "skin")
    doll.canvas.shape([_torso(doll.skeleton, hem_y, _FLARE.get(kind, 0.0))], colour, "upper", doll.fabric)
    if kind == "shirt":
        _draw_shirt_front(doll, hem_y)
    elif kind == "hoodie":
        _draw_hood(doll, hem_y)
    elif kind in LAYERED:
        _draw_opening(doll, hem_y)
    else:
        _draw_neckline_and_hem(doll, hem_y)
    if doll.attributes.pattern == "printed" and view == "front":
        doll.canvas.detail([ellipse(0.0, 0.325, (0.046, 0.042))], doll.colours["pattern_colour"], "upper")
        doll.canvas.detail([[(0.0, 0.295), (0.026, 0.345), (-0.026, 0.345)]], colour, "upper")


def _torso(skeleton: Skeleton, hem_y: float, flare: float) -> Polygon:
    shoulder, waist, hem = skeleton.shoulder, skeleton.waist, skeleton.hip + 0.006 + flare
    if skeleton.side:
        return [(-0.035, 0.200), (0.035, 0.200), (shoulder, 0.300), (waist, WAIST_Y), (hem, hem_y), (-hem, hem_y),
                (-waist, WAIST_Y), (-shoulder, 0.270)]  # fmt: skip
    right = [(0.042, 0.200), (shoulder, 0.228), (shoulder - 0.006, 0.29), (waist, WAIST_Y), (hem, hem_y)]
    return [(-0.042, 0.200), *right, *[(-x, y) for x, y in reversed(right[1:])]]


def _seam_colour(doll: Doll) -> Colour:
    """Return a colour darker than the garment; on black, where nothing is darker, a lighter one."""
    colour = doll.colours["upper_colour"]
    return shade(colour, 0.66) if sum(colour) > 150 else shade(colour, 1.4)


def _draw_neckline_and_hem(doll: Doll, hem_y: float) -> None:
    """Draw the details of a T-shirt, tank top, sweater or dress."""
    canvas, skeleton, kind = doll.canvas, doll.skeleton, doll.attributes.upper
    if kind in ("dress", "sweater"):
        half, y = (skeleton.waist, WAIST_Y) if kind == "dress" else (skeleton.hip, hem_y - 0.010)
        canvas.detail([strip((-half, y), (half, y), 0.020)], _seam_colour(doll), "upper")
    if skeleton.view == "front":
        depth = 0.030 if kind == "sweater" else 0.044
        canvas.shape([ellipse(0.0, 0.196, (0.034, depth), 0, 180)], doll.skin, "skin")
    if kind == "tank top" and not skeleton.side:
        outer = skeleton.shoulder
        bare = both_sides([(outer + 0.010, 0.21), (0.072, 0.21), (0.082, 0.27), (outer + 0.004, 0.31)])
        canvas.detail(bare, doll.skin, "skin")


def _draw_shirt_front(doll: Doll, hem_y: float) -> None:
    canvas, colour = doll.canvas, doll.colours["upper_colour"]
    if doll.skeleton.view != "front":
        canvas.shape([box(-0.04, 0.190, 0.04, 0.212)], shade(colour, 1.6), "upper")
        return
    canvas.detail([strip((0.0, 0.225), (0.0, hem_y), 0.012)], _seam_colour(doll), "upper")
    buttons = [ellipse(0.0, y, (0.007, 0.007)) for y in (0.27, 0.33, 0.39, 0.45, 0.51)]
    canvas.detail(buttons, shade(colour, 2.2), "upper")
    collar = both_sides([(0.004, 0.232), (0.050, 0.196), (0.048, 0.236), (0.026, 0.250)])
    canvas.shape(collar, shade(colour, 1.6), "upper")


def _draw_hood(doll: Doll, hem_y: float) -> None:
    canvas, hip, darker = doll.canvas, doll.skeleton.hip, shade(doll.colours["upper_colour"], 0.86)
    canvas.detail([strip((-hip, hem_y - 0.008), (hip, hem_y - 0.008), 0.016)], _seam_colour(doll), "upper")
    if doll.skeleton.side:
        canvas.shape([ellipse(-0.045, 0.215, (0.055, 0.036))], darker, "upper")
        return
    canvas.shape([ellipse(0.0, 0.205, (0.072, 0.034))], darker, "upper")
    if doll.skeleton.view == "front":
        canvas.shape([[(-0.05, 0.42), (0.05, 0.42), (0.07, 0.50), (-0.07, 0.50)]], darker, "upper")
        canvas.shape([ellipse(0.0, 0.198, (0.036, 0.026))], doll.skin, "skin")
        cords = [strip((sign * 0.022, 0.23), (sign * 0.024, 0.30), 0.008) for sign in (-1, 1)]
        canvas.detail(cords, (245, 245, 245), "upper")


def _draw_opening(doll: Doll, hem_y: float) -> None:
    """Draw the front of a jacket or coat: the inner garment between its halves, or a closed zip."""
    canvas, colour, skeleton = doll.canvas, doll.colours["upper_colour"], doll.skeleton
    is_open = doll.attributes.inner_colour != NONE
    if is_open and skeleton.side:
        shoulder, waist, hip, hem_y = skeleton.shoulder, skeleton.waist, skeleton.hip, min(hem_y, 0.54)
        inner = [(0.018, 0.200), (0.036, 0.200), (shoulder, 0.300), (waist, WAIST_Y), (hip, hem_y)]
        canvas.shape([[*inner, (hip - 0.024, hem_y)]], doll.colours["inner_colour"], "inner")
    elif is_open and skeleton.view == "front":
        hem_y = min(hem_y, 0.545)
        inner = [(-0.036, 0.200), (0.036, 0.200), (0.040, 0.32), (0.046, hem_y), (-0.046, hem_y), (-0.040, 0.32)]
        canvas.shape([inner], doll.colours["inner_colour"], "inner")
        canvas.detail([ellipse(0.0, 0.197, (0.028, 0.026), 0, 180)], doll.skin, "skin")
        lapels = both_sides([(0.036, 0.196), (0.058, 0.200), (0.066, 0.300), (0.040, 0.345)])
        canvas.shape(lapels, shade(colour, 1.35), "upper")
    elif skeleton.view == "front":
        canvas.detail([strip((0.0, 0.215), (0.0, hem_y), 0.012)], _seam_colour(doll), "upper")
        collar = both_sides([(0.006, 0.245), (0.056, 0.192), (0.062, 0.235)])
        canvas.shape(collar, shade(colour, 1.35), "upper")
