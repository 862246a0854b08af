"""What a paper doll carries on its body and holds in its hands."""

from __future__ import annotations

from cskt.data.paperdoll.attributes import NONE, Colour
from cskt.data.paperdoll.canvas import Point, box, ellipse, shade, strip
from cskt.data.paperdoll.doll import Doll

_METAL: Colour = (120, 122, 128)
_INK: Colour = (34, 34, 40)
_BRASS: Colour = (236, 204, 110)
_PAPER: Colour = (250, 248, 242)


def draw_bag_behind(doll: Doll) -> None:
    """What shows of a backpack behind its wearer, seen from the front: its edges beside the torso."""
    if doll.attributes.bag == "backpack" and doll.skeleton.view == "front":
        half = doll.skeleton.shoulder + 0.022
        doll.canvas.shape([box(-half, 0.265, half, 0.475)], shade(doll.colours["bag_colour"], 0.85), "bag")


def draw_bag_on_body(doll: Doll) -> None:
    """A backpack with its straps, or a shoulder bag with its belt across the body."""
    if doll.attributes.bag == "backpack":
        _draw_backpack(doll)
    elif doll.attributes.bag == "shoulder bag":
        _draw_shoulder_bag(doll)


def _draw_backpack(doll: Doll) -> None:
    canvas, colour, shoulder = doll.canvas, doll.colours["bag_colour"], doll.skeleton.shoulder
    if doll.skeleton.view == "front":
        straps = [strip((sign * 0.55 * shoulder, 0.212), (sign * 0.86 * shoulder, 0.39), 0.030) for sign in (-1, 1)]
        canvas.shape(straps, colour, "bag")
    elif doll.skeleton.view == "side":
        back = -shoulder
        pack = [(back + 0.02, 0.225), (back - 0.075, 0.245), (back - 0.092, 0.44), (back + 0.012, 0.47)]
        canvas.shape([pack], colour, "bag")
        canvas.detail([strip((back - 0.088, 0.38), (back + 0.008, 0.40), 0.010)], shade(colour, 0.6), "bag")
        straps = [strip((back + 0.01, 0.222), (0.035, 0.245), 0.022), strip((0.035, 0.24), (back, 0.40), 0.022)]
        canvas.detail(straps, shade(colour, 0.85), "bag")
    else:
        half = 0.098
        canvas.shape([box(-half, 0.245, half, 0.485), ellipse(0.0, 0.25, (half, 0.035))], colour, "bag")
        canvas.shape([box(-0.068, 0.375, 0.068, 0.462)], shade(colour, 0.84), "bag")
        canvas.detail([box(-0.030, 0.30, 0.030, 0.312)], shade(colour, 0.55), "bag")


def _draw_shoulder_bag(doll: Doll) -> None:
    canvas, colour, side = doll.canvas, doll.colours["bag_colour"], doll.skeleton.side
    x, half = (-0.035, 0.062) if side else (-doll.skeleton.hip - 0.030, 0.066)
    shoulder: Point = (0.012 if side else 0.6 * doll.skeleton.shoulder, 0.215)
    canvas.detail([strip(shoulder, (x, 0.475), 0.017)], shade(colour, 0.7), "bag")
    canvas.shape([box(x - half, 0.465, x + half, 0.575)], colour, "bag")
    canvas.shape([box(x - half, 0.465, x + half, 0.505)], shade(colour, 0.8), "bag")


def draw_hand_luggage(doll: Doll) -> None:
    """A handbag hanging from the free hand, or a suitcase on wheels beside it."""
    canvas, (x, y) = doll.canvas, doll.skeleton.carrying_arm[2]
    if doll.attributes.bag == "handbag":
        colour = doll.colours["bag_colour"]
        handles = [strip((x, y - 0.005), (x + end, y + 0.052), 0.011) for end in (-0.045, 0.045)]
        canvas.detail(handles, shade(colour, 0.7), "bag")
        body = [(x - 0.052, y + 0.045), (x + 0.052, y + 0.045), (x + 0.072, y + 0.150), (x - 0.072, y + 0.150)]
        canvas.shape([body], colour, "bag")
        canvas.detail([box(x - 0.014, y + 0.045, x + 0.014, y + 0.072)], _BRASS, "bag")
    elif doll.attributes.bag == "suitcase":
        colour, centre = doll.colours["bag_colour"], x - 0.055
        canvas.detail([strip((x, y), (centre, 0.70), 0.014)], _METAL, "bag")
        canvas.detail([ellipse(centre + wheel, 0.985, (0.016, 0.016)) for wheel in (-0.055, 0.055)], _INK, "bag")
        canvas.shape([box(centre - 0.082, 0.68, centre + 0.082, 0.965)], colour, "bag")
        ribs = [box(centre + rib - 0.006, 0.70, centre + rib + 0.006, 0.945) for rib in (-0.034, 0.034)]
        canvas.detail(ribs, shade(colour, 0.78), "bag")


