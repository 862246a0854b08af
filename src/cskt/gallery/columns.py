"""Metadata columns: their names, kinds and values, checked before they are stored.

A table comes as CSV text or as typed values. `infer_kinds` decides once which kind a column has, `convert` converts
each value to it. An empty value is no value.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, date, datetime, time
from functools import lru_cache
from typing import Literal, TypeAlias

from cskt.errors import SHORT, CsktError
from cskt.utils.messages import nearest

Value: TypeAlias = str | float | int | bool
Kind: TypeAlias = Literal["text", "number", "boolean", "time"]

BUILT_IN: dict[str, Kind] = {
    "image_id": "text",
    "width": "number",
    "height": "number",
    "num_bytes": "number",
    "sha256": "text",
    "kept": "boolean",
}
"""Columns of every crop. Filters may use them, metadata may not have their names."""
_IN_ANSWERS = ["vector", "thumbnail", "modified_ns", "path", "score", "rank", "group_size"]
_IN_FILTERS = ["and", "or", "not", "in", "between", "like", "is", "null", "true", "false"]
RESERVED = frozenset([*BUILT_IN, *_IN_ANSWERS, *_IN_FILTERS])
"""Names with another meaning in a store, an answer or a filter."""
MAX_NAME_CHARACTERS = 63
"""Characters of a column's name."""
MAX_COLUMNS = 100
"""Metadata columns of a gallery; each costs time in every search."""
MAX_VALUE_CHARACTERS = 2000
"""Characters of a value."""
MAX_WHOLE = 2**53
"""Every whole number up to here is exact as float64, the type in which numbers are stored."""

FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
"""Normal forms of Unicode in which a gallery may contain text; today's version stores the first."""

_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?", re.DOTALL)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""The null character and halves of surrogate pairs, which databases and UTF-8 cannot store."""


@lru_cache(maxsize=4096)
def column_name(raw: str) -> str:
    """Return the name of a heading in filters and stores: `Track ID` is `track_id`, `Café` is `cafe`.

    A name consists of lower-case letters of any script, digits and `_`, and begins with no digit. Accents of Latin
    letters are dropped; letters of other scripts keep their marks, in NFC.

    Raises:
        CsktError: no letter or digit, too long, or reserved.
    """
    name = re.sub(r"[^a-z0-9\x80-\U0010ffff]+", "_", _plain(raw)).strip("_")
    if not name:
        raise CsktError(f"column {SHORT.repr(raw)} has no letter or digit in its name; rename it")
    if name[0].isdigit():
        name = f"_{name}"
    if len(name) > MAX_NAME_CHARACTERS:
        remedy = f"shorten it to {MAX_NAME_CHARACTERS}"
        raise CsktError(f"column {SHORT.repr(raw)} has a name of {len(name)} characters; {remedy}")
    if name in RESERVED:
        raise CsktError(f"column {SHORT.repr(raw)} has a reserved name; rename it, for example to 'crop_{name}'")
    return name


