"""What is known of a crop beside its picture: names and values of metadata columns, checked before they are stored.

A table comes as CSV text or as typed values; `infer_kinds` decides once what a column holds, `convert` brings each
value into that form. A crop that knows nothing of a column has no value there, not an empty one.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, date, datetime, time
from functools import lru_cache
from typing import Literal, TypeAlias

from cskt.errors import CsktError
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
"""Columns that every crop has; they can be filtered by, and no metadata may bear their names."""
_IN_ANSWERS = ["vector", "thumbnail", "modified_ns", "path", "score", "rank", "group_size"]
_IN_FILTERS = ["and", "or", "not", "in", "between", "like", "is", "null", "true", "false"]
RESERVED = frozenset([*BUILT_IN, *_IN_ANSWERS, *_IN_FILTERS])
"""Names that mean something else in a store, an answer or a filter."""
LONGEST_NAME = 63
"""Characters in the name of a column."""
MOST_COLUMNS = 100
"""Metadata columns of a gallery: each costs time in every search."""
LONGEST_VALUE = 2000
"""Characters in a value."""
LARGEST_WHOLE = 2**53
"""Every whole number up to here is a float64, which is how numbers are stored."""

FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
"""Normal forms in which the text of a gallery may be; the first is how it is stored today."""

_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?", re.DOTALL)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""The null character and halves of surrogate pairs, which databases and UTF-8 have no room for."""


@lru_cache(maxsize=4096)
def column_name(raw: str) -> str:
    """Return the name of a column as filters and stores write it: `Track ID` is `track_id`, `Café` is `cafe`.

    Accents of Latin letters are dropped; letters of other scripts keep their marks, in NFC.

    Args:
        raw: the heading in the user's table, or a name in a filter.

    Returns:
        At most 63 small letters of any script, digits and `_`, the first no digit.

    Raises:
        CsktError: it has no letter or digit, it is too long, or the name is reserved.
    """
    name = re.sub(r"[^a-z0-9\x80-\U0010ffff]+", "_", _plain(raw)).strip("_")
    if not name:
        raise CsktError(f"column {_shown(raw)} has no letter or digit in its name; rename it")
    if name[0].isdigit():
        name = f"_{name}"
    if len(name) > LONGEST_NAME:
        raise CsktError(f"column {_shown(raw)} has a name of {len(name)} characters; at most {LONGEST_NAME} fit")
    if name in RESERVED:
        raise CsktError(f"column {_shown(raw)} bears a reserved name; rename it, for example to 'crop_{name}'")
    return name


def named(row: Mapping[str, object]) -> dict[str, object]:
    """Return a row of a table under the names of its columns.

    Raises:
        CsktError: a heading cannot be a name, two of them have one name, or a text is longer than `LONGEST_VALUE`.
    """
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
    """Return the column that a user means by a name, in any case, heading or normal form.

    Args:
        name: `camera`, `Camera`, `Track ID`.
        columns: names of the columns that are known.

    Raises:
        CsktError: there is none; names the nearest.
    """
    if name.lower() in columns:
        return name.lower()
    try:
        plain = column_name(name)
    except ValueError:
        plain = name.lower()
    if plain in columns:
        return plain
    raise CsktError(f"no column {_shown(name)}; {nearest(plain, list(columns))}")


def forms(text: str) -> tuple[str, ...]:
    """Return the forms in which a text may be stored: NFC, and in older galleries as it was given, mostly NFD."""
    return tuple(dict.fromkeys([*(in_form(text, form) for form in FORMS), text]))


def in_form(text: str, form: Literal["NFC", "NFD"]) -> str:
    """Return a text in a normal form of Unicode."""
    return unicodedata.normalize(form, text)


def check_new_columns(known: Collection[str], new: Collection[str]) -> None:
    """See that a gallery may have further columns.

    Raises:
        CsktError: it would have more than `MOST_COLUMNS`.
    """
    if new and len(known) + len(new) > MOST_COLUMNS:
        first = ", ".join(sorted(new)[:3])
        raise CsktError(
            f"{len(new)} new columns ({first}{', ...' if len(new) > 3 else ''}) beside the gallery's {len(known)}: a"
            f" gallery has at most {MOST_COLUMNS}; leave columns out"
        )


def infer_kinds(rows: Iterable[Mapping[str, object]]) -> dict[str, Kind]:
    """What each column of a table holds: the narrowest kind that every value of it fits.

    A text is a number only if it survives the way there and back: `007` and whole numbers beyond 2^53 stay text.

    Args:
        rows: column -> raw value, under names from `column_name`.

    Returns:
        Column -> kind in the order of first appearance; a column without any value is left out.
    """
    kinds: dict[str, Kind] = {}
    for row in rows:
        for column, value in row.items():
            if not is_empty(value):
                kind = _kind_of(value)
                kinds[column] = kind if kinds.get(column, kind) == kind else "text"
    return kinds


def convert(value: object, kind: Kind, column: str) -> Value | None:
    """A raw value in the form of its column.

    Args:
        value: text or a typed value; `None`, blank text and NaN are no value.
        kind: what the column holds.
        column: its name, for the error.

    Returns:
        text: the text in NFC. number: finite, an int where it was written without a point. boolean: a bool.
        time: ISO text in UTC (taken as UTC where it names no zone), `2026-01-31T12:00:00[.ffffff]`, which sorts as
        text; a date is its midnight. None for no value.

    Raises:
        CsktError: the value does not fit the column, or is longer than `LONGEST_VALUE`.
    """
    if is_empty(value):
        return None
    if kind == "text":
        return _to_text(value, column)
    converted = {"number": _to_number, "boolean": _to_boolean, "time": _to_time}[kind](value)
    if converted is None:
        wanted = {
            "number": f"expected a finite number, whole ones up to {LARGEST_WHOLE}, such as 3 or -0.25",
            "boolean": "expected true or false",
            "time": "expected a time such as 2026-01-31 or 2026-01-31T12:00:00+01:00",
        }[kind]
        raise CsktError(f"column '{column}': {_shown(value)} is no {kind}; {wanted}")
    return converted


def _plain(raw: str) -> str:
    """Return the letters and digits of a heading, small; ASCII characters of other kinds are left for the caller."""
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
        # Converting says whether the form holds what it promises: 2026-02-30 is no time.
        if _to_boolean(value) is not None:
            return "boolean"
        if _to_number(value) is not None:
            return "number"
        return "text" if _to_time(value) is None else "time"
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
            f"column '{column}': {_shown(value)} is a {type(value).__name__}; expected text, a number, true, false"
            " or a time"
        )
    text = unicodedata.normalize("NFC", str(value))
    _check_length(text, column)
    if _UNSTORABLE.search(text):
        raise CsktError(f"column '{column}': {_shown(value)} holds a character that cannot be stored; remove it")
    return text


def _check_length(text: str, column: str) -> None:
    if len(text) > LONGEST_VALUE:
        raise CsktError(
            f"column '{column}': {_shown(text)} has {len(text):,} characters; shorten it to {LONGEST_VALUE:,}"
        )


def _to_number(value: object) -> int | float | None:
    if isinstance(value, str):
        value = value.strip()
        if not _NUMBER.fullmatch(value):
            return None
        if _WHOLE.fullmatch(value) and len(value) > len(str(-LARGEST_WHOLE)):
            return None  # before int() reads it, which refuses thousands of digits
        value = int(value) if _WHOLE.fullmatch(value) else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if abs(value) <= LARGEST_WHOLE else None
    return value if math.isfinite(value) else None


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


def _shown(value: object) -> str:
    """A value in an error: one line of bearable length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"
