"""Noun phrases of the captions: the facts that one image shows of its person, in the words of one domain.

Only what is visible is named: the mask shows which parts are, and the view hides some properties (a ponytail from the
front, a print from behind). The words are in `grammar.yaml`. The source domain names everything with core words and
common synonyms, the target domain adds rarer ones, so what a model learns from the source carries over, but not
completely.
"""

from __future__ import annotations

import random
from importlib import resources
from typing import Any

import yaml

from cskt.data.paperdoll.attributes import NONE, Attributes
from cskt.data.paperdoll.drawing import Drawing

GRAMMAR: dict[str, Any] = yaml.safe_load((resources.files(__package__) / "grammar.yaml").read_text(encoding="utf-8"))
SOURCE_WORDS: dict[str, list[str]] = GRAMMAR["source_words"]
TARGET_WORDS: dict[str, list[str]] = GRAMMAR["target_words"]
PLURAL = frozenset(GRAMMAR["plural"])
CLOTHES = ("upper", "lower", "shoes", "headwear", "eyewear")
"""Facts that are worn."""


class Voice:
    """Chooses words as the annotators of one domain would; `rich` for those of the target domain."""

    def __init__(self, rng: random.Random, *, rich: bool) -> None:
        self.rng = rng
        self.rich = rich

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

    def maybe(self, probability: float) -> bool:
        """Return True with that probability."""
        return self.rng.random() < probability

    def pick(self, *choices: str) -> str:
        """Return one of the choices."""
        return self.rng.choice(choices)


def with_article(phrase: str) -> str:
    """Return the phrase after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def join(phrases: list[str]) -> str:
    """Return "x", "x and y" or "x, y and z"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def visible_facts(attributes: Attributes, drawing: Drawing) -> list[str]:
    """Return the names of the facts that the image shows: some of `CLOTHES`, hair, bag and held."""
    facts = [part for part in (*CLOTHES, "bag", "held") if part in drawing.visible_parts]
    bald_head_seen = attributes.hair == "bald" and attributes.headwear == NONE
    if bald_head_seen or "hair" in drawing.visible_parts:
        facts.append("hair")
    return facts


def person_noun(attributes: Attributes, voice: Voice) -> tuple[str, bool]:
    """Return a noun for the person without an article ("slim elderly man"), and whether it shows the gender."""
    gendered = not voice.maybe(0.12)
    if attributes.age == "child":
        noun = voice.word({"man": "boy", "woman": "girl"}[attributes.gender] if gendered else "child")
        return noun, gendered
    noun = voice.word(attributes.gender if gendered else "person")
    if attributes.age == "elderly" and voice.maybe(0.7):
        noun = f"{voice.word('elderly')} {noun}"
    if attributes.build != "average" and voice.maybe(0.5):
        noun = f"{voice.word(attributes.build)} {noun}"
    return noun, gendered


def noun_phrase(fact: str, attributes: Attributes, drawing: Drawing, voice: Voice) -> str:
    """Return a fact with its article, such as "a red and white striped shirt" or "blue jeans"."""
    if fact == "upper":
        return _upper(attributes, drawing, voice)
    if fact == "hair":
        return _hair(attributes, drawing, voice)
    kind = getattr(attributes, fact)
    colour = NONE if fact == "eyewear" else getattr(attributes, f"{fact}_colour")
    name = voice.word(kind)
    phrase = name if colour == NONE else f"{voice.colour(colour)} {name}"
    if kind not in PLURAL:
        return with_article(phrase)
    return f"a pair of {phrase}" if voice.maybe(0.3 if voice.rich else 0.1) else phrase


def _upper(attributes: Attributes, drawing: Drawing, voice: Voice) -> str:
    colour, name = voice.colour(attributes.upper_colour), voice.word(attributes.upper)
    plain = with_article(f"{colour} {name}")
    if "inner" in drawing.visible_parts and voice.maybe(0.65):
        inner = with_article(f"{voice.colour(attributes.inner_colour)} {voice.word('inner')}")
        return f"{plain} {voice.pick('over', 'on top of') if voice.rich else 'over'} {inner}"
    if attributes.pattern == NONE or voice.maybe(0.15):
        return plain
    second = voice.word(attributes.pattern_colour)
    if attributes.pattern == "printed":
        if drawing.view != "front":
            return plain
        place = voice.pick("", " on the front", " on the chest") if voice.rich else ""
        return f"{plain} with {with_article(f'{second} ' + voice.word('print'))}{place}"
    if attributes.pattern == "dotted":
        dots_first = not voice.maybe(0.7)
        dots = voice.word("dotted" if dots_first else "dots")
        return with_article(f"{dots} {colour} {name}") if dots_first else f"{plain} with {second} {dots}"
    pattern = voice.word(attributes.pattern)
    forms = [f"{colour} and {second} {pattern} {name}", f"{pattern} {name} in {colour} and {second}",
             f"{pattern} {colour} {name}"]  # fmt: skip
    if attributes.pattern == "striped":
        forms.append(f"{colour} {name} with {second} {voice.word('stripes')}")
    return with_article(voice.pick(*forms))


def _hair(attributes: Attributes, drawing: Drawing, voice: Voice) -> str:
    if attributes.hair == "bald":
        return voice.pick("a bald head", "a shaved head") if voice.rich else "a bald head"
    colour = voice.word(attributes.hair_colour)
    covered = attributes.headwear != NONE
    if attributes.hair == "ponytail" and drawing.view != "front":
        return voice.pick(f"{with_article(colour)} ponytail", f"{colour} hair in a ponytail")
    if attributes.hair == "bun" and not covered:
        return voice.pick(f"{colour} hair in a bun", f"{with_article(colour)} hair bun")
    if attributes.hair in ("long", "curly") or (attributes.hair == "short" and not covered):
        style = voice.word(attributes.hair)
        separator = ", " if voice.rich and voice.maybe(0.2) else " "
        return f"{style}{separator}{colour} hair"
    return f"{colour} hair"
