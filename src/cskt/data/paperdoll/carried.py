"""Things that a paper doll carries on its body and holds in its hands."""

from __future__ import annotations

from collections.abc import Sequence

from cskt.data.paperdoll.attributes import NONE, Colour
from cskt.data.paperdoll.canvas import Polygon, both_sides, box, ellipse, shade, shifted, strip
from cskt.data.paperdoll.doll import Doll

_METAL: Colour = (120, 122, 128)
_INK: Colour = (34, 34, 40)
_BRASS: Colour = (236, 204, 110)
_PAPER: Colour = (250, 248, 242)

_IN_THE_HAND: dict[str, Sequence[tuple[bool, Colour | float, Sequence[Polygon]]]] = {
    "phone": [
        (True, _INK, [box(-0.024, -0.066, 0.024, 0.012)]),
        (False, (150, 214, 246), [box(-0.017, -0.058, 0.017, 0.0)]),
    ],
    "bottle": [
        (True, (120, 206, 236), [box(-0.022, -0.075, 0.022, 0.030)]),
        (True, (36, 90, 190), [box(-0.012, -0.098, 0.012, -0.075)]),
    ],
    "cup": [
        (True, _PAPER, [[(-0.030, -0.062), (0.030, -0.062), (0.021, 0.026), (-0.021, 0.026)]]),
        (False, (92, 54, 34), [box(-0.034, -0.076, 0.034, -0.060)]),
        (False, (170, 116, 70), [box(-0.027, -0.036, 0.027, -0.010)]),
    ],
    "book": [
        (True, 1.0, [box(-0.052, -0.075, 0.052, 0.045)]),
        (False, _PAPER, [box(-0.034, -0.050, 0.034, -0.032)]),
    ],
    "shopping bag": [
        (False, 0.6, [strip((0.0, 0.0), (end, 0.066), 0.010) for end in (-0.026, 0.026)]),
        (True, 1.0, [box(-0.060, 0.058, 0.060, 0.195)]),
        (False, 0.62, [ellipse(0.0, 0.126, (0.026, 0.026))]),
    ],
    "handbag": [
        (False, 0.7, [strip((0.0, -0.005), (end, 0.052), 0.011) for end in (-0.045, 0.045)]),
        (True, 1.0, [[(-0.052, 0.045), (0.052, 0.045), (0.072, 0.150), (-0.072, 0.150)]]),
        (False, _BRASS, [box(-0.014, 0.045, 0.014, 0.072)]),
    ],
}
"""Shapes of each thing around the hand: outlined or not, RGB or a shade of the thing's own colour, polygons."""


def draw_bag_behind(doll: Doll) -> None:
    """Draw the edges of a backpack beside the torso, seen from the front."""
    if doll.attributes.bag == "backpack" and doll.skeleton.view == "front":
        half = doll.skeleton.shoulder + 0.022
        doll.canvas.shape([box(-half, 0.265, half, 0.475)], shade(doll.colours["bag_colour"], 0.85), "bag")


