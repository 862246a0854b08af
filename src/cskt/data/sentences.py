"""The rules for a sentence that somebody searches with, in the shell, in Python and by HTTP alike.

Captions of data sets are not bound by them: the tokenizer cuts those to what the model reads.
"""

from __future__ import annotations

import unicodedata

from cskt.errors import CsktError

LONGEST_SENTENCE = 2_000
"""Characters; a model reads the first 60 words or so."""


def check_sentence(text: str) -> None:
    """Check a sentence before it is encoded.

    Args:
        text: as the user wrote it; white space, line breaks included, is allowed anywhere.

    Raises:
        CsktError: see `check_length` and `check_wording`.
    """
    check_length(text)
    check_wording(text)


def check_length(text: str) -> None:
    """Raise CsktError if a sentence has more than `LONGEST_SENTENCE` characters."""
    if len(text) > LONGEST_SENTENCE:
        raise CsktError(f"a sentence of {len(text):,} characters; give at most {LONGEST_SENTENCE:,}")


def check_wording(text: str) -> None:
    """Raise CsktError if a sentence is empty, is not UTF-8, or contains control characters."""
    if not text.strip():
        raise CsktError("a sentence is empty; say what the person looks like")
    if any(unicodedata.category(letter) == "Cs" for letter in text):  # bytes that Python could not decode
        raise CsktError(f"a sentence is not UTF-8: {text[:60]!a}; write it in UTF-8")
    if any(unicodedata.category(letter) == "Cc" and not letter.isspace() for letter in text):
        raise CsktError(f"a sentence holds control characters: {text[:60]!a}; remove them")
