"""Noun phrases of the captions: the facts that one image shows of its person, in the words of one domain.

Only what is visible is named: the mask shows which parts are, and the view hides some properties (a ponytail from the
front, a print from behind). The words are in `grammar.yaml`. The source domain names everything with core words and
common synonyms, the target domain adds rarer ones, so what a model learns from the source carries over, but not
completely.
"""

from __future__ import annotations

import random

from cskt.data.paperdoll.attributes import NONE, Attributes, read_table
from cskt.data.paperdoll.drawing import Drawing

GRAMMAR = read_table("grammar.yaml")
SOURCE_WORDS: dict[str, list[str]] = GRAMMAR["source_words"]
TARGET_WORDS: dict[str, list[str]] = GRAMMAR["target_words"]
PLURAL = frozenset(GRAMMAR["plural"])
CLOTHES = ("upper", "lower", "shoes", "headwear", "eyewear")
"""Facts that are worn."""


def with_article(phrase: str) -> str:
    """Return the phrase after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def join(phrases: list[str]) -> str:
    """Return "x", "x and y" or "x, y and z"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


class Annotator:
    """Describes one image of a person in the words of one domain; `rich` for those of the target domain."""

    def __init__(self, attributes: Attributes, drawing: Drawing, rng: random.Random, *, rich: bool) -> None:
        self.attributes = attributes
        self.drawing = drawing
        self.rng = rng
        self.rich = rich

    def maybe(self, probability: float) -> bool:
        """Return True with that probability."""
        return self.rng.random() < probability

    def pick(self, *choices: str) -> str:
        """Return one of the choices."""
        return self.rng.choice(choices)

    def word(self, key: str) -> str:
        """Return a synonym of an attribute's value; the core word is the likeliest."""
        core, *others = SOURCE_WORDS[key]
        if self.rich:
            others.extend(TARGET_WORDS.get(key, ()))
        return core if not others or self.maybe(0.5) else self.rng.choice(others)

    def colour(self, name: str) -> str:
        """Return a colour's name, or in the target domain sometimes only whether it is dark or light."""
        if self.rich and self.maybe(0.07):
            for tone in ("dark", "light"):
                if name in GRAMMAR[tone]:
                    return self.pick(tone, f"{tone} coloured")
        return self.word(name)

    def visible_facts(self) -> list[str]:
        """Return the names of the facts that the image shows: some of `CLOTHES`, hair, bag and held."""
        visible = self.drawing.visible_parts
        facts = [part for part in (*CLOTHES, "bag", "held") if part in visible]
        bald_head_seen = self.attributes.hair == "bald" and self.attributes.headwear == NONE
        return [*facts, "hair"] if bald_head_seen or "hair" in visible else facts

    def person_noun(self) -> tuple[str, bool]:
        """Return a noun for the person without an article ("slim elderly man"), and whether it shows the gender."""
        person = self.attributes
        gendered = not self.maybe(0.12)
        if person.age == "child":
            return self.word({"man": "boy", "woman": "girl"}[person.gender] if gendered else "child"), gendered
        noun = self.word(person.gender if gendered else "person")
        if person.age == "elderly" and self.maybe(0.7):
            noun = f"{self.word('elderly')} {noun}"
        if person.build != "average" and self.maybe(0.5):
            noun = f"{self.word(person.build)} {noun}"
        return noun, gendered

    def noun_phrase(self, fact: str) -> str:
        """Return a fact with its article, such as "a red and white striped shirt" or "blue jeans"."""
        if fact == "upper":
            return self._upper()
        if fact == "hair":
            return self._hair()
        kind = getattr(self.attributes, fact)
        colour = NONE if fact == "eyewear" else getattr(self.attributes, f"{fact}_colour")
        name = self.word(kind)
        phrase = name if colour == NONE else f"{self.colour(colour)} {name}"
        if kind not in PLURAL:
            return with_article(phrase)
        return f"a pair of {phrase}" if self.maybe(0.3 if self.rich else 0.1) else phrase

    def _upper(self) -> str:
        pattern = self.attributes.pattern
        colour, name = self.colour(self.attributes.upper_colour), self.word(self.attributes.upper)
        plain = with_article(f"{colour} {name}")
        if "inner" in self.drawing.visible_parts and self.maybe(0.65):
            inner = with_article(f"{self.colour(self.attributes.inner_colour)} {self.word('inner')}")
            return f"{plain} {self.pick('over', 'on top of') if self.rich else 'over'} {inner}"
        if pattern == NONE or self.maybe(0.15):
            return plain
        second = self.word(self.attributes.pattern_colour)
        if pattern == "printed":
            if self.drawing.view != "front":
                return plain
            place = self.pick("", " on the front", " on the chest") if self.rich else ""
            return f"{plain} with {with_article(f'{second} ' + self.word('print'))}{place}"
        if pattern == "dotted":
            dots_first = not self.maybe(0.7)
            dots = self.word("dotted" if dots_first else "dots")
            return with_article(f"{dots} {colour} {name}") if dots_first else f"{plain} with {second} {dots}"
        woven = self.word(pattern)
        forms = [f"{colour} and {second} {woven} {name}", f"{woven} {name} in {colour} and {second}",
                 f"{woven} {colour} {name}"]  # fmt: skip
        if pattern == "striped":
            forms.append(f"{colour} {name} with {second} {self.word('stripes')}")
        return with_article(self.pick(*forms))

    def _hair(self) -> str:
        style, hatless = self.attributes.hair, self.attributes.headwear == NONE
        if style == "bald":
            return self.pick("a bald head", "a shaved head") if self.rich else "a bald head"
        colour = self.word(self.attributes.hair_colour)
        if style == "ponytail" and self.drawing.view != "front":
            return self.pick(f"{with_article(colour)} ponytail", f"{colour} hair in a ponytail")
        if style == "bun" and hatless:
            return self.pick(f"{colour} hair in a bun", f"{with_article(colour)} hair bun")
        if style in ("long", "curly") or (style == "short" and hatless):
            name = self.word(style)
            return f"{name}{', ' if self.rich and self.maybe(0.2) else ' '}{colour} hair"
        return f"{colour} hair"
