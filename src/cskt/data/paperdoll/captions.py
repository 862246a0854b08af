"""Captions from a grammar: short and plain for the source domain, 20 to 40 words of prose for the target.

`write_caption` draws the facts to name, their words, order and sentence forms; `phrases` supplies the noun phrases, and
`grammar.yaml` the sentence forms.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cskt.data.paperdoll.attributes import Attributes
from cskt.data.paperdoll.drawing import Domain, Drawing
from cskt.data.paperdoll.paraphrases import ManyWords, disturb, free_draft
from cskt.data.paperdoll.phrases import CLOTHES, GRAMMAR, Annotator, join, with_article

CAPTION_WORDS: dict[Domain, tuple[int, int]] = {"source": (8, 25), "target": (20, 40), "varied": (2, 40)}
"""Fewest and most words of a caption."""

_MAX_DRAFTS = 500


def write_caption(attributes: Attributes, drawing: Drawing, rng: random.Random, *, domain: Domain) -> str:
    """Write one caption of one image.

    Args:
        attributes: the person.
        drawing: the image; only what it shows is described.
        rng: decides words, order and omissions.
        domain: the annotators' domain; sets the length in words, `CAPTION_WORDS`.
    """
    fewest, most = CAPTION_WORDS[domain]
    for _ in range(_MAX_DRAFTS):
        if domain == "varied":
            text = _varied_draft(attributes, drawing, rng)
        elif domain == "target":
            text = _TargetCaption(attributes, drawing, rng).draft()
        else:
            text = _source_draft(Annotator(attributes, drawing, rng, rich=False))
        if fewest <= len(text.split()) <= most:
            return text
    raise AssertionError(f"no {domain} caption of {fewest} to {most} words in {_MAX_DRAFTS} drafts: {attributes}")


def _varied_draft(attributes: Attributes, drawing: Drawing, rng: random.Random) -> str:
    """Return a caption in one of the styles, with or without something else in it."""
    style = rng.choices(("free", "source", "target"), weights=(3, 3, 4))[0]
    if style == "target":
        text = _VariedProse(attributes, drawing, rng).draft()
    else:
        annotator = ManyWords(attributes, drawing, rng, rich=rng.random() < 0.7)
        text = free_draft(annotator) if style == "free" else _source_draft(annotator)
    return disturb(text, rng)


def _source_draft(annotator: Annotator) -> str:
    """Return a random subset of the facts in random order, around one noun."""
    pick, rng = annotator.pick, annotator.rng
    facts = annotator.visible_facts()
    named = rng.sample(facts, min(len(facts), rng.randint(2, 5)))
    phrases = {fact: annotator.noun_phrase(fact) for fact in named}
    noun, _ = annotator.person_noun()
    form = rng.random()
    if form < 0.2:
        opening = pick("", "a photo of ", "a picture of ")
        return f"{opening}{with_article(noun)} with {join(list(phrases.values()))}"
    is_sentence = form > 0.7
    if is_sentence:
        verbs = dict.fromkeys(CLOTHES, pick("wears", "is wearing"))
        verbs |= {"hair": "has", "bag": pick("carries", "has"), "held": "is holding"}
    else:
        verbs = dict.fromkeys(CLOTHES, pick("wearing", "in"))
        verbs |= {"hair": "with", "bag": pick("carrying", "with"), "held": "holding"}
    groups: dict[str, list[str]] = {}
    for fact, phrase in phrases.items():
        groups.setdefault(verbs[fact], []).append(phrase)
    parts = [f"{verb} {join(members)}" for verb, members in groups.items()]
    if is_sentence:
        return f"{pick('the', 'this')} {noun} {join(parts)}"
    return f"{pick('', '', 'a photo of ')}{with_article(noun)} {', '.join(parts)}"


class _TargetCaption(Annotator):
    """One to five sentences: some facts in the subject, some as its statements, some with a subject of their own."""

    def __init__(self, attributes: Attributes, drawing: Drawing, rng: random.Random) -> None:
        super().__init__(attributes, drawing, rng, rich=True)
        self.gait = "walking" if drawing.walking else "standing"
        noun, gendered = self.person_noun()
        self.first_subject = self.pick(f"the {noun}", f"the {noun}", with_article(noun), f"this {noun}")
        pronouns = GRAMMAR["pronouns"][attributes.gender if gendered else "person"]
        self.later_subjects = [*pronouns["later"], f"the {noun.split()[-1]}"]
        self.words = {
            "own": pronouns["own"],
            "them": pronouns["them"],
            "verb": f"is {self.gait}",
            "subject": self.later_subjects[0],
        }

    def draft(self) -> str:
        keep = self.rng.uniform(0.35, 0.9)
        chance = {"upper": 0.96, "lower": 0.9, "eyewear": keep - 0.2}
        named = [fact for fact in self.visible_facts() if self.maybe(chance.get(fact, keep))]
        self.rng.shuffle(named)
        phrases = {fact: self.noun_phrase(fact) for fact in named}

        description = ""
        statements: list[str] = []
        asides: list[str] = []
        if "hair" in phrases and self.maybe(0.25):
            description = f" with {phrases.pop('hair')}"
        together = [fact for fact in named if fact in ("upper", "lower") or (fact in CLOTHES and self.maybe(0.5))]
        if together:
            worn = join([phrases.pop(fact) for fact in together])
            if not description and self.maybe(0.2):
                description = self.pick(f" in {worn}", f" wearing {worn}", f" dressed in {worn}")
            else:
                verb = self.pick("is wearing", "is wearing", "wears", "is dressed in", "has on")
                statements.append(f"{verb} {worn}")
        for fact, phrase in phrases.items():
            # "on her feet are a pair of boots" reads oddly.
            has_aside = fact in GRAMMAR["asides"] and not (fact == "shoes" and phrase.startswith("a pair"))
            if self.maybe(0.2) and has_aside:
                asides.append(GRAMMAR["asides"][fact].format(it=phrase, **self.words))
            else:
                statements.append(self.fill(self.statements_on(fact), it=phrase))
        if not statements or self.maybe(0.45):
            statements.insert(self.rng.randint(0, 1), self.activity())
        if not together or self.maybe(0.7):
            self.rng.shuffle(statements)
        if self.maybe(0.15):
            asides.append(self.fill(self.remarks()))
        sentences = self.sentences(statements, description) + asides
        return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)

    def fill(self, forms: Sequence[str], **words: str) -> str:
        return self.pick(*forms).format(**self.words, **words)

    def statements_on(self, fact: str) -> list[str]:
        forms, kind = GRAMMAR["statements"], getattr(self.attributes, fact)
        if kind == "suitcase":
            return forms[f"{self.gait} suitcase"]
        if fact in ("bag", "held"):
            return forms.get(kind, forms["held"])
        return forms.get(fact, forms["worn"])

    def remarks(self) -> list[str]:
        kinds = ("always", self.gait, self.drawing.view)
        return [remark for kind in kinds for remark in GRAMMAR["remarks"].get(kind, ())]

    def activity(self) -> str:
        place = self.pick(*GRAMMAR["places"][self.gait])
        return self.fill(GRAMMAR["activities"][f"{self.gait} {self.drawing.view}"], place=place)

    def sentences(self, statements: list[str], description: str) -> list[str]:
        """Return the statements, one or two to a sentence; `description` follows the subject of the first."""
        sentences: list[str] = []
        waiting = list(statements)
        while waiting:
            first = waiting.pop(0)
            subject = self.pick(*self.later_subjects) if sentences else f"{self.first_subject}{description}"
            if _is_about_clothes(first):  # "the man wearing jeans wears a shirt" reads better with "in jeans"
                subject = subject.replace(" wearing ", " in ", 1).replace(" dressed in ", " in ", 1)
            same_subject_matter = bool(waiting) and _is_about_clothes(first) and _is_about_clothes(waiting[0])
            if not waiting or same_subject_matter or self.maybe(0.35):
                sentences.append(f"{subject} {first}")
                continue
            second = waiting.pop(0)
            if first.startswith("is wearing ") and self.maybe(0.25):
                sentences.append(f"{first.removeprefix('is ')}, {subject} {second}")
                continue
            if first.startswith("is ") and second.startswith("is ") and self.maybe(0.5):
                second = second.removeprefix("is ")
            link = ", and " if " and " in first or self.maybe(0.25) else " and "
            sentences.append(f"{subject} {first}{link}{second}")
        return sentences


class _VariedProse(ManyWords, _TargetCaption):
    """The prose of the target domain with all synonyms."""


def _is_about_clothes(statement: str) -> bool:
    return statement.startswith(("is wearing", "wears", "is dressed", "has on")) or statement.endswith(" on")
