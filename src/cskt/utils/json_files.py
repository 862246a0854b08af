"""JSON files and lines read against a schema; every fault is a CsktError of one line.

A schema is any type that pydantic understands, usually a dataclass with `config=JSON`:

    @dataclass(config=JSON, frozen=True)
    class Marker:
        layout: str
        seed: int

    marker = read_json(path, Marker, remedy="make the data set again")

Values are read strictly: no text stands for a number, no number for a truth value, and an unknown field is an error.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cskt.errors import SHORT, CsktError, MissingFileError
from cskt.utils.checked import UNKNOWN_FIELD, main_fault

JSON = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Configuration of the dataclasses that describe files."""
FOREIGN = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
"""Configuration for files of other programs: only the fields that are read here are checked."""
MAX_DIGITS = 1000
"""Digits of a whole number."""
MAX_JSON_BYTES = 256 * 2**20
"""Bytes that are read of a file at most."""
MISSING_FIELD = ("missing", "missing_argument")
"""pydantic's names of the error that a field is left out."""

T = TypeVar("T")


def read_json(path: Path, schema: type[T], *, remedy: str, version: tuple[str, int] | None = None) -> T:
    """Read a JSON file.

    Args:
        path: UTF-8, with or without a byte order mark.
        schema: what the file must hold.
        remedy: what to do about a file that is missing or corrupt; the end of the error.
        version: field and newest value of the file's format version, which is checked first and is not in the schema.

    Raises:
        MissingFileError: there is none.
        CsktError: the file cannot be read, is not JSON, is of a newer version, or does not fit the schema.
    """
    return parse_json(read_text(path, remedy=remedy), schema, where=str(path), remedy=remedy, version=version)


def parse_json(
    text: str | bytes, schema: type[T], *, where: str, remedy: str, version: tuple[str, int] | None = None
) -> T:
    """Read a JSON text; see `read_json`. `where`: its file, and line or member, for the start of an error."""
    text = _decoded(text, where=where, remedy=remedy)
    content = load_json(text, where=where, remedy=remedy)
    if version is not None:
        _check_version(content, *version, where=where, remedy=remedy)
        text = json.dumps({name: value for name, value in content.items() if name != version[0]})
    try:
        checked: T = _adapter(cast(Any, schema)).validate_json(text)
    except ValidationError as error:
        raise CsktError(f"{where}: {_reason(main_fault(error))}; {remedy}") from None
    return checked


def load_json(text: str | bytes, *, where: str, remedy: str) -> Any:
    """Read a JSON text as plain values, for what has no schema."""
    text = _decoded(text, where=where, remedy=remedy)
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise CsktError(f"{where}: not JSON: {error.msg} at {place}; {remedy}") from None
    except (RecursionError, CsktError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise CsktError(f"{where}: not JSON that can be read: {reason}; {remedy}") from None


def read_text(path: Path, *, remedy: str) -> str:
    """Read a text file, if it is a regular file of at most `MAX_JSON_BYTES` bytes.

    Raises:
        MissingFileError: there is none.
        CsktError: it is a folder or a device, too large, or not UTF-8.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise CsktError(f"{path}: not a file; {remedy}")
        if state.st_size > MAX_JSON_BYTES:
            raise CsktError(f"{path}: {state.st_size:,} bytes, at most {MAX_JSON_BYTES:,} are read; {remedy}")
        return _decoded(path.read_bytes(), where=str(path), remedy=remedy)
    except (FileNotFoundError, NotADirectoryError):  # the latter beside a model that is a single file
        raise MissingFileError(f"{path}: no such file; {remedy}") from None
    except PermissionError as error:
        raise CsktError(f"{path}: cannot be read: {error.strerror or error}; make it readable") from None
    except OSError as error:
        raise CsktError(f"{path}: cannot be read: {error.strerror or error}; {remedy}") from None


def _decoded(text: str | bytes, *, where: str, remedy: str) -> str:
    try:
        return text if isinstance(text, str) else text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CsktError(f"{where}: not UTF-8 at byte {error.start}; {remedy}") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CsktError(f"the field {SHORT.repr(twice)} is there twice")
    return content


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:  # Python itself refuses 4300 digits, with a ValueError
        raise CsktError(f"a number has {len(text):,} digits, at most {MAX_DIGITS:,} are read")
    return int(text)


def _check_version(content: Any, field: str, newest: int, *, where: str, remedy: str) -> None:
    if not isinstance(content, dict):
        raise CsktError(f"{where}: must be an object, got {SHORT.repr(content)}; {remedy}")
    if field not in content:
        raise CsktError(f"{where}: the field '{field}' is missing; {remedy}")
    found = content[field]
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise CsktError(f"{where}: '{field}' must be a whole number from 1, got {SHORT.repr(found)}; {remedy}")
    if found > newest:
        formats = f"format {SHORT.repr(found)}, this one reads {newest}"
        raise CsktError(f"{where}: made by a newer version of cskt ({formats}); upgrade cskt")


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _reason(detail: ErrorDetails) -> str:
    """Return a pydantic error as a clause."""
    field = SHORT.repr(".".join(str(part) for part in detail["loc"]))
    if detail["type"] in UNKNOWN_FIELD:
        return f"the field {field} is unknown"
    if detail["type"] in MISSING_FIELD:
        return f"the field {field} is missing"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should ", "must ", 1)
    if detail["type"] == "value_error" and not detail["loc"]:  # of our own check of the whole content
        return message
    subject = f"{field} " if detail["loc"] else ""
    return f"{subject}{message[:1].lower()}{message[1:]}, got {SHORT.repr(detail['input'])}"
