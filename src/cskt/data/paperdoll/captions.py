"""Captions from a grammar: short and plain for the source domain, 20 to 40 words of prose for the target.

`write_caption` draws which facts are named, in which words, order and sentence forms; `facts` supplies the phrases.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from cskt.data.paperdoll.attributes import Attributes
from cskt.data.paperdoll.drawing import Domain, Drawing
from cskt.data.paperdoll.facts import CLOTHES, noun_phrase, person_noun, visible_facts
from cskt.data.paperdoll.lexicon import Voice, join, with_article

CAPTION_WORDS: dict[Domain, tuple[int, int]] = {"source": (8, 25), "target": (20, 40)}
"""Fewest and most words of a caption."""

_MOST_DRAFTS = 500


def write_caption(attributes: Attributes, drawing: Drawing, rng: random.Random, *, domain: Domain) -> str:
    """One caption of one image.

    Args:
        attributes: who is shown.
        drawing: the image; only what it shows is described.
        rng: decides words, order and omissions.
        domain: whose annotators write; sets the length in words, `CAPTION_WORDS`.
    """
    voice = Voice(rng, rich=domain == "target")
    draft = _draft_target if domain == "target" else _draft_source
    fewest, most = CAPTION_WORDS[domain]
    for _ in range(_MOST_DRAFTS):
        text = draft(attributes, drawing, voice)
        if fewest <= len(text.split()) <= most:
            return text
    raise AssertionError(f"no {domain} caption of {fewest} to {most} words in {_MOST_DRAFTS} drafts: {attributes}")


def _draft_source(attributes: Attributes, drawing: Drawing, voice: Voice) -> str:
    """A random subset of the facts in random order, around one noun."""
    facts = visible_facts(attributes, drawing)
    named = voice.rng.sample(facts, min(len(facts), voice.rng.randint(2, 5)))
    phrases = {fact: noun_phrase(fact, attributes, drawing, voice) for fact in named}
    noun, _ = person_noun(attributes, voice)
    form = voice.rng.random()
    if form < 0.2:
        opening = voice.pick("", "a photo of ", "a picture of ")
        return f"{opening}{with_article(noun)} with {join(list(phrases.values()))}"
    sentence = form > 0.7
    if sentence:
        verbs = dict.fromkeys(CLOTHES, voice.pick("wears", "is wearing"))
        verbs |= {"hair": "has", "bag": voice.pick("carries", "has"), "held": "is holding"}
    else:
        verbs = dict.fromkeys(CLOTHES, voice.pick("wearing", "in"))
        verbs |= {"hair": "with", "bag": voice.pick("carrying", "with"), "held": "holding"}
    groups: dict[str, list[str]] = {}
    for fact, phrase in phrases.items():
        groups.setdefault(verbs[fact], []).append(phrase)
    parts = [f"{verb} {join(members)}" for verb, members in groups.items()]
    if sentence:
        return f"{voice.pick('the', 'this')} {noun} {join(parts)}"
    opening = voice.pick("", "", "a photo of ")
    return f"{opening}{with_article(noun)} {', '.join(parts)}"


@dataclass(frozen=True)
class _Person:
    """How the sentences of one caption refer to their person."""

    first: str
    """Subject of the first sentence, in lower case."""
    later: tuple[str, ...]
    """Subjects of later sentences, in lower case."""
    own: str
    """his, her or their."""
    them: str
    """him, her or them."""


@dataclass(frozen=True)
class _Story:
    """What all sentences of one caption share."""

    attributes: Attributes
    drawing: Drawing
    person: _Person
    voice: Voice


def _person(attributes: Attributes, voice: Voice) -> _Person:
    noun, gendered = person_noun(attributes, voice)
    first = voice.pick(f"the {noun}", f"the {noun}", with_article(noun), f"this {noun}")
    last = noun.split()[-1]
    if not gendered:
        return _Person(first, (f"the {last}",), "their", "them")
    if attributes.gender == "man":
        return _Person(first, ("he", "he", "he", f"the {last}"), "his", "him")
    return _Person(first, ("she", "she", "she", f"the {last}"), "her", "her")


def _draft_target(attributes: Attributes, drawing: Drawing, voice: Voice) -> str:
    """One to five sentences: some facts in the subject, some as its statements, some with a subject of their own."""
    story = _Story(attributes, drawing, _person(attributes, voice), voice)
    keep = voice.rng.uniform(0.35, 0.9)
    chance = {"upper": 0.96, "lower": 0.9, "eyewear": keep - 0.2}
    named = [fact for fact in visible_facts(attributes, drawing) if voice.maybe(chance.get(fact, keep))]
    voice.rng.shuffle(named)
    phrases = {fact: noun_phrase(fact, attributes, drawing, voice) for fact in named}

    description = ""
    statements: list[str] = []
    asides: list[str] = []
    if "hair" in phrases and voice.maybe(0.25):
        description = f" with {phrases.pop('hair')}"
    together = [fact for fact in named if fact in ("upper", "lower") or (fact in CLOTHES and voice.maybe(0.5))]
    if together:
        worn = join([phrases.pop(fact) for fact in together])
        if not description and voice.maybe(0.2):
            description = voice.pick(f" in {worn}", f" wearing {worn}", f" dressed in {worn}")
        else:
            statements.append(f"{voice.pick('is wearing', 'is wearing', 'wears', 'is dressed in', 'has on')} {worn}")
    for fact, phrase in phrases.items():
        aside = _aside(fact, phrase, story) if voice.maybe(0.2) else ""
        (asides if aside else statements).append(aside or _statement(fact, phrase, story))
    if not statements or voice.maybe(0.45):
        statements.insert(voice.rng.randint(0, 1), _activity(story))
    if not together or voice.maybe(0.7):
        voice.rng.shuffle(statements)
    if voice.maybe(0.15):
        asides.append(_remark(story))
    sentences = _sentences(statements, description, story) + asides
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _statement(fact: str, phrase: str, story: _Story) -> str:
    """A predicate about one fact, to follow "he" or "the woman"."""
    own = story.person.own
    choices = {
        "hair": (f"has {phrase}",),
        "shoes": (f"has {phrase} on", f"is wearing {phrase}", f"wears {phrase} on {own} feet"),
        "headwear": (f"has {phrase} on", f"is wearing {phrase}", f"wears {phrase} on {own} head"),
        "bag": _bag_statements(phrase, story),
        "held": _held_statements(phrase, story),
    }
    return story.voice.pick(*choices.get(fact, (f"is wearing {phrase}", f"wears {phrase}")))


def _bag_statements(phrase: str, story: _Story) -> tuple[str, ...]:
    own, them = story.person.own, story.person.them
    carrying = (f"is carrying {phrase}", f"has {phrase} with {them}", f"carries {phrase}")
    if story.attributes.bag == "backpack":
        return (*carrying, f"has {phrase} on {own} back", f"wears {phrase}")
    if story.attributes.bag == "shoulder bag":
        return (*carrying, f"has {phrase} across {own} body", f"wears {phrase} over one shoulder")
    if story.attributes.bag == "handbag":
        return (*carrying, f"has {phrase} in one hand", f"is holding {phrase}")
    if story.drawing.walking:
        return f"is pulling {phrase}", f"pulls {phrase} along", f"has {phrase} with {them}"
    return f"stands next to {phrase}", f"has {phrase} beside {them}", f"has {phrase} with {them}"


def _held_statements(phrase: str, story: _Story) -> tuple[str, ...]:
    own = story.person.own
    if story.attributes.held == "umbrella":
        verb = "is walking" if story.drawing.walking else "is standing"
        return f"is holding {phrase}", f"holds {phrase} over {own} head", f"{verb} under {phrase}"
    holding = (f"is holding {phrase}", f"holds {phrase} in one hand", f"has {phrase} in {own} hand")
    if story.attributes.held == "phone":
        return (*holding, f"is looking at {phrase}")
    if story.attributes.held == "shopping bag":
        return (*holding, f"is carrying {phrase}")
    return holding


def _aside(fact: str, phrase: str, story: _Story) -> str:
    """A sentence whose subject is the thing; empty where that would read oddly."""
    own = story.person.own
    if fact == "shoes" and not phrase.startswith("a pair"):
        return f"on {own} feet are {phrase}"
    if fact == "held":
        return f"in {own} hand is {phrase}"
    if fact == "headwear":
        return f"there is {phrase} on {own} head"
    return ""


def _activity(story: _Story) -> str:
    """What the person is doing, as far as the view tells."""
    drawing, pick = story.drawing, story.voice.pick
    verb = "is walking" if drawing.walking else "is standing"
    place = pick("", " on the pavement", " in the street", " outdoors",
                 " down the road" if drawing.walking else " by the road")  # fmt: skip
    if drawing.view == "front":
        towards = "is walking towards the camera" if drawing.walking else "is facing the camera"
        return pick(f"{verb}{place}", towards, "is looking straight ahead")
    if drawing.view == "back":
        away = "is walking away from the camera" if drawing.walking else "is turned away from the camera"
        return pick(f"{verb}{place}", away, f"{verb} with {story.person.own} back to the camera", "is seen from behind")
    past = "is passing by" if drawing.walking else "is looking to the side"
    return pick(f"{verb}{place}", past, "is seen from the side", "is seen in profile")


def _remark(story: _Story) -> str:
    """A sentence that tells little, as people add them."""
    subject = story.person.later[0]
    remarks = [f"{subject} appears to be alone", f"{subject} seems to be in no hurry", f"{subject} looks relaxed"]
    if story.drawing.walking:
        remarks += [f"{subject} appears to be going somewhere", f"one of {story.person.own} feet is ahead of the other"]
    if story.drawing.view == "back":
        remarks.append(f"{story.person.own} face cannot be seen")
    return story.voice.pick(*remarks)


def _is_about_clothes(statement: str) -> bool:
    return statement.startswith(("is wearing", "wears", "is dressed", "has on")) or statement.endswith(" on")


def _sentences(statements: list[str], description: str, story: _Story) -> list[str]:
    """Statements, one or two to a sentence; `description` follows the subject of the first."""
    voice = story.voice
    sentences: list[str] = []
    waiting = list(statements)
    while waiting:
        first = waiting.pop(0)
        subject = voice.pick(*story.person.later) if sentences else f"{story.person.first}{description}"
        if _is_about_clothes(first):  # "the man wearing jeans wears a shirt" reads better with "in jeans"
            subject = subject.replace(" wearing ", " in ", 1).replace(" dressed in ", " in ", 1)
        same_subject_matter = bool(waiting) and _is_about_clothes(first) and _is_about_clothes(waiting[0])
        if not waiting or same_subject_matter or voice.maybe(0.35):
            sentences.append(f"{subject} {first}")
            continue
        second = waiting.pop(0)
        if first.startswith("is wearing ") and voice.maybe(0.25):
            sentences.append(f"{first.removeprefix('is ')}, {subject} {second}")
            continue
        if first.startswith("is ") and second.startswith("is ") and voice.maybe(0.5):
            second = second.removeprefix("is ")
        link = ", and " if " and " in first or voice.maybe(0.25) else " and "
        sentences.append(f"{subject} {first}{link}{second}")
    return sentences
