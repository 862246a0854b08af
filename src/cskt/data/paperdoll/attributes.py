"""Attributes of a paper doll: some two dozen values, sampled independently of each other.

Independence leaves confusable people (two men in black jackets who differ in the shoes), as real data sets do. Colours
and frequencies are in `people.yaml`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

Colour = tuple[int, int, int]


def read_table(name: str) -> dict[str, Any]:
    """Return a YAML file of this folder."""
    table: dict[str, Any] = yaml.safe_load((resources.files(__package__) / name).read_text(encoding="utf-8"))
    return table


_PEOPLE = read_table("people.yaml")
COLOURS: dict[str, Colour] = {name: tuple(rgb) for name, rgb in _PEOPLE["colours"].items()}
HAIR_COLOURS: dict[str, Colour] = {name: tuple(rgb) for name, rgb in _PEOPLE["hair_colours"].items()}
SKIN_TONES: list[Colour] = [tuple(rgb) for rgb in _PEOPLE["skin_tones"]]
PART_COLOURS: dict[str, Colour] = {name: tuple(rgb) for name, rgb in _PEOPLE["parts"].items()}
NONE = "none"
"""Value of an attribute that is absent: no bag, a bare head, a plain garment."""
LAYERED = ("jacket", "coat")
"""Upper garments worn open over an inner one."""


@dataclass(frozen=True)
class Attributes:
    """The values that all images of one identity share; each is a plain word, `NONE` where there is nothing.

    `skin` (an index into `SKIN_TONES`) is drawn but never named in a caption.
    """

    gender: str
    age: str
    build: str
    skin: int
    hair: str
    hair_colour: str
    headwear: str
    headwear_colour: str
    eyewear: str
    upper: str
    upper_colour: str
    pattern: str
    pattern_colour: str
    inner_colour: str
    lower: str
    lower_colour: str
    shoes: str
    shoes_colour: str
    bag: str
    bag_colour: str
    held: str
    held_colour: str


def stable_random(*keys: str | int) -> random.Random:
    """Return a generator that depends on the keys alone: not on the process, the platform or `PYTHONHASHSEED`."""
    digest = hashlib.sha256("\0".join(map(str, keys)).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def sample_attributes(rng: random.Random) -> Attributes:
    """Draw one person."""

    def draw(name: str, kind: str = "") -> str:
        return _choose(rng, _PEOPLE[name][kind] if kind else _PEOPLE[name])

    gender, age = rng.choice(("man", "woman")), draw("age")
    hair = draw("hair", "boy" if (gender, age) == ("man", "child") else gender)
    headwear = draw("headwear")
    upper = draw("upper", gender)
    upper_colour = draw("upper_colour")
    pattern = draw("pattern", upper)
    lower = draw("lower", gender)
    lower = NONE if upper == "dress" else lower
    shoes, bag, held = draw("shoes"), draw("bag", gender), draw("held")
    return Attributes(
        gender=gender,
        age=age,
        build=draw("build") if age != "child" else "average",
        skin=rng.randrange(len(SKIN_TONES)),
        hair=hair,
        hair_colour=draw("hair_colour", "elderly" if age == "elderly" else "young"),
        headwear=headwear,
        headwear_colour=NONE if headwear == NONE else draw("bag_colour"),
        eyewear=draw("eyewear"),
        upper=upper,
        upper_colour=upper_colour,
        pattern=pattern,
        pattern_colour=NONE if pattern == NONE else _second_colour(rng, upper_colour),
        inner_colour=_second_colour(rng, upper_colour) if upper in LAYERED and rng.random() < 0.7 else NONE,
        lower=lower,
        lower_colour=NONE if lower == NONE else draw("jeans_colour" if lower == "jeans" else "lower_colour"),
        shoes=shoes,
        shoes_colour=draw("shoes_colour", shoes),
        bag=bag,
        bag_colour=NONE if bag == NONE else draw("bag_colour"),
        held=held,
        held_colour=draw("held_colour", held) if held in _PEOPLE["held_colour"] else NONE,
    )


def _choose(rng: random.Random, weights: Mapping[str, float]) -> str:
    """Return one key, drawn in proportion to its weight."""
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def _second_colour(rng: random.Random, first: str) -> str:
    """Return a colour that is clearly visible on or under a garment of the first one."""

    def contrast(second: str) -> float:
        red, green, blue = (a - b for a, b in zip(COLOURS[second], COLOURS[first], strict=True))
        return abs(0.3 * red + 0.59 * green + 0.11 * blue) + (abs(red - green) + abs(green - blue)) / 4

    return _choose(rng, {name: weight for name, weight in _PEOPLE["second_colour"].items() if contrast(name) > 85})
