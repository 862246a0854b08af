"""Meaning of conditions in plain Python, to which stores are compared, and random trees of conditions."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from cskt.gallery.columns import Kind, Value
from cskt.gallery.conditions import All, Any_, Comparison, Condition, Membership, Missing, Pattern
from cskt.gallery.stores.base import check_image_id

RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
COLUMNS: dict[str, Kind] = {"camera": "text", "note": "text", "frame": "number", "night": "boolean", "time": "time"}
"""The columns of the trees and values below."""
NASTY_TEXTS = [
    "c1", "C1", "c", "c1 ", "it's", '"c1"', "a\\b", "\\", "\\'", "\\\\", "a\\n", "a\nb", "a\tb", "%", "_", "a%b",
    "a_b", "axb", "?", "[c]", "{x}", "c1' or true --", "/*", "*", ".", "é", "e\u0301", "日本", "𝒳", "a\u2028b", "\x1b[",
    "\x7f", "null", "true", "0", "{camera}", "$meta", "\\u0041", "\\x41", "ÿ", "\ufeff", ";",
]  # fmt: skip
"""Texts that mean something, or escape something, in one database language or another."""


def _is_name(text: str) -> bool:
    try:
        return check_image_id(text) == text
    except ValueError:
        return False


NASTY_NAMES = list(filter(_is_name, NASTY_TEXTS))
"""Texts that are valid names of crops."""
SOME_VALUES: dict[Kind, list[Value]] = {
    "text": list(NASTY_TEXTS),
    "number": [0, 1, -1, 3, 2.5, -0.25, 1e-7, 1e300, 2**53, -(2**53), 0.1, 100000000000000000000.0],
    "boolean": [True, False],
    "time": ["2026-01-31T12:00:00", "2026-01-31T12:00:00.000001", "2025-12-31T23:59:59", "0001-01-01T00:00:00"],
}


def fulfils(condition: Condition, values: Mapping[str, Value]) -> bool:  # noqa: PLR0911  one per form
    """Return whether a crop with these values fulfils the condition."""
    match condition:
        case All(conditions):
            return all(fulfils(part, values) for part in conditions)
        case Any_(conditions):
            return any(fulfils(part, values) for part in conditions)
        case Missing(column, negated):
            return (column in values) == negated
    if condition.column not in values:
        return False
    value = values[condition.column]
    match condition:
        case Comparison(_, relation, literal):
            return RELATIONS[relation](value, literal)
        case Membership(_, literals, negated):
            return (value in literals) != negated
        case Pattern(_, parts, negated):
            found = re.fullmatch(".*".join(map(re.escape, parts)), str(value), re.DOTALL)
            return (found is not None) != negated


def written(condition: Condition) -> str:
    """The condition as a user writes it."""
    match condition:
        case All(conditions):
            return " AND ".join(f"({written(part)})" for part in conditions)
        case Any_(conditions):
            return " OR ".join(f"({written(part)})" for part in conditions)
        case Missing(column, negated):
            return f"{column} IS {'NOT ' * negated}NULL"
        case Comparison(column, relation, literal):
            return f"{column} {relation} {_literal(literal)}"
        case Membership(column, literals, negated):
            return f"{column} {'NOT ' * negated}IN ({', '.join(map(_literal, literals))})"
        case Pattern(column, parts, negated):
            return f"{column} {'NOT ' * negated}LIKE {_literal('%'.join(parts))}"


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def values() -> st.SearchStrategy[dict[str, Value]]:
    """The metadata of one crop, some columns left out."""
    return st.fixed_dictionaries(
        {}, optional={column: st.sampled_from(SOME_VALUES[kind]) for column, kind in COLUMNS.items()}
    )


def conditions() -> st.SearchStrategy[Condition]:
    """Trees over `COLUMNS` whose literals often meet the values above."""
    leaves = st.sampled_from(sorted(COLUMNS)).flatmap(_leaves)
    return st.recursive(
        leaves, lambda parts: st.lists(parts, min_size=2, max_size=3).map(tuple).flatmap(_joined), max_leaves=6
    )


def _joined(parts: tuple[Condition, ...]) -> st.SearchStrategy[Condition]:
    return st.sampled_from([All(parts), Any_(parts)])


def _leaves(column: str) -> st.SearchStrategy[Condition]:
    kind = COLUMNS[column]
    literals = st.sampled_from(SOME_VALUES[kind])
    if kind == "text":
        plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=6)
        literals |= plain.filter(str.strip)
    relations = ["=", "!="] if kind == "boolean" else list(RELATIONS)
    leaves = [
        st.builds(Comparison, st.just(column), st.sampled_from(relations), literals),
        st.builds(Membership, st.just(column), st.lists(literals, min_size=1, max_size=3).map(tuple), st.booleans()),
        st.builds(Missing, st.just(column), st.booleans()),
    ]
    if kind == "text":
        leaves.append(st.builds(Pattern, st.just(column), literals.flatmap(_parts), st.booleans()))
    return st.one_of(leaves)


def _parts(text: Value) -> st.SearchStrategy[tuple[str, ...]]:
    """Parts of a pattern that the text itself often fulfils: a piece is cut out, or the text is asked for whole."""
    letters = str(text).replace("%", "")
    cuts = st.tuples(st.integers(0, len(letters)), st.integers(0, len(letters))).map(sorted)
    return st.just((letters,)) | cuts.map(lambda cut: (letters[: cut[0]], letters[cut[1] :]))
