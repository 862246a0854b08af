"""One doll in one image: its pose, the joints that follow, and the values that the drawing functions share.

Body units throughout (see `canvas`). A side view looks to the right; the canvas mirrors it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, TypeAlias

from PIL import Image

from cskt.data.paperdoll.attributes import NONE, SKIN_TONES, Attributes, Colour
from cskt.data.paperdoll.canvas import Canvas, Point

View: TypeAlias = Literal["front", "back", "side"]
Joints: TypeAlias = tuple[Point, Point, Point]

SHOULDER_Y, WAIST_Y, HIP_Y, ANKLE_Y = 0.245, 0.41, 0.53, 0.945


@dataclass(frozen=True)
class Pose:
    """Differences between two images of one person, apart from camera and scene."""

    view: View
    walking: bool
    stride: float
    """Angle between the legs, in degrees; 0 when standing."""
    swing: float
    """Angle of the arms from hanging straight, in degrees."""


@dataclass(frozen=True)
class Skeleton:
    """Joints and half-widths of a body in its pose."""

    view: View
    shoulder: float
    waist: float
    hip: float
    limb: float
    """Factor on the thickness of arms and legs."""
    head: Point
    head_radius: Point
    holding_arm: Joints
    """Shoulder, elbow, hand of the arm that holds something in front."""
    carrying_arm: Joints
    """The other arm: handbags and suitcases hang from it."""
    legs: tuple[Joints, Joints]
    """Hip, knee, ankle; the far leg first."""

    @property
    def side(self) -> bool:
        """True if the body is seen from the side."""
        return self.view == "side"


@dataclass(frozen=True)
class Doll:
    """One person in one pose on one sheet."""

    canvas: Canvas
    attributes: Attributes
    skeleton: Skeleton
    colours: dict[str, Colour]
    """RGB by field name of `Attributes` (`upper_colour`, ...), as it looks in this image."""
    fabric: Image.Image | None
    """Sheet filled with the upper garment's pattern; none where the garment is plain."""

    @property
    def skin(self) -> Colour:
        """RGB of face and hands."""
        return SKIN_TONES[self.attributes.skin]


def sample_pose(rng: random.Random, view: View | None = None) -> Pose:
    """Draw a pose; `view` fixes the place of the camera."""
    walking = rng.random() < 0.55
    drawn: View = rng.choices(("front", "back", "side"), weights=(4, 3, 3))[0]
    stride = rng.uniform(22, 46) if walking else rng.uniform(0, 7)
    swing = rng.uniform(12, 30) if walking else rng.uniform(2, 12)
    rng.random()  # a value that no drawing uses; without it all later ones would differ
    return Pose(view or drawn, walking, stride, swing)


def build_skeleton(attributes: Attributes, pose: Pose) -> Skeleton:
    """Return the joints of a person in a pose."""
    width = {"slim": 0.84, "average": 1.0, "heavy": 1.28}[attributes.build]
    man, child, side = attributes.gender == "man", attributes.age == "child", pose.view == "side"
    head_size = 1.28 if child else 1.0
    shoulder = (0.128 if man else 0.110) * (0.85 if child else 1.0) * (0.5 + 0.5 * width)
    waist = (0.100 if man else 0.082) * width
    hip = (0.098 if man else 0.104) * (0.3 + 0.7 * width)
    if side:
        shoulder, waist, hip = 0.62 * shoulder, (0.70 if man else 0.74) * waist, 0.74 * hip
    stoop = 0.03 if attributes.age == "elderly" and side else 0.0
    radius_y = 0.088 * head_size
    return Skeleton(
        view=pose.view,
        shoulder=shoulder,
        waist=waist,
        hip=hip,
        limb=(0.4 + 0.6 * width) * (1.0 if man else 0.92),
        head=(0.012 + stoop if side else 0.0, 0.182 - radius_y),
        head_radius=(0.071 * head_size, radius_y),
        holding_arm=_holding_arm(attributes.held, pose, shoulder),
        carrying_arm=_hanging_arm(pose, shoulder, -1),
        legs=_side_legs(pose) if side else _front_legs(pose, hip),
    )


def _holding_arm(held: str, pose: Pose, shoulder: float) -> Joints:
    if held in (NONE, "shopping bag"):
        return _hanging_arm(pose, shoulder, 1)
    if pose.view == "side":
        hand = (0.135, 0.33) if held == "umbrella" else (0.165, 0.335)
        return (0.0, SHOULDER_Y), (0.025, 0.385), hand
    hand_x = shoulder + 0.015 if held == "umbrella" else 0.085
    return (shoulder - 0.015, SHOULDER_Y), (shoulder + 0.05, 0.385), (hand_x, 0.335)


def _hanging_arm(pose: Pose, shoulder: float, sign: int) -> Joints:
    if pose.view == "side":
        upper, lower = math.radians(sign * pose.swing), math.radians(sign * pose.swing + pose.swing / 2)
        elbow = 0.145 * math.sin(upper), SHOULDER_Y + 0.145 * math.cos(upper)
        return (0.0, SHOULDER_Y), elbow, (elbow[0] + 0.14 * math.sin(lower), elbow[1] + 0.14 * math.cos(lower))
    outward = math.radians(0.5 * pose.swing + 3)
    elbow = shoulder - 0.012 + 0.145 * math.sin(outward), SHOULDER_Y + 0.145 * math.cos(outward)
    # A walker's arms swing to and from the camera, which shortens the forearm of one of them.
    forearm = 0.14 if sign > 0 else 0.14 - 0.0008 * pose.swing
    hand = elbow[0] + 0.010, elbow[1] + forearm
    return (sign * (shoulder - 0.015), SHOULDER_Y), (sign * elbow[0], elbow[1]), (sign * hand[0], hand[1])


def _front_legs(pose: Pose, hip: float) -> tuple[Joints, Joints]:
    lift = 0.0011 * pose.stride
    return (
        ((-0.5 * hip, HIP_Y), (-0.54 * hip, 0.735 - lift / 2), (-0.50 * hip, ANKLE_Y - lift)),
        ((0.5 * hip, HIP_Y), (0.56 * hip, 0.735), (0.58 * hip, ANKLE_Y)),
    )


def _side_legs(pose: Pose) -> tuple[Joints, Joints]:
    def leg(thigh_degrees: float, bend_degrees: float) -> Joints:
        thigh, shin = math.radians(thigh_degrees), math.radians(thigh_degrees - bend_degrees)
        knee = 0.21 * math.sin(thigh), HIP_Y + 0.205 * math.cos(thigh)
        return (0.0, HIP_Y), knee, (knee[0] + 0.21 * math.sin(shin), knee[1] + 0.21 * math.cos(shin))

    return leg(-0.35 * pose.stride, 0.45 * pose.stride), leg(0.55 * pose.stride, 0.12 * pose.stride)
