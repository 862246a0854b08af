"""Conditions of a filter as a small tree, which every store compiles to its own language.

`filters` parses it from text. It has no NOT: a crop without a value in a column fulfils no condition on that column
but `Missing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from cskt.gallery.columns import Value

LONGEST_FILTER = 100_000
"""Characters of a filter."""
MOST_ENTRIES = 5000
"""Literals in one IN (...)."""
MOST_JOINED = 200
"""Words AND and OR in one filter: stores walk a chain of conditions to its full depth."""

Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True)
class Comparison:
    """The crop's value compares so with another; text and times are ordered by code point."""

    column: str
    operator: Operator
    value: Value


@dataclass(frozen=True)
class Membership:
    """The crop's value is one of several; negated: it has a value and that is none of them."""

    column: str
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True)
class Pattern:
    """The crop's text consists of these parts in order, with any text between them; case matters.

    `LIKE 'a%b'` has the parts `a` and `b`: it starts with the first and ends with the last, which may be empty. A
    pattern without `%` has one part, the whole text. A part may contain any character, also `%`.
    """

    column: str
    parts: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True)
class Missing:
    """The crop has no value in the column; negated: it has one."""

    column: str
    negated: bool = False


@dataclass(frozen=True)
class All:
    """Every one of two or more conditions holds."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Any_:  # noqa: N801  (`Any` is a name of typing)
    """At least one of two or more conditions holds."""

    conditions: tuple[Condition, ...]


Condition: TypeAlias = Comparison | Membership | Pattern | Missing | All | Any_
