"""Augmentation of captions as texts: back-translation and deletion of words.

Sources: back-translation, Sennrich et al. (ACL 2016); random deletion, EDA (Wei and Zou, EMNLP 2019); both as in
TBPS-CLIP (Cao et al., AAAI 2024).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from cskt.config import AugmentConfig
from cskt.data.records import Split
from cskt.data.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def is_reworded(config: AugmentConfig) -> bool:
    """Return whether captions are changed before they are encoded."""
    return config.back_translation_probability > 0 or config.word_drop_probability > 0


def reworded(
    captions: Sequence[str],
    back_translations: Sequence[str],
    config: AugmentConfig,
    tokenizer: Tokenizer,
    generator: torch.Generator,
) -> Tensor:
    """Return the ids of a batch of captions, [B, L], some translated back, and without some of their words.

    Args:
        captions: B texts.
        back_translations: of each; empty where there is none.
        generator: all choices of the batch are drawn from it.
    """
    is_translated = (torch.rand(len(captions), generator=generator) < config.back_translation_probability).tolist()
    chosen = [
        tokenizer.clean(translation if translated and translation.strip() else caption)
        for caption, translation, translated in zip(captions, back_translations, is_translated, strict=True)
    ]
    words = [text.split() for text in chosen]
    draws = torch.rand(len(words), max(map(len, words), default=0), generator=generator)
    return tokenizer([_some(*each, config.word_drop_probability) for each in zip(words, draws.tolist(), strict=True)])


def _some(words: list[str], draws: list[float], probability: float) -> str:
    """Leave out the words whose draw is below the probability; if none is left, the word with the highest stays."""
    kept = [word for word, draw in zip(words, draws, strict=False) if draw >= probability]
    if words and not kept:
        kept = [words[max(range(len(words)), key=draws.__getitem__)]]
    return " ".join(kept)


def log_back_translations(split: Split, config: AugmentConfig) -> None:
    """Log how many captions have no back-translation, where some are to be replaced by it."""
    if config.back_translation_probability:
        missing = sum(not text.strip() for text in split.back_translations)
        where = f"{split.dataset} {split.name}"
        if missing == len(split.captions):
            logger.warning("%s: no text in captions_bt of the annotation, so back-translation is off", where)
        elif missing:
            logger.warning("%s: %d of %d captions have no captions_bt", where, missing, len(split.captions))
