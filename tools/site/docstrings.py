"""Extension of griffe: docstrings in the package's style, as griffe's reader of Google's style expects them."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ARGUMENTS = re.compile(r"^Args:\n(?:(?: +.*)?(?:\n|\Z))+", re.MULTILINE)
SHARED = re.compile(r"^(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE)


def readable(docstring: str) -> str:
    """Return a docstring whose examples are shown as code, and with an entry for every argument.

    >>> print(readable("Add.\\n\\nArgs:\\n    a, b: numbers.\\n\\nExample:\\n    >>> add(1, 2)\\n    3"))
    Add.
    <BLANKLINE>
    Args:
        a: numbers.
        b: numbers.
    <BLANKLINE>
    Examples:
        >>> add(1, 2)
        3
    """

    def split(entry: re.Match[str]) -> str:
        return "\n".join(f"{entry['indent']}{name}: {entry['text']}" for name in entry["names"].split(", "))

    with_entries = ARGUMENTS.sub(lambda section: SHARED.sub(split, section[0]), docstring)
    return re.sub(r"^Example:$", "Examples:", with_entries, flags=re.MULTILINE)


class Docstrings(Extension):
    """Change every docstring before it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of a class, a function, an attribute or a module."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
