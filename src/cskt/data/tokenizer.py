"""CLIP's byte-pair encoding (Radford et al. 2021, section 2.4) on the `tokenizers` library.

The merges are CLIP's own, shipped as data (see NOTICE). Ids: 0-255 bytes, 256-511 bytes that end a word, then one
per merge, 49406 start, 49407 end. A smaller vocabulary has the first of the merges, which are in order of frequency,
and start and end after them: rarer words are spelled with more tokens, and no word is unknown. Text is cleaned as CLIP
does: mojibake repaired, HTML entities resolved twice, white space collapsed, lower case.

The start and end tokens cannot be typed: a literal "<|startoftext|>" or "<|endoftext|>" in a caption or query is plain
text, encoded like any other run of signs and letters. This differs on purpose from CLIP's released tokenizer, which
gives the two the ids 49406 and 49407 (and IRRA's, which also gives "<|mask|>" the id 49405): a typed end token would
end the caption there, because the text feature is that of the first end token.
"""

from __future__ import annotations

import gzip
import html
import logging
import re
import string
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from importlib import resources
from itertools import islice

import tokenizers
import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from torch import Tensor

from cskt.config.architecture import MIN_VOCAB_SIZE, VOCAB_SIZE
from cskt.errors import CsktError

logger = logging.getLogger(__name__)

READ_BYTES = 600_000
"""Bytes at the start of the file of merges which contain all that are used."""
START_ID = VOCAB_SIZE - 2
END_ID = VOCAB_SIZE - 1
WORD_END = "</w>"
MAX_CHARACTERS = 5_000
"""Characters of a text that are read: far more than fit into any context, few enough to be cleaned at once."""
PUNCTUATION = '.!"()*#:;~'
"""Characters that `without_punctuation` makes spaces."""
MAX_CLEAN_WORDS = 77
"""Words that `without_punctuation` keeps."""
_TO_SPACES = str.maketrans(dict.fromkeys(PUNCTUATION, " "))
MAX_WORDS_SHOWN, MAX_LETTERS_SHOWN = 8, 40
"""Words in one warning, and letters of each."""
WORD_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
"""CLIP's words: English contractions, runs of letters, single digits, runs of anything else."""


class Tokenizer:
    """Encodes captions as token ids; it logs nothing, see `warnings`.

    Args:
        context_length: most tokens per caption, start and end included.
        known_ids: ids whose embeddings the backbone has learned; None if it knows all. A word that needs others is
            encoded all the same.
        clean_captions: take out punctuation first, see `without_punctuation`.
        vocab_size: number of tokens, start and end included: the first `vocab_size` - 514 merges of CLIP.

    Example:
        >>> Tokenizer()(["a man in red"]).tolist()
        [[49406, 320, 786, 530, 736, 49407]]
    """

    def __init__(
        self,
        context_length: int = 77,
        known_ids: Collection[int] | None = None,
        *,
        clean_captions: bool = False,
        vocab_size: int = VOCAB_SIZE,
    ) -> None:
        if context_length < 2:
            raise CsktError(f"context_length is {context_length}; start and end alone need 2")
        check_vocab_size(vocab_size)
        self.context_length = context_length
        self.known_ids = None if known_ids is None else frozenset(known_ids)
        self.clean_captions = clean_captions
        self.vocab_size = vocab_size
        self.start_id, self.end_id = vocab_size - 2, vocab_size - 1

    @property
    def knows_few_words(self) -> bool:
        """True for clip-tiny and models over it, which know generated captions and no other text."""
        return knows_few_words(self.known_ids, self.vocab_size)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without start and end tokens."""
        return self._encodings([text])[0].ids

    def clean(self, text: str) -> str:
        """Return a text as it is encoded: single spaces between words, lower case."""
        return clean(without_punctuation(text) if self.clean_captions else text)

    def _encodings(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        return clip_bpe(self.vocab_size).encode_batch([self.clean(text) for text in texts])

    def __call__(self, captions: Sequence[str], *, pad_to_context: bool = False) -> Tensor:
        """Encode a batch of captions; longer ones are cut to `context_length`, with the end token kept.

        Args:
            captions: B texts.
            pad_to_context: make L the context length instead of the longest caption of the batch.

        Returns:
            [B, L] int64: start, words, end, then zeros.

        Raises:
            CsktError: `captions` is a single string.
        """
        if isinstance(captions, str):
            raise CsktError("captions is one string; pass a list of strings")
        most_words = self.context_length - 2
        encodings = self._encodings(captions)
        rows = [[self.start_id, *encoding.ids[:most_words], self.end_id] for encoding in encodings]
        length = self.context_length if pad_to_context else max(map(len, rows), default=2)
        caption_ids = torch.zeros(len(rows), length, dtype=torch.int64)
        for row, words in zip(caption_ids, rows, strict=True):
            row[: len(words)] = torch.tensor(words)
        return caption_ids

    def warnings(self, captions: Sequence[str]) -> list[str]:
        """Return a line on captions whose ends are cut off, and one that quotes words without a learned embedding.

        Args:
            captions: those of a data set, or a single sentence to search with, which the lines are then about.
        """
        encodings, most_words = self._encodings(captions), self.context_length - 2
        lengths = [len(encoding.ids) for encoding in encodings]
        num_cut = sum(length > most_words for length in lengths)
        lines = []
        if num_cut and len(captions) == 1:
            read = f"the model reads {self.context_length} tokens of the sentence"
            lines.append(f"{read}, which has {lengths[0] + 2}; shorten it")
        elif num_cut:
            lines.append(
                f"{num_cut} of {len(captions)} captions have more than {self.context_length} tokens and are cut to it"
            )
        if self.known_ids is not None:
            found = (word for encoding in encodings for word in _unknown_words(encoding, self.known_ids, most_words))
            if words := list(dict.fromkeys(found)):
                lines.append(_line_of_unknown_words(words))
        return lines


def knows_few_words(known_ids: Collection[int] | None, vocab_size: int) -> bool:
    """Return whether a model has embeddings for part of CLIP's vocabulary alone, as clip-tiny and models over it."""
    return known_ids is not None or vocab_size < VOCAB_SIZE


