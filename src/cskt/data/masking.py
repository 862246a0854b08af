"""Masking and dropping of word tokens: the input of masked language modelling, and augmentation of captions.

Everything works on a batch of caption ids on any device as `Tokenizer` makes them, [B, L] int64: start, words, end,
zeros. The input is never changed, and every choice is drawn from a generator on the CPU: the same on every device.

Sources: masked language modelling, BERT (Devlin et al. 2019, section 3.1), on captions as in IRRA (Jiang and Ye
2023); random deletion, EDA (Wei and Zou 2019); words changed in three ways, RDE (Qin et al. 2024).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cskt.config import AugmentConfig
from cskt.config.architecture import VOCAB_SIZE

MASK_ID = VOCAB_SIZE - 3
"""CLIP has no mask token. As in IRRA its last word, "jekyll", serves as one, and only where masking is on."""
FIRST_WORD_ID = 1
"""First id that may be masked or inserted at random, as in IRRA: all words but the mask token; 0 ("!") is padding."""
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and a random one; the rest stay (BERT)."""
CHANGED_TO_MASK, CHANGED_TO_RANDOM = 0.6, 0.2
"""Shares of the changed tokens that become the mask token, and a random one; the rest are removed (RDE's released code,
whose comments say otherwise)."""


class MaskedCaptions(NamedTuple):
    """Captions with words to predict."""

    ids: Tensor
    """[B, L] int64, input of the model."""
    labels: Tensor
    """[B, L] int64, the original id where it is to be predicted, 0 elsewhere."""


def mask_id_of(vocab_size: int) -> int:
    """Return the mask token of a vocabulary, its last word: `MASK_ID` in CLIP's."""
    return vocab_size - VOCAB_SIZE + MASK_ID


def mask_tokens(
    caption_ids: Tensor, probability: float, generator: torch.Generator, vocab_size: int = VOCAB_SIZE
) -> MaskedCaptions:
    """Choose each word with a probability as one to predict, and mask most of them.

    A chosen word becomes the mask token (80 %), a random one (10 %) or stays (10 %). A caption in which none is
    chosen has its first word masked, as in IRRA, so that every caption with words has a prediction.
    """
    maskable, mask_id = _is_maskable(caption_ids, vocab_size), mask_id_of(vocab_size)
    # One number per token decides whether it is chosen and how it is replaced.
    draw = _uniform(caption_ids, generator)
    chosen = maskable & (draw < probability)
    masked = chosen & (draw < probability * MASKED_SHARE)
    replaced = chosen & ~masked & (draw < probability * (MASKED_SHARE + RANDOM_SHARE))
    first_instead = maskable[:, 1] & ~chosen.any(dim=1)
    chosen[:, 1] |= first_instead
    masked[:, 1] |= first_instead

    words = _random_words(caption_ids, generator, mask_id)
    ids = torch.where(replaced, words, caption_ids).masked_fill(masked, mask_id)
    return MaskedCaptions(ids=ids, labels=caption_ids.masked_fill(~chosen, 0))


def replace_by_mask(
    caption_ids: Tensor, probability: float, generator: torch.Generator, vocab_size: int = VOCAB_SIZE
) -> Tensor:
    """Replace each word by the mask token with a probability."""
    hidden = _is_maskable(caption_ids, vocab_size) & (_uniform(caption_ids, generator) < probability)
    return caption_ids.masked_fill(hidden, mask_id_of(vocab_size))


def drop_tokens(caption_ids: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Remove each word with a probability; the others move up. Of a caption that has words, one always stays.

    Everything between start and end is a word, an inner "!" (id 0) too. The result is as long as its longest caption.
    """
    ends = caption_ids.argmax(dim=1, keepdim=True)  # the end token has the highest id
    positions = torch.arange(caption_ids.shape[1], device=caption_ids.device)
    is_word = (positions > 0) & (positions < ends)
    draw = _uniform(caption_ids, generator).masked_fill(~is_word, -1)
    # The word with the largest number is the last to be removed at any probability: it is the one that stays.
    dropped = (is_word & (draw < probability)).scatter(1, draw.argmax(dim=1, keepdim=True), False)
    return _without(caption_ids, dropped)


def change_tokens(
    caption_ids: Tensor, probability: float, generator: torch.Generator, vocab_size: int = VOCAB_SIZE
) -> Tensor:
    """Change each word with a probability: into the mask token (60 %), into a random one (20 %), or remove it (20 %).

    The words behind a removed one move up. All words of a caption may be removed. The result is as long as its longest
    caption.
    """
    mask_id = mask_id_of(vocab_size)
    draw = _uniform(caption_ids, generator)
    changed = _is_maskable(caption_ids, vocab_size) & (draw < probability)
    masked = changed & (draw < probability * CHANGED_TO_MASK)
    replaced = changed & ~masked & (draw < probability * (CHANGED_TO_MASK + CHANGED_TO_RANDOM))
    words = _random_words(caption_ids, generator, mask_id)
    ids = torch.where(replaced, words, caption_ids).masked_fill(masked, mask_id)
    return _without(ids, changed & ~masked & ~replaced)


def _without(caption_ids: Tensor, dropped: Tensor) -> Tensor:
    """Remove tokens, [B, L] bool, and move the others up; the result is as long as its longest caption."""
    ends = caption_ids.argmax(dim=1)  # the end token has the highest id
    kept_first = dropped.to(torch.uint8).argsort(dim=1, stable=True)
    length = int((ends - dropped.sum(dim=1)).max()) + 1
    return caption_ids.masked_fill(dropped, 0).gather(1, kept_first)[:, :length]


def augment_captions(
    caption_ids: Tensor, config: AugmentConfig, generator: torch.Generator, vocab_size: int = VOCAB_SIZE
) -> Tensor:
    """Return the training view of captions, [B, l] with l <= L: words changed, then words removed, then words masked.

    A probability of 0 draws nothing, so that later draws from the generator stay the same; if all are 0, the result is
    the input itself.
    """
    if config.caption_change_probability:
        caption_ids = change_tokens(caption_ids, config.caption_change_probability, generator, vocab_size)
    if config.caption_drop_probability:
        caption_ids = drop_tokens(caption_ids, config.caption_drop_probability, generator)
    if config.caption_mask_probability:
        caption_ids = replace_by_mask(caption_ids, config.caption_mask_probability, generator, vocab_size)
    return caption_ids


def _is_maskable(caption_ids: Tensor, vocab_size: int) -> Tensor:
    return (caption_ids >= FIRST_WORD_ID) & (caption_ids < mask_id_of(vocab_size))


def _uniform(caption_ids: Tensor, generator: torch.Generator) -> Tensor:
    """Return [B, L] numbers in [0, 1), drawn on the CPU and moved to the captions' device."""
    return torch.rand(caption_ids.shape, generator=generator).to(caption_ids.device)


def _random_words(caption_ids: Tensor, generator: torch.Generator, mask_id: int) -> Tensor:
    """Return [B, L] random ids of words, likewise."""
    words = torch.randint(FIRST_WORD_ID, mask_id, caption_ids.shape, generator=generator)
    return words.to(caption_ids.device)
