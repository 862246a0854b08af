"""Captions of the varied domain: the sentences of both other domains with more synonyms, and many forms of their own.

Every word that the grammar knows occurs. So does ordinary English that says nothing about the person, and misspelling:
what a model must learn to read past.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cache

from cskt.data.paperdoll.attributes import read_table
from cskt.data.paperdoll.phrases import SOURCE_WORDS, TARGET_WORDS, Annotator, join, with_article
from cskt.data.tokenizer import common_words

TABLE = read_table("variety.yaml")
MORE_WORDS: dict[str, list[str]] = TABLE["words"]
NUM_COMMON_WORDS = 5_000
"""Words of English, the most frequent ones, that asides are made of."""


class ManyWords(Annotator):
    """An annotator who knows all synonyms and has no favourite among them."""

    def word(self, key: str) -> str:
        """Return a synonym of an attribute's value; two thirds of them from the other domains."""
        if self.maybe(0.65):
            return super().word(key)
        return self.pick(*MORE_WORDS.get(key, SOURCE_WORDS[key]))


def free_draft(annotator: Annotator) -> str:
    """Return some facts in one of the forms of `variety.yaml`: a search, a list, a notice, a remark."""
    rng = annotator.rng
    facts = annotator.visible_facts()
    phrases = [annotator.noun_phrase(fact) for fact in rng.sample(facts, min(len(facts), rng.randint(1, 5)))]
    noun, gendered = annotator.person_noun()
    pronoun = {"man": "he", "woman": "she"}[annotator.attributes.gender] if gendered else "they"
    bare = [re.sub(r"^(an?|a pair of) ", "", phrase) for phrase in phrases]
    who = with_article(noun)
    return annotator.pick(*TABLE["forms"]).format(
        who=who, noun=noun, it=join(phrases), bare=annotator.pick(", ", " ").join(bare), he=pronoun
    )


def disturb(text: str, rng: random.Random) -> str:
    """Return a caption with something in it that a reader passes over: an aside, a slip of the pen, no capitals."""
    if rng.random() < 0.3:
        form = rng.choice(TABLE["asides"])
        aside = re.sub(r"\{word\}", lambda _: rng.choice(_neutral_words()), form)
        text = f"{aside}, {text}" if rng.random() < 0.3 else f"{text.rstrip('.')} {aside}"
    if rng.random() < 0.12:
        text = _misspelt(text, rng)
    if rng.random() < 0.2:
        text = re.sub(r"[.,;:?]", "", text)
    return text


def _misspelt(text: str, rng: random.Random) -> str:
    """Leave out, double or exchange a letter inside a word."""
    place = rng.randrange(1, len(text) - 1)
    slips: Sequence[Callable[[], str]] = (
        lambda: text[:place] + text[place + 1 :],
        lambda: text[:place] + text[place] + text[place:],
        lambda: text[:place] + text[place + 1] + text[place] + text[place + 2 :],
    )
    return rng.choice(slips)()


@cache
def _neutral_words() -> tuple[str, ...]:
    """Common words of English that describe nobody: those that no synonym contains."""
    known = (*SOURCE_WORDS.values(), *TARGET_WORDS.values(), *MORE_WORDS.values())
    descriptive = {word for phrases in known for phrase in phrases for word in re.findall(r"[a-z]+", phrase)}
    return tuple(word for word in common_words(NUM_COMMON_WORDS) if word not in descriptive)
