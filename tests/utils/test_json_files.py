"""JSON files of strangers: read as the schema says, or refused in one line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic.dataclasses import dataclass

from cskt.errors import CsktError, MissingFileError
from cskt.utils.json_files import JSON, MAX_JSON_BYTES, load_json, parse_json, read_json, read_text

REMEDY = "make it again"


@dataclass(config=JSON, frozen=True)
class Inner:
    number: int
    share: float = 0.5


@dataclass(config=JSON, frozen=True)
class Outer:
    name: str
    inner: Inner
    flags: tuple[bool, ...] = ()
    note: str | None = None


GOOD: dict[str, Any] = {"name": "a", "inner": {"number": 3}, "flags": [True], "note": None}


def refused(text: str | bytes, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        parse_json(text, Outer, where="file.json", remedy=REMEDY, **options)
    message = str(caught.value)
    assert type(caught.value) is CsktError and message.isprintable() and len(message) < 500
    assert (message.startswith("file.json: ") and message.endswith("make it again")) or "upgrade" in message
    return message


def test_a_file_that_fits(tmp_path: Path) -> None:
    expected = Outer("a", Inner(3, 0.5), (True,))
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "file.json").write_text(json.dumps(GOOD), encoding=encoding)
        assert read_json(tmp_path / "file.json", Outer, remedy=REMEDY) == expected


def test_the_error_names_file_field_and_remedy() -> None:
    text = json.dumps({**GOOD, "name": 5})
    assert refused(text) == "file.json: 'name' must be a valid string, got 5; make it again"
    assert "'inner.number' must be a valid integer, got '3'" in refused('{"name": "a", "inner": {"number": "3"}}')
    assert "the field 'inner' is missing" in refused('{"name": "a"}')
    assert "the field 'colour' is unknown" in refused(json.dumps({**GOOD, "colour": 1}))
    assert "must be an object, got [1]" in refused("[1]")
    assert "the field 'name' is there twice" in refused('{"name": "a", "name": "b", "inner": {"number": 1}}')


@pytest.mark.parametrize(
    "value", [None, True, 5, -1, 1.5, 1e999, float("nan"), "", "5", "x" * 10**5, [], {}, [[[[[[]]]]]], {"a": {}}]
)
def test_a_value_of_another_kind_is_refused(value: Any) -> None:
    refused(json.dumps({**GOOD, "inner": {"number": 1, "share": "x"}, "name": "a"}))
    for field in GOOD:
        fits = {"name": isinstance(value, str), "flags": value == [], "note": value is None or isinstance(value, str)}
        if not fits.get(field):
            assert field in refused(json.dumps({**GOOD, field: value}))
    if value not in (5, -1):
        assert "inner.number" in refused(json.dumps({**GOOD, "inner": {"number": value}}))


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"\xef\xbb\xbf", b"\xff\xfe", b"null", b"5", b"NaN", b'{"name"', b"[" * 10**5, b'{"a":' * 10**5,
        b"9" * 10**5, b'{"name": "\\ud800", "inner": {"number": 1}}', b"{} {}", b'{"a\\nb": 1}', b'{"\\u202e": 1}',
        b'{"name": "a", "inner": {"number": 1}, "flags": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
)  # fmt: skip
def test_texts_that_are_no_such_json(text: bytes) -> None:
    refused(text)


def test_the_version_is_checked_before_the_schema() -> None:
    text = json.dumps({"version": 1, **GOOD})
    assert parse_json(text, Outer, where="x", remedy=REMEDY, version=("version", 2)) == Outer("a", Inner(3), (True,))
    assert "the field 'version' is unknown" in refused(text)
    message = refused('{"version": 2, "unknown": 1}', version=("version", 1))
    assert message == "file.json: made by a newer version of cskt (format 2, this one reads 1); upgrade cskt"
    for version in ("null", "true", "0", "-1", "1.5", "1e999", '"1"', "[]", "{}"):
        assert "'version' must be a whole number" in refused(f'{{"version": {version}}}', version=("version", 1))
    assert "the field 'version' is missing" in refused("{}", version=("version", 1))
    assert "must be an object" in refused("[]", version=("version", 1))
    assert len(refused('{"version": ' + "9" * 4000 + "}", version=("version", 1))) < 300


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    path.write_text("{}")

    def deny(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(ValueError) as caught:
        read_json(path, Outer, remedy=REMEDY)
    assert str(caught.value) == f"{path}: cannot be read: Permission denied; make it readable"


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"

    def message() -> str:
        with pytest.raises(ValueError, match="make it again$") as caught:
            read_json(path, Outer, remedy=REMEDY)
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value)

    assert "no such file" in message()
    path.mkdir()
    assert "not a file" in message()
    path.rmdir()
    os.mkfifo(path)
    assert "not a file" in message(), "opening a pipe would wait for ever"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "not a file" in message()
    path.unlink()
    path.symlink_to(path)
    assert "cannot be read" in message()
    path.unlink()
    path.write_bytes(b"\xff")
    assert "not UTF-8 at byte 0" in message()
    with path.open("wb") as stream:
        stream.truncate(MAX_JSON_BYTES + 1)
    assert "at most" in message()


def test_plain_values_have_each_key_once() -> None:
    assert load_json('{"a": [1, null]}', where="x", remedy=REMEDY) == {"a": [1, None]}
    with pytest.raises(ValueError, match="x: not JSON that can be read: the field 'b' is there twice; make it again"):
        load_json('{"a": {"b": 1, "b": 2}}', where="x", remedy=REMEDY)


def test_a_file_below_a_file_is_missing_too(tmp_path: Path) -> None:
    """A model may be a folder, with a calibration in it, or a single file."""
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(MissingFileError, match="no such file"):
        read_text(tmp_path / "model.safetensors" / "calibration.json", remedy="none")
