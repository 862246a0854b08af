"""The paper doll's body and the order in which its parts hide each other: legs, shoes, arms, skirt or trousers.

The upper garment is in `upper`, the head in `head`, bags and things in the hand in `carried`.
"""

from __future__ import annotations

from cskt.data.paperdoll.attributes import NONE, Colour
from cskt.data.paperdoll.canvas import between, box, ellipse, limb, shade, strip
from cskt.data.paperdoll.carried import draw_bag_behind, draw_bag_on_body, draw_hand_luggage, draw_held
from cskt.data.paperdoll.doll import HIP_Y, WAIST_Y, Doll, Joints
from cskt.data.paperdoll.head import draw_hair_behind, draw_head
from cskt.data.paperdoll.upper import draw_sleeve, draw_upper

FAR_SHADE = 0.84
"""Light on the limb behind the body, relative to the one in front."""


def draw_figure(doll: Doll) -> None:
    """Draw one person on the doll's canvas, from back to front."""
    side = doll.skeleton.side
    # Seen from behind, the body hides what the bent arm holds; a bag at arm's length is visible.
    holding_behind = doll.skeleton.view == "back" and doll.attributes.held not in (NONE, "shopping bag")

    draw_bag_behind(doll)
    draw_hair_behind(doll)
    if holding_behind:
        _draw_holding_arm(doll)
    if side:
        _draw_carrying_arm(doll)
    for leg, light in zip(doll.skeleton.legs, (FAR_SHADE if side else 1.0, 1.0), strict=True):
        _draw_leg(doll, leg, light)
    _draw_lower(doll)
    draw_upper(doll)
    if not side:
        draw_bag_on_body(doll)
        _draw_carrying_arm(doll)
    draw_head(doll)
    if side:
        draw_bag_on_body(doll)
    if not holding_behind:
        _draw_holding_arm(doll)


def _draw_holding_arm(doll: Doll) -> None:
    _draw_arm(doll, doll.skeleton.holding_arm, 1.0)
    draw_held(doll)


def _draw_carrying_arm(doll: Doll) -> None:
    _draw_arm(doll, doll.skeleton.carrying_arm, FAR_SHADE if doll.skeleton.side else 1.0)
    draw_hand_luggage(doll)


def _draw_arm(doll: Doll, arm: Joints, light: float) -> None:
    widths = [width * doll.skeleton.limb for width in (0.052, 0.046, 0.036)]
    doll.canvas.shape([*limb(arm, widths), ellipse(*arm[2], (0.026, 0.028))], shade(doll.skin, light), "skin")
    draw_sleeve(doll, arm, light)


def _draw_leg(doll: Doll, leg: Joints, light: float) -> None:
    hip, knee, ankle = leg
    canvas, size, kind = doll.canvas, doll.skeleton.limb, doll.attributes.lower
    canvas.shape(limb(leg, (0.078 * size, 0.062 * size, 0.046 * size)), shade(doll.skin, light), "skin")
    _draw_shoe(doll, leg, light)
    if kind not in ("trousers", "jeans", "shorts"):
        return
    colour = shade(doll.colours["lower_colour"], light)
    if kind == "shorts":
        *_, tube = limb((hip, between(hip, knee, 0.88)), (0.112 * size, 0.116 * size))
        canvas.shape([tube, ellipse(*hip, (0.05 * size, 0.05))], colour, "lower")
        return
    jeans = kind == "jeans"
    cuff = between(knee, ankle, 0.92 if jeans else 0.99)
    widths = (0.104, 0.080, 0.070) if jeans else (0.106, 0.092, 0.088)
    hip_end, knee_end, _, thigh, shin = limb((hip, knee, cuff), [width * size for width in widths])
    canvas.shape([hip_end, knee_end, thigh, shin], colour, "lower")
    if jeans:
        *_, turn_up = limb((between(knee, ankle, 0.85), cuff), (0.082 * size, 0.082 * size))
        canvas.shape([turn_up], shade(doll.colours["lower_colour"], 1.8), "lower")
        canvas.detail([strip(hip, between(knee, ankle, 0.84), 0.006)], (214, 170, 92), "lower")
    else:
        canvas.detail([strip(hip, cuff, 0.008)], shade(colour, 0.72), "lower")


