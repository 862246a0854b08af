"""The words of the captions: for each attribute value its synonyms, and which of them only the target domain uses.

The source domain names everything with core words and common synonyms; the target domain adds rarer ones. What a model
learns from the source thus carries over, but not completely.
"""

from __future__ import annotations

import random

SOURCE_WORDS: dict[str, tuple[str, ...]] = {
    # colours
    "black": ("black",), "white": ("white",), "grey": ("grey", "gray"), "red": ("red",),
    "maroon": ("maroon", "dark red"), "orange": ("orange",), "yellow": ("yellow",), "green": ("green",),
    "dark green": ("dark green",), "blue": ("blue",), "light blue": ("light blue", "sky blue"),
    "navy": ("navy", "dark blue", "navy blue"), "purple": ("purple", "violet"), "pink": ("pink",),
    "brown": ("brown",), "beige": ("beige", "tan"), "blond": ("blond", "blonde"),
    # upper garments
    "t-shirt": ("t-shirt", "tee shirt"), "tank top": ("tank top", "sleeveless top"),
    "shirt": ("shirt", "button-up shirt", "collared shirt"), "sweater": ("sweater", "pullover"),
    "hoodie": ("hoodie", "hooded sweatshirt"), "jacket": ("jacket", "short jacket"), "coat": ("coat", "long coat"),
    "dress": ("dress",), "inner": ("shirt", "top", "t-shirt"),
    # lower garments
    "trousers": ("trousers", "pants"), "jeans": ("jeans", "denim pants"), "shorts": ("shorts",),
    "skirt": ("skirt", "short skirt"), "long skirt": ("long skirt",),
    # shoes
    "sneakers": ("sneakers", "sports shoes", "trainers"), "boots": ("boots",), "sandals": ("sandals",),
    "leather shoes": ("leather shoes", "dress shoes"),
    # headwear and eyewear
    "cap": ("cap", "baseball cap"), "beanie": ("beanie", "knit hat"), "hat": ("hat", "wide-brimmed hat"),
    "glasses": ("glasses",), "sunglasses": ("sunglasses", "dark glasses"),
    # bags and things in the hand
    "backpack": ("backpack", "rucksack"), "shoulder bag": ("shoulder bag", "crossbody bag"),
    "handbag": ("handbag", "purse"), "suitcase": ("suitcase",), "phone": ("phone", "mobile phone"),
    "umbrella": ("umbrella",), "bottle": ("bottle", "water bottle"), "cup": ("cup", "coffee cup"), "book": ("book",),
    "shopping bag": ("shopping bag", "carrier bag"),
    # people
    "man": ("man",), "woman": ("woman",), "boy": ("boy",), "girl": ("girl",), "person": ("person", "pedestrian"),
    "child": ("child",), "elderly": ("elderly", "old"), "slim": ("slim", "thin"), "heavy": ("heavy", "stout"),
    # patterns and hair
    "striped": ("striped",), "stripes": ("stripes",), "checked": ("checked", "plaid"), "dotted": ("dotted",),
    "dots": ("dots", "polka dots"), "print": ("print", "logo"), "short": ("short",), "long": ("long",),
    "curly": ("curly",),
}  # fmt: skip
"""Synonyms of each word in both domains; the first is the core word."""

TARGET_WORDS: dict[str, tuple[str, ...]] = {
    "beige": ("cream-coloured", "khaki"), "maroon": ("burgundy",), "light blue": ("pale blue",), "pink": ("rosy pink",),
    "t-shirt": ("short-sleeved shirt", "short sleeve top"), "tank top": ("sleeveless shirt",),
    "shirt": ("button-down shirt", "long-sleeved shirt"), "sweater": ("jumper", "knitted sweater"),
    "hoodie": ("hooded top", "hooded pullover"), "jacket": ("windbreaker", "light jacket"),
    "coat": ("overcoat", "knee-length coat"), "dress": ("knee-length dress", "summer dress"),
    "trousers": ("slacks", "long pants"), "jeans": ("denim jeans", "denim trousers"),
    "shorts": ("short pants", "bermuda shorts"), "skirt": ("knee-length skirt",),
    "long skirt": ("ankle-length skirt", "maxi skirt"), "sneakers": ("running shoes", "tennis shoes"),
    "boots": ("leather boots", "ankle boots"), "sandals": ("open-toed sandals", "open sandals"),
    "leather shoes": ("formal shoes", "loafers"), "cap": ("peaked cap", "ball cap"),
    "beanie": ("knitted cap", "woolly hat"), "hat": ("sun hat", "floppy hat"), "glasses": ("spectacles", "eyeglasses"),
    "sunglasses": ("shades",), "backpack": ("knapsack", "book bag"), "shoulder bag": ("messenger bag", "satchel"),
    "handbag": ("hand bag", "tote bag"), "suitcase": ("rolling suitcase", "trolley case"),
    "phone": ("cell phone", "smartphone"), "umbrella": ("open umbrella",), "bottle": ("drinks bottle",),
    "cup": ("paper cup", "takeaway cup"), "book": ("paperback", "notebook"),
    "shopping bag": ("paper bag", "plastic bag"), "man": ("gentleman", "male"), "woman": ("lady", "female"),
    "boy": ("young boy",), "girl": ("young girl",), "person": ("individual",), "child": ("kid",),
    "elderly": ("older", "aged"), "slim": ("slender", "skinny"), "heavy": ("heavyset", "sturdy"),
    "checked": ("checkered",), "dots": ("spots",), "print": ("graphic", "design"), "short": ("short", "cropped"),
    "long": ("shoulder-length",), "curly": ("frizzy",),
}  # fmt: skip
"""Further synonyms that only captions of the target domain use."""

DARK_COLOURS = frozenset({"black", "navy", "maroon", "dark green", "brown"})
LIGHT_COLOURS = frozenset({"white", "beige", "light blue"})

PLURAL = frozenset(
    {"trousers", "jeans", "shorts", "sneakers", "boots", "sandals", "leather shoes", "glasses", "sunglasses"}
)
"""Garments named in the plural: no article, or "a pair of"."""


class Voice:
    """Chooses words as one domain's annotators would."""

    def __init__(self, rng: random.Random, *, rich: bool) -> None:
        self.rng = rng
        self.rich = rich
        """Whether the target's additional synonyms are known."""

    def word(self, key: str) -> str:
        """A synonym of an attribute's value; the core word is the likeliest."""
        core, *others = SOURCE_WORDS[key]
        if self.rich:
            others.extend(TARGET_WORDS.get(key, ()))
        return core if not others or self.rng.random() < 0.5 else self.rng.choice(others)

    def colour(self, name: str) -> str:
        """A colour's name; the target's annotators now and then see only that it is dark or light."""
        if self.rich and self.rng.random() < 0.07:
            if name in DARK_COLOURS:
                return self.rng.choice(("dark", "dark coloured"))
            if name in LIGHT_COLOURS:
                return self.rng.choice(("light", "light coloured"))
        return self.word(name)

    def maybe(self, probability: float) -> bool:
        """True with that probability."""
        return self.rng.random() < probability

    def pick(self, *choices: str) -> str:
        """One of the choices."""
        return self.rng.choice(choices)


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def join(phrases: list[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
