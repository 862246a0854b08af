"""Rules for a sentence to search with, the same in the shell, in Python and over HTTP.

They do not apply to captions of data sets, which the tokenizer cuts. The module imports no torch: command-line help and
the schemas of the service need the limit.
"""

from __future__ import annotations

import unicodedata

from cskt.errors import CsktError
from cskt.utils.arguments import expect

MAX_SENTENCE_CHARACTERS = 2_000
"""Characters; a model reads about the first 60 words."""


def check_sentence(text: str) -> None:
    """Raise CsktError if a sentence must not be encoded; see `check_length` and `check_wording`."""
    check_length(text)
    check_wording(text)


def check_length(text: str) -> None:
    """Raise CsktError if a sentence has more than `MAX_SENTENCE_CHARACTERS` characters."""
    expect(text, str, "a sentence")
    if len(text) > MAX_SENTENCE_CHARACTERS:
        raise CsktError(f"a sentence of {len(text):,} characters; give at most {MAX_SENTENCE_CHARACTERS:,}")


def check_wording(text: str) -> None:
    """Raise CsktError if a sentence is empty, is not UTF-8, or has control characters other than white space."""
    if not text.strip():
        raise CsktError("a sentence is empty; describe the person")
    if any(unicodedata.category(letter) == "Cs" for letter in text):  # bytes that Python could not decode
        raise CsktError(f"a sentence is not UTF-8: {text[:60]!a}; write it in UTF-8")
    if any(unicodedata.category(letter) == "Cc" and not letter.isspace() for letter in text):
        raise CsktError(f"a sentence holds control characters: {text[:60]!a}; remove them")