def check_vocab_size(vocab_size: int) -> None:
    """Raise a CsktError if CLIP's merges do not give a vocabulary of that size."""
    if not MIN_VOCAB_SIZE <= vocab_size <= VOCAB_SIZE:
        raise CsktError(
            f"vocab_size is {vocab_size}; CLIP's tokenizer has from {MIN_VOCAB_SIZE} to {VOCAB_SIZE} tokens"
        )


def log_caption_warnings(source: str, lines: Iterable[str]) -> None:
    """Log the lines of `Tokenizer.warnings` with the name of their data set and split."""
    for line in lines:
        logger.warning("%s: %s", source, line)


def _line_of_unknown_words(words: Sequence[str]) -> str:
    shown = ", ".join(repr(word[:MAX_LETTERS_SHOWN]) for word in words[:MAX_WORDS_SHOWN])
    if len(words) == 1:
        return f"the model has never seen the word {shown}, which adds noise"
    rest = f" and {len(words) - MAX_WORDS_SHOWN} more" if len(words) > MAX_WORDS_SHOWN else ""
    return f"the model has never seen the words {shown}{rest}, which add noise"


def _unknown_words(encoding: tokenizers.Encoding, known_ids: frozenset[int], num_read: int) -> Iterator[str]:
    """Yield the words among the first `num_read` ids of an encoded text that need an id outside `known_ids`."""
    positions_of: dict[int | None, list[int]] = {}
    for position, word_id in enumerate(encoding.word_ids[:num_read]):
        positions_of.setdefault(word_id, []).append(position)
    for positions in positions_of.values():
        if not known_ids.issuperset(encoding.ids[position] for position in positions):
            symbols = "".join(encoding.tokens[position] for position in positions)
            word = decoders.ByteLevel().decode([symbols.removesuffix(WORD_END)])
            if word.strip(string.punctuation):  # a full stop is no word
                yield word


def clean(text: str) -> str:
    """Return a text as CLIP's vocabulary expects it: repaired, unescaped, single spaces, lower case."""
    text = text.lstrip()[:MAX_CHARACTERS]
    if not (text.isascii() and text.isprintable() and "&" not in text):  # nothing to repair in most captions
        import ftfy  # noqa: PLC0415  (slow to import)

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def without_punctuation(text: str) -> str:
    """Return a text as the released code of TBPS-CLIP (Cao et al., AAAI 2024) prepares it.

    Lower case; each of . ! " ( ) * # : ; ~ becomes a space; at most `MAX_CLEAN_WORDS` words, with single spaces.

    Example:
        >>> without_punctuation("A man (tall): black  coat; grey trousers.")
        'a man tall black coat grey trousers'
    """
    return " ".join(text.lower()[:MAX_CHARACTERS].translate(_TO_SPACES).split()[:MAX_CLEAN_WORDS])


@cache
def clip_bpe(vocab_size: int = VOCAB_SIZE) -> tokenizers.Tokenizer:
    """Return CLIP's vocabulary and merges as a `tokenizers` object, built once per process (about 0.1 s).

    Args:
        vocab_size: see `Tokenizer`; start and end are not in the object.
    """
    merges = _read_merges(vocab_size - MIN_VOCAB_SIZE)
    ids = {token: index for index, token in enumerate(_symbols(merges))}
    bpe = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges, end_of_word_suffix=WORD_END))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return bpe


def common_words(num_words: int) -> list[str]:
    """Return the first words of three letters or more among CLIP's tokens, the most frequent ones first."""
    words = (token.removesuffix(WORD_END) for token in _symbols(_read_merges()) if token.endswith(WORD_END))
    return list(islice((word for word in words if re.fullmatch("[a-z]{3,}", word)), num_words))


def _symbols(merges: Sequence[tuple[str, str]]) -> list[str]:
    """Return the tokens in the order of their ids."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())  # in the order of CLIP's ids 0-255
    return [*symbols, *(symbol + WORD_END for symbol in symbols), *("".join(merge) for merge in merges)]


def _read_merges(num_merges: int = VOCAB_SIZE - MIN_VOCAB_SIZE) -> list[tuple[str, str]]:
    # The file has 262,144 merges; CLIP was trained on the first 48,894.
    file = resources.files("cskt") / "assets" / "bpe_simple_vocab_16e6.txt.gz"
    with file.open("rb") as packed, gzip.open(packed) as content:
        text = content.read(READ_BYTES).decode(errors="ignore")  # the last character may be cut
    lines = text.split("\n")[1 : num_merges + 1]  # the first states a version
    return [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
