"""The head: face, hair, headwear and eyewear."""

from __future__ import annotations

from cskt.data.paperdoll.attributes import NONE, Colour
from cskt.data.paperdoll.canvas import both_sides, box, ellipse, limb, shade
from cskt.data.paperdoll.doll import Doll

_INK: Colour = (34, 34, 40)
_LENS: Colour = (226, 240, 248)
_LIPSTICK: Colour = (196, 50, 66)
_HAIR_TIE: Colour = (206, 60, 90)
_CURLS = ((-1.05, 0.15), (-0.95, -0.5), (-0.45, -0.95), (0.45, -0.95), (0.95, -0.5), (1.05, 0.15))
"""Centres of the curls around the head, in radii of the head."""


def draw_hair_behind(doll: Doll) -> None:
    """Draw hair that hangs behind the shoulders or stands out around the head."""
    (x, y), (radius_x, radius_y) = doll.skeleton.head, doll.skeleton.head_radius
    colour = doll.colours["hair_colour"]
    if doll.attributes.hair == "long" and doll.skeleton.view == "front":
        half = radius_x + 0.026
        doll.canvas.shape([box(x - half, y, x + half, 0.300), ellipse(x, y, (half, radius_y + 0.012))], colour, "hair")
    elif doll.attributes.hair == "curly":
        curls = [
            ellipse(x + across * radius_x, y + down * radius_y, (0.046, 0.046))
            for across, down in _CURLS
            if not (doll.skeleton.side and across > 0.5)
        ]
        doll.canvas.shape(curls, colour, "hair")


def draw_head(doll: Doll) -> None:
    """Draw the head over the shoulders."""
    (x, y), (radius_x, radius_y) = doll.skeleton.head, doll.skeleton.head_radius
    canvas, view, style = doll.canvas, doll.skeleton.view, doll.attributes.hair
    hatless = doll.attributes.headwear == NONE
    if style == "bun" and hatless and view != "back":
        centre = x - 0.85 * radius_x if view == "side" else x
        bun = ellipse(centre, y - 0.92 * radius_y, (0.040, 0.038))
        canvas.shape([bun], doll.colours["hair_colour"], "hair")
    tip = x + radius_x
    nose = [(tip - 0.012, y - 0.012), (tip + 0.020, y + 0.022), (tip - 0.012, y + 0.030)]
    face = ellipse(x, y, (radius_x, radius_y))
    canvas.shape([face, nose] if view == "side" else [face], doll.skin, "skin")
    if style != "bald":
        _draw_hair(doll)
    if view != "back":
        _draw_face(doll)
    if not hatless:
        _draw_headwear(doll)


def _draw_hair(doll: Doll) -> None:
    (x, y), (radius_x, radius_y) = doll.skeleton.head, doll.skeleton.head_radius
    canvas, view, style, colour = doll.canvas, doll.skeleton.view, doll.attributes.hair, doll.colours["hair_colour"]
    if view == "front":
        crown = ellipse(x, y, (radius_x + 0.006, radius_y + 0.008), 186, 354)
        canvas.shape([[*crown, (x - 0.25 * radius_x, y - 0.52 * radius_y)]], colour, "hair")
        if style == "long":
            lock = [(radius_x + 0.010, y - 0.30 * radius_y), (radius_x + 0.028, 0.295), (0.045, 0.295)]
            locks = both_sides([*lock, (radius_x - 0.012, y + 0.2 * radius_y)], x)
            canvas.detail(locks, colour, "hair")
    elif view == "side":
        back = x - radius_x
        cap = ellipse(x, y, (radius_x + 0.008, radius_y + 0.008), 120, 335)
        canvas.shape([[*cap, (x + 0.030, y - 0.42 * radius_y), (x - 0.014, y - 0.1 * radius_y)]], colour, "hair")
        if style == "long":
            fall = [(back - 0.008, y - 0.02), (x - 0.012, y - 0.02), (x - 0.004, 0.300), (back - 0.026, 0.320)]
            canvas.detail([fall], colour, "hair")
        elif style == "ponytail":
            tail = [(back + 0.01, y - 0.035), (back - 0.055, y - 0.005), (back - 0.060, y + 0.13)]
            canvas.shape(limb(tail, (0.034, 0.050, 0.026)), colour, "hair")
    else:
        nape = y + (0.55 if style == "short" else 0.75) * radius_y
        round_head = ellipse(x, y, (radius_x + 0.007, radius_y + 0.008), 160, 380)
        canvas.shape([[*round_head, (x + 0.72 * radius_x, nape), (x - 0.72 * radius_x, nape)]], colour, "hair")
        if style == "long":
            half = radius_x + 0.012
            fall = [(x - half, y), (x + half, y), (x + half + 0.010, 0.330), (x - half - 0.010, 0.330)]
            canvas.shape([fall, ellipse(x, y, (half, radius_y))], colour, "hair")
        elif style == "ponytail":
            canvas.shape(limb(((x, y - 0.01), (x, 0.320)), (0.056, 0.036)), shade(colour, 0.85), "hair")
            canvas.detail([box(x - 0.020, y - 0.010, x + 0.020, y + 0.008)], _HAIR_TIE, "hair")
        elif style == "bun" and doll.attributes.headwear == NONE:
            canvas.shape([ellipse(x, y - 0.80 * radius_y, (0.042, 0.040))], shade(colour, 0.85), "hair")