def draw_bag_on_body(doll: Doll) -> None:
    """Draw a backpack with its straps, or a shoulder bag with its belt across the body."""
    if doll.attributes.bag not in ("backpack", "shoulder bag"):
        return
    canvas, colour, shoulder = doll.canvas, doll.colours["bag_colour"], doll.skeleton.shoulder
    if doll.attributes.bag == "shoulder bag":
        side = doll.skeleton.side
        x, half = (-0.035, 0.062) if side else (-doll.skeleton.hip - 0.030, 0.066)
        canvas.detail([strip((0.012 if side else 0.6 * shoulder, 0.215), (x, 0.475), 0.017)], shade(colour, 0.7), "bag")
        canvas.shape([box(x - half, 0.465, x + half, 0.575)], colour, "bag")
        canvas.shape([box(x - half, 0.465, x + half, 0.505)], shade(colour, 0.8), "bag")
    elif doll.skeleton.view == "front":
        straps = [strip((sign * 0.55 * shoulder, 0.212), (sign * 0.86 * shoulder, 0.39), 0.030) for sign in (-1, 1)]
        canvas.shape(straps, colour, "bag")
    elif doll.skeleton.view == "back":
        canvas.shape([box(-0.098, 0.245, 0.098, 0.485), ellipse(0.0, 0.25, (0.098, 0.035))], colour, "bag")
        canvas.shape([box(-0.068, 0.375, 0.068, 0.462)], shade(colour, 0.84), "bag")
        canvas.detail([box(-0.030, 0.30, 0.030, 0.312)], shade(colour, 0.55), "bag")
    else:
        back = -shoulder
        pack = [(back + 0.02, 0.225), (back - 0.075, 0.245), (back - 0.092, 0.44), (back + 0.012, 0.47)]
        canvas.shape([pack], colour, "bag")
        canvas.detail([strip((back - 0.088, 0.38), (back + 0.008, 0.40), 0.010)], shade(colour, 0.6), "bag")
        straps = [strip((back + 0.01, 0.222), (0.035, 0.245), 0.022), strip((0.035, 0.24), (back, 0.40), 0.022)]
        canvas.detail(straps, shade(colour, 0.85), "bag")


def draw_hand_luggage(doll: Doll) -> None:
    """Draw a handbag that hangs from the free hand, or a suitcase on wheels beside it."""
    if doll.attributes.bag == "handbag":
        _draw_in_hand(doll, "handbag", doll.skeleton.carrying_arm[2], "bag")
    elif doll.attributes.bag == "suitcase":
        canvas, (x, y), colour = doll.canvas, doll.skeleton.carrying_arm[2], doll.colours["bag_colour"]
        centre = x - 0.055
        canvas.detail([strip((x, y), (centre, 0.70), 0.014)], _METAL, "bag")
        canvas.detail([ellipse(centre + wheel, 0.985, (0.016, 0.016)) for wheel in (-0.055, 0.055)], _INK, "bag")
        canvas.shape([box(centre - 0.082, 0.68, centre + 0.082, 0.965)], colour, "bag")
        canvas.detail(both_sides(box(0.028, 0.70, 0.040, 0.945), centre), shade(colour, 0.78), "bag")


def draw_held(doll: Doll) -> None:
    """Draw the thing in the holding hand, and the fingers around it."""
    held, (x, y) = doll.attributes.held, doll.skeleton.holding_arm[2]
    if held == NONE:
        return
    if held == "umbrella":
        colour, top, rim, half = doll.colours["held_colour"], -0.190, -0.035, 0.235
        centre, third = 0.45 * x, 2 * half / 3
        doll.canvas.detail([strip((x, y + 0.05), (x, top), 0.013)], _METAL, "held")
        doll.canvas.shape([ellipse(centre, rim, (half, rim - top), 180, 360)], colour, "held")
        lefts = (centre - half, centre + half - third)
        panels = [[(left, rim), (left + third, rim), (centre, top + 0.004)] for left in lefts]
        doll.canvas.detail(panels, shade(colour, 0.8), "held")
    else:
        aside = 0.0 if held != "book" else 0.020 if doll.skeleton.side else -0.020
        _draw_in_hand(doll, held, (x + aside, y), "held")
    doll.canvas.shape([ellipse(x, y, (0.023, 0.021))], doll.skin, "skin")


def _draw_in_hand(doll: Doll, kind: str, hand: tuple[float, float], part: str) -> None:
    for is_outlined, colour, polygons in _IN_THE_HAND[kind]:
        rgb = colour if isinstance(colour, tuple) else shade(doll.colours[f"{part}_colour"], colour)
        draw = doll.canvas.shape if is_outlined else doll.canvas.detail
        draw([shifted(polygon, *hand) for polygon in polygons], rgb, part)
