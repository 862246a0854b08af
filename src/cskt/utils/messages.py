"""Parts of error messages."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def nearest(word: str, known: Collection[str]) -> str:
    """Return a clause that names the known word most like `word`, or lists the known words if none is like it."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"


def one_line(text: object) -> str:
    """Return a text, or the message of an error, on one line."""
    return " ".join(str(text).split())