def _draw_face(doll: Doll) -> None:
    (x, y), (radius_x, radius_y) = doll.skeleton.head, doll.skeleton.head_radius
    canvas, side = doll.canvas, doll.skeleton.side
    eye_y = y + 0.10 * radius_y
    eyes = [x + 0.55 * radius_x] if side else [x - 0.40 * radius_x, x + 0.40 * radius_x]
    lips = _LIPSTICK if doll.attributes.gender == "woman" else shade(doll.skin, 0.62)
    canvas.detail([ellipse(x + (0.62 * radius_x if side else 0), y + 0.58 * radius_y, (0.018, 0.009))], lips, "skin")
    if doll.attributes.eyewear == NONE:
        canvas.detail([ellipse(eye, eye_y, (0.010, 0.012)) for eye in eyes], _INK, "skin")
        return
    bridge = box(x - 0.35 * radius_x if side else eyes[0], eye_y - 0.006, eyes[-1], eye_y + 0.006)
    canvas.detail([bridge, *(ellipse(eye, eye_y, (0.028, 0.025)) for eye in eyes)], _INK, "eyewear")
    if doll.attributes.eyewear == "glasses":
        canvas.detail([ellipse(eye, eye_y, (0.017, 0.015)) for eye in eyes], _LENS, "eyewear")


def _draw_headwear(doll: Doll) -> None:
    (x, y), (radius_x, radius_y) = doll.skeleton.head, doll.skeleton.head_radius
    canvas, kind, view = doll.canvas, doll.attributes.headwear, doll.skeleton.view
    colour = doll.colours["headwear_colour"]
    brow, half_width, half_height, darker = y - 0.26 * radius_y, radius_x + 0.014, 0.88 * radius_y, shade(colour, 0.8)
    if kind == "hat":
        canvas.shape([ellipse(x, brow - 0.008, (half_width + 0.070, 0.024))], darker, "headwear")
        canvas.shape([ellipse(x, brow - 0.018, (half_width - 0.008, half_height), 180, 360)], colour, "headwear")
        band = box(x - half_width + 0.010, brow - 0.036, x + half_width - 0.010, brow - 0.014)
        canvas.detail([band], shade(colour, 0.5), "headwear")
        return
    canvas.shape([ellipse(x, brow, (half_width, half_height), 180, 360)], colour, "headwear")
    if kind == "beanie":
        fold = box(x - half_width - 0.004, brow - 0.020, x + half_width + 0.004, brow + 0.012)
        canvas.shape([fold], darker, "headwear")
        canvas.shape([ellipse(x, brow - 1.06 * half_height, (0.028, 0.026))], shade(colour, 1.6), "headwear")
    elif view == "side":
        peak = [(x + 0.02, brow - 0.022), (x + half_width + 0.072, brow - 0.004),
                (x + half_width + 0.066, brow + 0.014), (x + 0.02, brow + 0.010)]  # fmt: skip
        canvas.shape([peak], darker, "headwear")
    elif view == "front":
        canvas.shape([ellipse(x, brow + 0.004, (half_width + 0.004, 0.024))], darker, "headwear")