def draw_held(doll: Doll) -> None:
    """The thing in the holding hand, and the fingers around it."""
    if doll.attributes.held == NONE:
        return
    _DRAW_HELD[doll.attributes.held](doll, doll.skeleton.holding_arm[2])
    x, y = doll.skeleton.holding_arm[2]
    doll.canvas.shape([ellipse(x, y, (0.023, 0.021))], doll.skin, "skin")


def _draw_phone(doll: Doll, hand: Point) -> None:
    x, y = hand
    doll.canvas.shape([box(x - 0.024, y - 0.066, x + 0.024, y + 0.012)], _INK, "held")
    doll.canvas.detail([box(x - 0.017, y - 0.058, x + 0.017, y)], (150, 214, 246), "held")


def _draw_umbrella(doll: Doll, hand: Point) -> None:
    x, y = hand
    colour, top, rim, half = doll.colours["held_colour"], -0.190, -0.035, 0.235
    centre = 0.45 * x
    doll.canvas.detail([strip((x, y + 0.05), (x, top), 0.013)], _METAL, "held")
    doll.canvas.shape([ellipse(centre, rim, (half, rim - top), 180, 360)], colour, "held")
    third = 2 * half / 3
    panels = [
        [(left, rim), (left + third, rim), (centre, top + 0.004)] for left in (centre - half, centre + half - third)
    ]
    doll.canvas.detail(panels, shade(colour, 0.8), "held")


def _draw_bottle(doll: Doll, hand: Point) -> None:
    x, y = hand
    doll.canvas.shape([box(x - 0.022, y - 0.075, x + 0.022, y + 0.030)], (120, 206, 236), "held")
    doll.canvas.shape([box(x - 0.012, y - 0.098, x + 0.012, y - 0.075)], (36, 90, 190), "held")


def _draw_cup(doll: Doll, hand: Point) -> None:
    x, y = hand
    cup = [(x - 0.030, y - 0.062), (x + 0.030, y - 0.062), (x + 0.021, y + 0.026), (x - 0.021, y + 0.026)]
    doll.canvas.shape([cup], _PAPER, "held")
    doll.canvas.detail([box(x - 0.034, y - 0.076, x + 0.034, y - 0.060)], (92, 54, 34), "held")
    doll.canvas.detail([box(x - 0.027, y - 0.036, x + 0.027, y - 0.010)], (170, 116, 70), "held")


def _draw_book(doll: Doll, hand: Point) -> None:
    x, y = hand[0] + (0.020 if doll.skeleton.side else -0.020), hand[1]
    doll.canvas.shape([box(x - 0.052, y - 0.075, x + 0.052, y + 0.045)], doll.colours["held_colour"], "held")
    doll.canvas.detail([box(x - 0.034, y - 0.050, x + 0.034, y - 0.032)], _PAPER, "held")


def _draw_shopping_bag(doll: Doll, hand: Point) -> None:
    x, y = hand
    colour = doll.colours["held_colour"]
    handles = [strip((x, y), (x + end, y + 0.066), 0.010) for end in (-0.026, 0.026)]
    doll.canvas.detail(handles, shade(colour, 0.6), "held")
    doll.canvas.shape([box(x - 0.060, y + 0.058, x + 0.060, y + 0.195)], colour, "held")
    doll.canvas.detail([ellipse(x, y + 0.126, (0.026, 0.026))], shade(colour, 0.62), "held")


_DRAW_HELD = {
    "phone": _draw_phone,
    "umbrella": _draw_umbrella,
    "bottle": _draw_bottle,
    "cup": _draw_cup,
    "book": _draw_book,
    "shopping bag": _draw_shopping_bag,
}