def _draw_shoe(doll: Doll, leg: Joints, light: float) -> None:
    _, knee, (x, y) = leg
    canvas, kind, side = doll.canvas, doll.attributes.shoes, doll.skeleton.side
    colour, sole_y = shade(doll.colours["shoes_colour"], light), y + 0.052
    if side:
        left, right = x - 0.036, x + 0.082
        foot = [(left, y - 0.008), (x + 0.03, y + 0.002), (x + 0.078, y + 0.024), (right, sole_y), (left, sole_y)]
    else:
        outward = 0.010 if x > 0 else -0.010
        left, right = x - 0.038 + outward, x + 0.038 + outward
        foot = [(x - 0.028, y - 0.010), (x + 0.028, y - 0.010), (right, y + 0.028), (right - 0.004, sole_y),
                (left + 0.004, sole_y), (left, y + 0.028)]  # fmt: skip
    if kind == "sandals":
        canvas.shape([foot], shade(doll.skin, light), "skin")
        sole, strap = box(left, sole_y - 0.012, right, sole_y), strip((left, y + 0.016), (right, y + 0.026), 0.013)
        canvas.shape([sole, strap, strip((x - 0.03, y - 0.006), (x + 0.03, y - 0.006), 0.013)], colour, "shoes")
    elif kind == "boots":
        *_, shaft = limb((between((x, y), knee, 0.42), (x, y + 0.01)), (0.082 * doll.skeleton.limb, 0.072))
        canvas.shape([shaft, foot], colour, "shoes")
        canvas.detail([strip(shaft[0], shaft[3], 0.016)], shade(colour, 1.5), "shoes")
        canvas.detail([box(left, sole_y - 0.010, right, sole_y)], shade(colour, 0.5), "shoes")
    elif kind == "sneakers":
        canvas.shape([foot], colour, "shoes")
        white: Colour = (150, 152, 158) if sum(doll.colours["shoes_colour"]) > 600 else (248, 248, 246)
        laces = strip((x - 0.012, y + 0.014), (x + 0.016, y + 0.008), 0.011)
        canvas.detail([box(left, sole_y - 0.015, right, sole_y), laces], white, "shoes")
    else:
        canvas.shape([foot], colour, "shoes")
        canvas.detail([strip((x, y + 0.010), (x + 0.022, y + 0.018), 0.010)], shade(colour, 2.2), "shoes")
        if side:
            canvas.detail([box(left, sole_y - 0.008, left + 0.030, sole_y + 0.006)], shade(colour, 0.5), "shoes")


def _draw_lower(doll: Doll) -> None:
    """Draw the skirt, or the part of trousers that joins the legs at the waist."""
    if doll.attributes.lower == NONE:
        return
    canvas, hip, waist, colour = doll.canvas, doll.skeleton.hip, doll.skeleton.waist, doll.colours["lower_colour"]
    if doll.attributes.lower not in ("skirt", "long skirt"):
        pelvis = [(-waist, WAIST_Y), (waist, WAIST_Y), (hip, HIP_Y + 0.03), (-hip, HIP_Y + 0.03)]
        canvas.detail([pelvis], colour, "lower")
        return
    hem_y = 0.90 if doll.attributes.lower == "long skirt" else 0.725
    half = 0.127 if doll.skeleton.side else 0.150
    canvas.shape([[(-waist, WAIST_Y), (waist, WAIST_Y), (half, hem_y), (-half, hem_y)]], colour, "lower")
    folds = [strip((fold * hip, HIP_Y), (1.15 * fold * half, hem_y - 0.006), 0.008) for fold in (-0.45, 0.05, 0.5)]
    canvas.detail(folds, shade(colour, 0.78), "lower")
