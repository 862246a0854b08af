"""Metadata columns: names, kinds and values of tables."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cskt.gallery.columns import (
    BUILT_IN,
    RESERVED,
    Kind,
    check_new_columns,
    column_name,
    convert,
    find_column,
    infer_kinds,
)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("camera", "camera"),
        ("Track ID", "track_id"),
        ("  Größe (cm) ", "grosse_cm"),
        ("Café", "cafe"),
        ("2nd camera", "_2nd_camera"),
        ("摄像头", "摄像头"),
        ("摄像头 1", "摄像头_1"),
        ("Номер Камеры", "номер_камеры"),
        ("Й", "й"),
        ("И\u0306", "й"),
        ("カ\u3099ラス", "ガラス"),
        ("कैमरा", "कैमरा"),
        ("ไฟล์", "ไฟล์"),
        ("הערה", "הערה"),
        ("Ώρα", "ώρα"),
        ("Cafe\u0301", "cafe"),
        ("ｃａｍｅｒａ", "camera"),
        ("٣ صورة", "_٣_صورة"),
        ("a\u200bb–c", "abc"),
        ("Kjøretøy", "kjøretøy"),
        ("a" * 63, "a" * 63),
    ],
)
def test_a_heading_becomes_a_name(raw: str, name: str) -> None:
    assert column_name(raw) == name


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ("", "no letter"),
        ("---", "no letter"),
        ("📷 ★", "no letter"),
        ("\u0301\u200d", "no letter"),
        ("a" * 64, "64 characters; shorten it to 63"),
        ("Image ID", "crop_image_id"),
        ("SCORE", "reserved"),
        ("vector", "reserved"),
        ("Null", "reserved"),
    ],
)
def test_a_heading_that_cannot_be_a_name_is_refused(raw: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refusal:
        column_name(raw)
    assert "\n" not in str(refusal.value)


def test_built_in_columns_are_reserved() -> None:
    assert set(BUILT_IN) <= RESERVED


@given(st.text())
def test_a_name_is_an_identifier_and_its_own_name(raw: str) -> None:
    try:
        name = column_name(raw)
    except ValueError:
        return
    assert 0 < len(name) <= 63 and not name[0].isdigit() and name == unicodedata.normalize("NFC", name)
    assert all(unicodedata.category(letter)[0] in "LMN" or letter == "_" for letter in name)
    assert name == name.lower() or not name.isascii()
    assert column_name(name) == name


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["c1", "c2"], "text"),
        (["1", "", "-2.5", "1e3", None], "number"),
        (["007", "008"], "text"),
        ([str(2**53), str(2**53 + 1)], "text"),
        (["9" * 1900], "text"),
        (["nan", "1"], "text"),
        (["+49"], "text"),
        (["1", "c2"], "text"),
        (["true", "False"], "boolean"),
        (["true", "1"], "text"),
        (["2026-01-31", "2026-01-31T12:00:00Z", " 2026-01-31 12:00:00+01:00"], "time"),
        (["2026-02-30"], "text"),
        (["20260131"], "number"),
        ([3, 2.5, float("nan")], "number"),
        ([True], "boolean"),
        ([True, 1], "text"),
        ([datetime(2026, 1, 31, tzinfo=UTC), date(2026, 1, 31)], "time"),
    ],
)
def test_the_narrowest_kind_is_inferred(values: list[object], kind: Kind) -> None:
    assert infer_kinds({"column": value} for value in values) == {"column": kind}
    for value in values:
        convert(value, kind, "column")


def test_kinds_come_in_the_order_of_columns_and_only_for_columns_with_a_value() -> None:
    rows = [{"camera": "", "frame": "1", "night": " "}, {"camera": "c1", "frame": "", "zone": None}]
    assert list(infer_kinds(rows).items()) == [("frame", "number"), ("camera", "text")]


@pytest.mark.parametrize(
    ("value", "kind", "converted"),
    [
        ("c1 ", "text", "c1 "),
        (3, "text", "3"),
        (True, "text", "true"),
        (date(2026, 1, 31), "text", "2026-01-31T00:00:00"),
        (" 3 ", "number", 3),
        (".5", "number", 0.5),
        ("1e3", "number", 1000.0),
        (-(2**53), "number", -(2**53)),
        ("TRUE", "boolean", True),
        (False, "boolean", False),
        ("2026-01-31", "time", "2026-01-31T00:00:00"),
        ("2026-01-31T12:00:00.5", "time", "2026-01-31T12:00:00.500000"),
        ("2026-01-31T00:30:00+01:00", "time", "2026-01-30T23:30:00"),
        ("2026-01-31T12:00:00Z", "time", "2026-01-31T12:00:00"),
        (datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=-5))), "time", "2026-01-31T17:00:00"),
        (date(2026, 1, 31), "time", "2026-01-31T00:00:00"),
    ],
)
def test_a_value_is_converted_to_the_kind_of_its_column(value: object, kind: Kind, converted: object) -> None:
    result = convert(value, kind, "column")
    assert result == converted
    assert type(result) is type(converted)


@pytest.mark.parametrize("kind", ["text", "number", "boolean", "time"])
@pytest.mark.parametrize("value", [None, "", "  ", "\t\n", float("nan")])
def test_empty_values_are_no_value(value: object, kind: Kind) -> None:
    assert convert(value, kind, "column") is None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a\x00b", "text"),
        ("\ud800", "text"),
        ([1], "text"),
        ({"a": 1}, "text"),
        ("c1", "number"),
        ("1,5", "number"),
        ("0x10", "number"),
        ("1_000", "number"),
        ("٣", "number"),
        ("inf", "number"),
        (float("inf"), "number"),
        ("1e999", "number"),
        (2**53 + 1, "number"),
        ("9" * 5000, "number"),
        (True, "number"),
        (b"1", "number"),
        ("yes", "boolean"),
        (1, "boolean"),
        ("2026", "time"),
        ("2026-13-01", "time"),
        ("20260131", "time"),
        ("2026-W05", "time"),
        ("0001-01-01T00:00:00+01:00", "time"),
        (1769817600, "time"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_the_column_and_the_value(value: object, kind: Kind) -> None:
    with pytest.raises(ValueError, match="column 'speed'") as refusal:
        convert(value, kind, "speed")
    message = str(refusal.value)
    assert repr(value)[:20] in message
    assert "\n" not in message
    assert len(message) < 250


@given(st.datetimes(timezones=st.just(UTC)), st.datetimes(timezones=st.just(UTC)))
def test_times_sort_as_text(first: datetime, second: datetime) -> None:
    texts = [str(convert(moment, "time", "time")) for moment in (first, second)]
    assert (texts[0] < texts[1]) == (first < second)
    assert (texts[0] == texts[1]) == (first == second)


@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.dates(), st.datetimes(), st.none()))
def test_a_value_converts_to_the_kind_inferred_from_it(value: object) -> None:
    for column, kind in infer_kinds([{"column": value}]).items():
        try:
            once = convert(value, kind, column)
        except ValueError as refusal:
            assert "cannot be stored" in str(refusal) or "finite" in str(refusal)
        else:
            assert convert(once, kind, column) == once


@given(st.text(st.characters(max_codepoint=0x24F), max_size=20) | st.text(st.characters(codec="ascii"), max_size=20))
def test_names_of_latin_headings_are_those_of_earlier_versions(raw: str) -> None:
    """Galleries hold columns under them; only letters that have no ASCII part were left out before."""
    before = unicodedata.normalize("NFKD", raw.casefold()).encode("ascii", "ignore").decode().lower()
    before = re.sub(r"[^a-z0-9]+", "_", before).strip("_")
    assume(all(letter.isascii() for letter in unicodedata.normalize("NFKD", raw.casefold()) if letter.isalpha()))
    try:
        name = column_name(raw)
    except ValueError:
        return
    assert name.removeprefix("_") == before


def test_a_number_of_thousands_of_digits_is_text() -> None:
    assert infer_kinds([{"column": "9" * 5000}]) == {"column": "text"}


def test_values_are_stored_in_nfc() -> None:
    assert convert("cafe\u0301", "text", "column") == "café"


@pytest.mark.parametrize("kind", ["text", "number", "time", "boolean"])
def test_a_value_has_at_most_2000_characters(kind: Kind) -> None:
    with pytest.raises(ValueError, match="column 'note'") as refusal:
        convert("9" * 2001, kind, "note")
    assert len(str(refusal.value)) < 300
    assert convert("é" * 2000, "text", "note") == convert("e\u0301" * 2000, "text", "note")


def test_names_are_found_in_any_case_heading_and_form() -> None:
    known = ["track_id", "カメラ", "ガラス", "cafe", "escape"]
    for name in ("Track ID", "TRACK_ID", "track_id"):
        assert find_column(name, known) == "track_id"
    assert find_column("カ\u3099ラス", known) == "ガラス"
    assert find_column("Café", known) == "cafe"
    with pytest.raises(ValueError, match="no column 'Trak ID'; did you mean 'track_id'"):
        find_column("Trak ID", known)


def test_a_gallery_has_at_most_100_columns() -> None:
    check_new_columns(["a"] * 150, [])
    check_new_columns([f"a{n}" for n in range(60)], {f"b{n}" for n in range(40)})
    with pytest.raises(ValueError, match="41 new columns .* beside the gallery's 60: a gallery has at most 100"):
        check_new_columns([f"a{n}" for n in range(60)], {f"b{n}" for n in range(41)})
