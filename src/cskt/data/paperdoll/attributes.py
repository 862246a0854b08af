"""Who a paper doll is: some dozen attributes, sampled independently of each other.

Independence leaves confusable people (two men in black jackets who differ in the shoes), as real data sets do. The
weights follow what pedestrians wear: much black, grey and blue below, few umbrellas.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "black": (40, 38, 42),
    "white": (242, 242, 240),
    "grey": (142, 144, 148),
    "red": (208, 38, 42),
    "maroon": (116, 22, 44),
    "orange": (242, 130, 32),
    "yellow": (246, 212, 58),
    "green": (62, 168, 76),
    "dark green": (26, 82, 56),
    "blue": (42, 92, 206),
    "light blue": (138, 194, 236),
    "navy": (28, 40, 96),
    "purple": (126, 62, 168),
    "pink": (246, 148, 186),
    "brown": (116, 72, 40),
    "beige": (216, 192, 150),
}
"""RGB of each colour that a garment can have; its name is the word that captions start from."""

HAIR_COLOURS: dict[str, Colour] = {
    "black": (36, 30, 32),
    "brown": (104, 62, 32),
    "blond": (232, 196, 104),
    "red": (188, 78, 34),
    "grey": (156, 154, 156),
    "white": (232, 230, 226),
}

SKIN_TONES: tuple[Colour, ...] = (
    (250, 216, 190),
    (238, 194, 160),
    (214, 162, 122),
    (166, 112, 76),
    (112, 74, 52),
)

UPPER_TYPES = ("t-shirt", "tank top", "shirt", "sweater", "hoodie", "jacket", "coat", "dress")
HELD_TYPES = ("phone", "umbrella", "bottle", "cup", "book", "shopping bag")

NONE = "none"
"""Value of an attribute that is absent: no bag, a bare head, a plain garment."""

_UPPER_COLOURS = {
    "black": 5, "white": 4, "grey": 3, "red": 4, "maroon": 2, "orange": 2, "yellow": 3, "green": 3, "dark green": 2,
    "blue": 4, "light blue": 3, "navy": 2, "purple": 3, "pink": 3, "brown": 2, "beige": 2,
}  # fmt: skip
_LOWER_COLOURS = {
    "black": 5, "white": 2, "grey": 3, "red": 2, "green": 1, "dark green": 2, "blue": 3, "navy": 3, "purple": 1,
    "pink": 1, "yellow": 1, "orange": 1, "brown": 3, "beige": 3,
}  # fmt: skip
_JEANS_COLOURS = {"blue": 4, "light blue": 3, "navy": 2, "black": 2, "grey": 2, "white": 1}
_SHOE_COLOURS = {
    "sneakers": {"white": 4, "black": 3, "red": 2, "blue": 2, "grey": 2, "pink": 1, "yellow": 1, "green": 1},
    "boots": {"black": 3, "brown": 3, "beige": 1, "red": 1},
    "sandals": {"brown": 2, "black": 2, "white": 1, "red": 1},
    "leather shoes": {"black": 3, "brown": 3, "maroon": 1, "beige": 1},
}
_BAG_COLOURS = {
    "black": 4, "red": 3, "blue": 3, "brown": 3, "grey": 2, "green": 2, "yellow": 2, "pink": 2, "purple": 1,
    "orange": 2, "white": 1,
}  # fmt: skip
_HELD_COLOURS: dict[str, dict[str, float]] = {
    "umbrella": {"black": 2, "red": 2, "blue": 2, "yellow": 2, "green": 1, "pink": 1, "purple": 1},
    "book": {"red": 1, "blue": 1, "green": 1, "yellow": 1},
    "shopping bag": {"white": 2, "red": 1, "yellow": 1, "green": 1, "pink": 1},
}
_PATTERNS_OF = {
    "t-shirt": {NONE: 4, "striped": 2, "dotted": 1, "printed": 2},
    "tank top": {NONE: 5, "striped": 2, "dotted": 1},
    "shirt": {NONE: 4, "striped": 1, "checked": 3, "dotted": 1},
    "sweater": {NONE: 5, "striped": 2, "checked": 1},
    "hoodie": {NONE: 5, "printed": 2},
    "jacket": {NONE: 1},
    "coat": {NONE: 5, "checked": 1},
    "dress": {NONE: 4, "striped": 1, "checked": 1, "dotted": 2},
}
LAYERED = ("jacket", "coat")
"""Upper garments worn open over an inner one."""


@dataclass(frozen=True)
class Attributes:
    """What all images of one identity share; each value is a plain word, `NONE` where there is nothing.

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
    """A generator that depends on the keys alone: not on the process, the platform or `PYTHONHASHSEED`."""
    digest = hashlib.sha256("\0".join(map(str, keys)).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def choose(rng: random.Random, weights: Mapping[Value, float]) -> Value:
    """One key, drawn in proportion to its weight."""
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def contrast(first: Colour, second: Colour) -> float:
    """How well two colours can be told apart side by side: the distance of their luminances plus half that of hues."""
    red, green, blue = (a - b for a, b in zip(first, second, strict=True))
    return abs(0.3 * red + 0.59 * green + 0.11 * blue) + (abs(red - green) + abs(green - blue)) / 4


def sample_attributes(rng: random.Random) -> Attributes:
    """Draw one person."""
    gender = rng.choice(("man", "woman"))
    age = choose(rng, {"adult": 8, "child": 1, "elderly": 1})
    woman, adult = gender == "woman", age != "child"
    hair = choose(rng, _hair_weights(woman, age))
    hair_colours = {"black": 5, "brown": 4, "blond": 3, "red": 2, "grey": 1}
    headwear = choose(rng, {NONE: 6, "cap": 2, "beanie": 1.3, "hat": 1.3})
    upper = choose(rng, {name: 1.5 if name == "dress" else 2 for name in UPPER_TYPES if woman or name != "dress"})
    upper_colour = choose(rng, _UPPER_COLOURS)
    pattern = choose(rng, _PATTERNS_OF[upper])
    lower = choose(rng, {"trousers": 4, "jeans": 3, "shorts": 3} | ({"skirt": 3, "long skirt": 1.5} if woman else {}))
    lower = NONE if upper == "dress" else lower
    shoes = choose(rng, {"sneakers": 5, "boots": 3, "sandals": 2, "leather shoes": 3})
    bag = choose(rng, {NONE: 3, "backpack": 3, "shoulder bag": 2, "handbag": 2 if woman else 0.5, "suitcase": 1})
    held = choose(rng, {NONE: 6, **dict.fromkeys(HELD_TYPES, 1)})
    return Attributes(
        gender=gender,
        age=age,
        build=choose(rng, {"average": 3, "slim": 1, "heavy": 1}) if adult else "average",
        skin=rng.randrange(len(SKIN_TONES)),
        hair=hair,
        hair_colour=choose(rng, {"grey": 2, "white": 2} if age == "elderly" else hair_colours),
        headwear=headwear,
        headwear_colour=NONE if headwear == NONE else choose(rng, _BAG_COLOURS),
        eyewear=choose(rng, {NONE: 6, "glasses": 2, "sunglasses": 1}),
        upper=upper,
        upper_colour=upper_colour,
        pattern=pattern,
        pattern_colour=NONE if pattern == NONE else _contrasting(rng, upper_colour),
        inner_colour=_contrasting(rng, upper_colour) if upper in LAYERED and rng.random() < 0.7 else NONE,
        lower=lower,
        lower_colour=NONE if lower == NONE else choose(rng, _JEANS_COLOURS if lower == "jeans" else _LOWER_COLOURS),
        shoes=shoes,
        shoes_colour=choose(rng, _SHOE_COLOURS[shoes]),
        bag=bag,
        bag_colour=NONE if bag == NONE else choose(rng, _BAG_COLOURS),
        held=held,
        held_colour=choose(rng, _HELD_COLOURS[held]) if held in _HELD_COLOURS else NONE,
    )


def _hair_weights(woman: bool, age: str) -> dict[str, float]:
    if woman:
        return {"short": 2, "long": 4, "ponytail": 2, "bun": 1.5, "curly": 1.5}
    return {"short": 7, "long": 0.7, "curly": 1.2} | ({} if age == "child" else {"bald": 1.5})


def _contrasting(rng: random.Random, colour: str) -> str:
    candidates = {"white": 4, "black": 3, "red": 1, "blue": 1, "yellow": 1, "grey": 1, "navy": 1, "pink": 1}
    clear = {name: weight for name, weight in candidates.items() if contrast(COLOURS[name], COLOURS[colour]) > 85}
    return choose(rng, clear)