def named(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row of a table with the names of its columns."""
    values: dict[str, object] = {}
    for heading, value in row.items():
        name = column_name(heading)
        if name in values:
            raise CsktError(f"two columns have the name '{name}' in a gallery; rename one of them")
        if isinstance(value, str):
            _check_length(value, name)
        values[name] = value
    return values


def find_column(name: str, columns: Collection[str]) -> str:
    """Return the column for a name in any case or normal form, or raise a CsktError that names the nearest column."""
    if name.lower() in columns:
        return name.lower()
    try:
        plain = column_name(name)
    except CsktError:
        plain = name.lower()
    if plain in columns:
        return plain
    raise CsktError(f"no column {SHORT.repr(name)}; {nearest(plain, list(columns))}")


def forms(text: str) -> tuple[str, ...]:
    """Return the forms in which a text may be stored: NFC, and in older galleries as it was given, mostly NFD."""
    return tuple(dict.fromkeys([*(unicodedata.normalize(form, text) for form in FORMS), text]))


def check_new_columns(known: Collection[str], new: Collection[str]) -> None:
    """Raise CsktError if a gallery would have more than `MAX_COLUMNS` columns."""
    if new and len(known) + len(new) > MAX_COLUMNS:
        first = ", ".join(sorted(new)[:3])
        raise CsktError(
            f"{len(new)} new columns ({first}{', ...' if len(new) > 3 else ''}) beside the gallery's {len(known)}: a"
            f" gallery has at most {MAX_COLUMNS}; leave columns out"
        )


def infer_kinds(rows: Iterable[Mapping[str, object]]) -> dict[str, Kind]:
    """Return the kind of each column of a table: the narrowest one that fits all values; none without a value.

    A text is a number only if converting it loses nothing: `007` and whole numbers beyond 2^53 stay text.
    """
    kinds: dict[str, Kind] = {}
    for row in rows:
        for column, value in row.items():
            if not is_empty(value):
                kind = _kind_of(value)
                kinds[column] = kind if kinds.get(column, kind) == kind else "text"
    return kinds


def convert(value: object, kind: Kind, column: str) -> Value | None:
    """Convert a raw value, text or typed, to the kind of its column; None for no value.

    Returns:
        text: in NFC. number: finite, an int if it was written without a point. boolean: a bool. time: ISO text in UTC
        (also if it names no zone), `2026-01-31T12:00:00[.ffffff]`, which sorts as text; a date is its midnight.

    Raises:
        CsktError: the value does not fit the column, or is longer than `MAX_VALUE_CHARACTERS`.
    """
    if is_empty(value):
        return None
    if kind == "text":
        return _to_text(value, column)
    parse, wanted = _KINDS[kind]
    converted = parse(value)
    if converted is None:
        raise CsktError(f"column '{column}': {SHORT.repr(value)} is no {kind}; expected {wanted}")
    return converted


def _plain(raw: str) -> str:
    """Return the letters and digits of a heading in lower case, and ASCII characters of other kinds."""
    plain: list[str] = []
    for character in unicodedata.normalize("NFC", unicodedata.normalize("NFD", raw).casefold()):
        ascii_part = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode().lower()
        category = unicodedata.category(character)
        is_mark = category[0] == "M" and plain and not plain[-1].isascii()
        if ascii_part:
            plain.append(ascii_part)
        elif category[0] == "L" or category == "Nd" or is_mark:
            plain.append(character)
    return unicodedata.normalize("NFC", "".join(plain))


def is_empty(value: object) -> bool:
    """Return whether a raw value is none: None, blank text or NaN."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _kind_of(value: object) -> Kind:
    if isinstance(value, str):
        # Converting shows that the value is valid: 2026-02-30 is no time.
        return next((kind for kind, (parse, _) in _KINDS.items() if parse(value) is not None), "text")
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "time" if isinstance(value, date) else "text"


def _to_text(value: object, column: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return str(_to_time(value) or value.isoformat())
    if not isinstance(value, str | int | float):
        raise CsktError(
            f"column '{column}': {SHORT.repr(value)} is a {type(value).__name__}; expected text, a number, true, false"
            " or a time"
        )
    text = unicodedata.normalize("NFC", str(value))
    _check_length(text, column)
    if _UNSTORABLE.search(text):
        raise CsktError(f"column '{column}': {SHORT.repr(value)} contains a character that cannot be stored; remove it")
    return text


def _check_length(text: str, column: str) -> None:
    if len(text) > MAX_VALUE_CHARACTERS:
        raise CsktError(
            f"column '{column}': {SHORT.repr(text)} has {len(text):,} characters; shorten it to"
            f" {MAX_VALUE_CHARACTERS:,}"
        )


def _to_number(value: object) -> int | float | None:
    if isinstance(value, str):
        value = value.strip()
        if not _NUMBER.fullmatch(value):
            return None
        if _WHOLE.fullmatch(value) and len(value) > len(str(-MAX_WHOLE)):
            return None  # before int() reads it, which refuses thousands of digits
        value = int(value) if _WHOLE.fullmatch(value) else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    is_valid = abs(value) <= MAX_WHOLE if isinstance(value, int) else math.isfinite(value)
    return value if is_valid else None


def _to_boolean(value: object) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _to_time(value: object) -> str | None:
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip()) if _TIME.fullmatch(value.strip()) else None
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time())
        if not isinstance(value, datetime):
            return None
        in_utc = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError):  # no such day; or beyond the years 1 to 9999 once in UTC
        return None
    return in_utc.replace(tzinfo=None).isoformat()


_KINDS: dict[Kind, tuple[Callable[[object], Value | None], str]] = {
    "boolean": (_to_boolean, "true or false"),
    "number": (_to_number, f"a finite number, whole ones up to {MAX_WHOLE}, such as 3 or -0.25"),
    "time": (_to_time, "a time such as 2026-01-31 or 2026-01-31T12:00:00+01:00"),
}
"""Kind other than text -> its parser, which returns None for another value, and what it expects."""
