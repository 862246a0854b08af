"""Conditions as Milvus' boolean expressions.

Milvus' versions and milvus-lite differ in three points, so no expression depends on them:

- whether `!=` is true if a key is missing: each negated leaf also requires the key;
- the meaning of a backslash in a LIKE pattern, and where an escaped `_` or `%` is understood: LIKE compares a copy of
  the text in which these characters, and the line feed, are exchanged with four of the private use area;
- whether `in` accepts a key of the dynamic field: it is written as a chain of comparisons.

Numbers are written and stored as floats.

Milvus skips partitions in a search only if the expression names the field that it partitions by, which must be a text
and cannot be missing; that field is a copy of the column, and `compiled` names it where possible.
"""

from __future__ import annotations

from cskt.gallery.columns import BUILT_IN, Value
from cskt.gallery.conditions import All, Any_, Comparison, Condition, Membership, Missing, Pattern

MAX_JOINED = 8
"""Conditions that are joined without parentheses."""
_EXCHANGED = dict(zip("%_\\\n", "\ue025\ue05f\ue05c\ue00a", strict=True))
_EXCHANGE = str.maketrans(_EXCHANGED | {private: usual for usual, private in _EXCHANGED.items()})
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def like_text(text: str) -> str:
    """Return the copy of a text that LIKE compares: one character for each, so that parts stay parts."""
    return text.translate(_EXCHANGE)


def like_key(column: str) -> str:
    """Return the key of that copy; no column has this name, as columns have no capitals."""
    return f"LIKE_{column}"


def partition_field(column: str) -> str:
    """Return the field that crops are partitioned by, a copy of the column as text; no column has this name."""
    return f"PARTITION_{column}"


def partition_of(value: Value | None) -> str:
    """Return the content of that field: the same text for equal values, empty for a missing one."""
    if value is None or isinstance(value, str):
        return value or ""
    # -0 and 0 are equal; after an addition they have the same text.
    return str(value).lower() if isinstance(value, bool) else repr(float(value) + 0.0)


def partitions_of(condition: Condition, column: str) -> frozenset[str] | None:
    """Return the partitions, as `partition_of` names them, that may contain matching crops; None if all may."""
    match condition:
        case Comparison(name, "=", value) if name == column:
            return frozenset([partition_of(value)])
        case Membership(name, values, negated=False) if name == column:
            return frozenset(map(partition_of, values))
        case Missing(name, negated=False) if name == column:
            return frozenset([""])
        case All(conditions):
            known = [found for part in conditions if (found := partitions_of(part, column)) is not None]
            return frozenset.intersection(*known) if known else None
        case Any_(conditions):
            each = [partitions_of(part, column) for part in conditions]
            return None if None in each else frozenset().union(*(found for found in each if found is not None))
    return None


def quoted(text: str) -> str:
    """Return a text as a literal."""
    return f'"{text.translate(_ESCAPES)}"'


def compiled(condition: Condition, partitioned_by: str | None = None) -> str:
    """Return a condition as an expression; `partitioned_by` is the column of the collection's partitions."""
    whole = _compiled(condition)
    keys = None if partitioned_by is None else partitions_of(condition, partitioned_by)
    if partitioned_by is None or not keys:
        return whole
    return f"{partition_field(partitioned_by)} in [{', '.join(map(quoted, sorted(keys)))}] and ({whole})"


def _compiled(condition: Condition) -> str:  # noqa: PLR0911  one per form
    match condition:
        case All(conditions):
            return _joined([f"({_compiled(part)})" for part in conditions], " and ")
        case Any_(conditions):
            return _joined([f"({_compiled(part)})" for part in conditions], " or ")
        case Missing(column, negated) if column in BUILT_IN:
            return f"image_id {'!=' if negated else '=='} {quoted('')}"  # every crop has it: always, or never
        case Missing(column, negated):
            return f"{'' if negated else 'not '}exists {_key(column)}"
        case Comparison(column, operator, value):
            leaf = f"{_key(column)} {'==' if operator == '=' else operator} {_literal(value)}"
            return _with_key(column, leaf) if operator == "!=" else leaf
        case Membership(column, values, negated):
            relation, joint = ("!=", " and ") if negated else ("==", " or ")
            leaf = _joined([f"{_key(column)} {relation} {_literal(value)}" for value in values], joint)
            return _with_key(column, f"({leaf})") if negated else leaf
        case Pattern(column, parts, negated):
            # A digest is hexadecimal: it contains no exchanged character, and has no copy.
            key = _key(column) if column == "sha256" else f'$meta["{like_key(column)}"]'
            leaf = f"{key} like {quoted('%'.join(map(like_text, parts)))}"
            return _with_key(column, f"not ({leaf})") if negated else leaf


def _joined(expressions: list[str], joint: str) -> str:
    """Join expressions in groups: a server parses a chain of thousands with equal depth, and refuses that."""
    while len(expressions) > MAX_JOINED:
        groups = [expressions[start : start + MAX_JOINED] for start in range(0, len(expressions), MAX_JOINED)]
        expressions = [f"({joint.join(group)})" for group in groups]
    return joint.join(expressions)


def _key(column: str) -> str:
    return column if column in BUILT_IN else f'$meta["{column}"]'


def _with_key(column: str, leaf: str) -> str:
    return leaf if column in BUILT_IN else f"exists {_key(column)} and {leaf}"


def _literal(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else repr(float(value))
