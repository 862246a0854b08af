"""What one image shows of its person, as noun phrases: the material of both domains' captions.

Only what is visible is named: the mask says which parts are, and the view hides some properties (a ponytail from the
front, a print from behind).
"""

from __future__ import annotations

from cskt.data.paperdoll.attributes import NONE, Attributes
from cskt.data.paperdoll.drawing import Drawing
from cskt.data.paperdoll.lexicon import PLURAL, Voice, with_article

CLOTHES = ("upper", "lower", "shoes", "headwear", "eyewear")
"""Facts that are worn."""


def visible_facts(attributes: Attributes, drawing: Drawing) -> list[str]:
    """Names of the facts that the image shows: some of `CLOTHES`, hair, bag and held."""
    facts = [part for part in (*CLOTHES, "bag", "held") if part in drawing.visible_parts]
    bald_head_seen = attributes.hair == "bald" and attributes.headwear == NONE
    if bald_head_seen or "hair" in drawing.visible_parts:
        facts.append("hair")
    return facts


def noun_phrase(fact: str, attributes: Attributes, drawing: Drawing, voice: Voice) -> str:
    """A fact with its article, such as "a red and white striped shirt" or "blue jeans"."""
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
        return f"{plain} with {second} {voice.word('dots')}" if voice.maybe(0.7) else with_article(
            f"{voice.word('dotted')} {colour} {name}"
        )  # fmt: skip
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


def person_noun(attributes: Attributes, voice: Voice) -> tuple[str, bool]:
    """Who it is without an article ("slim elderly man"), and whether the noun tells the gender."""
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
