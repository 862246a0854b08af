"""Text of users and files, made fit for a terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Text that cannot move the cursor, clear the screen or ring: control characters become `�`."""
    return "".join("�" if unicodedata.category(letter) in ("Cc", "Cf", "Cs") else letter for letter in text)
