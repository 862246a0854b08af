"""Conditions of a filter as a small tree, which a store compiles to its own language, or evaluates with `fulfils`.

`filters` parses it from text. It has no NOT: a crop without a value in a column fulfils no condition on that column
but `Missing`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, assert_never

from cskt.gallery.columns import Value

MAX_FILTER_CHARACTERS = 100_000
"""Characters of a filter."""
MAX_ENTRIES = 5000
"""Literals in one IN (...)."""
MAX_JOINED = 200
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

_COMPARE: dict[Operator, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def fulfils(condition: Condition, values: Mapping[str, Value]) -> bool:
    """Return whether a crop with these values, by column, fulfils a condition.

    Example:
        >>> from cskt.gallery.conditions import Comparison, fulfils
        >>> fulfils(Comparison("frame", ">", 2), {"frame": 3}), fulfils(Comparison("frame", ">", 2), {})
        (True, False)
    """
    match condition:
        case All(parts):
            return all(fulfils(part, values) for part in parts)
        case Any_(parts):
            return any(fulfils(part, values) for part in parts)
        case Missing(column, negated):
            return (column in values) == negated
    value = values.get(condition.column)
    return value is not None and _holds(condition, value)


def _holds(condition: Comparison | Membership | Pattern, value: Value) -> bool:
    match condition:
        case Comparison(_, relation, other):
            is_comparable = isinstance(value, str) == isinstance(other, str)
            return is_comparable and _COMPARE[relation](value, other)
        case Membership(_, others, negated):
            return (value in others) != negated
        case Pattern(_, parts, negated):
            return _matches(str(value), parts) != negated
    assert_never(condition)


def _matches(text: str, parts: tuple[str, ...]) -> bool:
    """Return whether a text has these parts in order."""
    if len(parts) == 1:  # no regular expression, whose time can grow with a power of the length
        return text == parts[0]
    first, *middle, last = parts
    if not text.startswith(first):
        return False
    end = len(first)
    for part in middle:
        start = text.find(part, end)
        if start < 0:
            return False
        end = start + len(part)
    return len(text) - len(last) >= end and text.endswith(last)
