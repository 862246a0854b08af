"""Grammar of filters: accepted texts, their meaning, and refused ones."""

from __future__ import annotations

import unicodedata

import pytest
from filter_oracle import COLUMNS, conditions, fulfils, values, written
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cskt.gallery.conditions as conditions_module
from cskt.gallery.columns import BUILT_IN, Kind, Value
from cskt.gallery.conditions import All, Any_, Comparison, Condition, Membership, Missing, Pattern
from cskt.gallery.filters import parse_filter

KNOWN: dict[str, Kind] = {**BUILT_IN, **COLUMNS, "order": "text", "lower": "text", "カメラ": "text"}
C1 = Comparison("camera", "=", "c1")
F1 = Comparison("frame", "=", 1)
N1 = Comparison("night", "=", True)


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("camera = 'c1'", C1),
        ("CAMERA='c1'", C1),
        (" \"Camera\"\n=\t'c1' ", C1),
        ("camera <> 'c1'", Comparison("camera", "!=", "c1")),
        ("camera = 'it''s'", Comparison("camera", "=", "it's")),
        ("camera = 'a\\'", Comparison("camera", "=", "a\\")),
        ("camera = 'a\\n--/*;'", Comparison("camera", "=", "a\\n--/*;")),
        ("camera = '(((((((((((((((((((((((((((((('", Comparison("camera", "=", "(" * 30)),
        ("frame >= -2.5", Comparison("frame", ">=", -2.5)),
        ("frame < 1e3", Comparison("frame", "<", 1000.0)),
        ("night = TRUE", N1),
        ("night != false", Comparison("night", "!=", False)),
        ("time > '2026-01-01'", Comparison("time", ">", "2026-01-01T00:00:00")),
        ("time <= '2026-01-01T00:00:00+01:00'", Comparison("time", "<=", "2025-12-31T23:00:00")),
        ("width > 64 ", Comparison("width", ">", 64)),
        ("order = 'x'", Comparison("order", "=", "x")),
        ("frame in (1, 2.5,-3)", Membership("frame", (1, 2.5, -3))),
        ("frame NOT IN (1)", Membership("frame", (1,), negated=True)),
        ("frame between 1 and 2", All((Comparison("frame", ">=", 1), Comparison("frame", "<=", 2)))),
        ("frame not between 1 and 2", Any_((Comparison("frame", "<", 1), Comparison("frame", ">", 2)))),
        ("camera LIKE 'c%'", Pattern("camera", ("c", ""))),
        ("camera like '%a%%_b\\%'", Pattern("camera", ("", "a", "_b\\", ""))),
        ("camera like '%'", Pattern("camera", ("", ""))),
        ("camera like ''", Pattern("camera", ("",))),
        ("camera like 'c1'", Pattern("camera", ("c1",))),
        ("camera NOT LIKE 'c%'", Pattern("camera", ("c", ""), negated=True)),
        ("camera like 'a!%%' escape '!'", Pattern("camera", ("a%", ""))),
        ("camera like 'a\\_%' ESCAPE '\\'", Pattern("camera", ("a_", ""))),
        ("camera not like '%!!x' escape '!'", Pattern("camera", ("", "!x"), negated=True)),
        ("not camera like 'a%' escape '!' and frame = 1", All((Pattern("camera", ("a", ""), negated=True), F1))),
        ("camera like '%a%b%' escape 'x'", Pattern("camera", ("", "a", "b", ""))),
        ("カメラ = 'x'", Comparison("カメラ", "=", "x")),
        ('"カメラ" is null', Missing("カメラ")),
        ("\"CAMERA \" = 'c1'", C1),
        ("camera = 'é'", Membership("camera", ("é", "e\u0301"))),
        ("camera = 'e\u0301'", Membership("camera", ("é", "e\u0301"))),
        ("camera != 'é'", Membership("camera", ("é", "e\u0301"), negated=True)),
        ("not camera = 'é'", Membership("camera", ("é", "e\u0301"), negated=True)),
        ("camera in ('é', 'x')", Membership("camera", ("é", "e\u0301", "x"))),
        ("camera = 'ée\u0301'", Membership("camera", ("éé", "e\u0301e\u0301", "ée\u0301"))),
        ("camera > 'e\u0301'", Comparison("camera", ">", "é")),
        ("camera like 'é%a'", Any_((Pattern("camera", ("é", "a")), Pattern("camera", ("e\u0301", "a"))))),
        ("camera not like 'é%'", All((Pattern("camera", ("é", ""), True), Pattern("camera", ("e\u0301", ""), True)))),
        ("camera is null", Missing("camera")),
        ("camera IS NOT NULL", Missing("camera", negated=True)),
        ("camera = 'c1' and frame = 1 AND night = true", All((C1, F1, N1))),
        ("camera = 'c1' or frame = 1 and night = true", Any_((C1, All((F1, N1))))),
        ("(camera = 'c1' or frame = 1) and ((night = true))", All((Any_((C1, F1)), N1))),
        ("not camera = 'c1' and frame = 1", All((Comparison("camera", "!=", "c1"), F1))),
        ("not (frame < 1 or frame >= 2)", All((Comparison("frame", ">=", 1), Comparison("frame", "<", 2)))),
        ("not (frame <= 1 and frame > 2)", Any_((Comparison("frame", ">", 1), Comparison("frame", "<=", 2)))),
        ("not not camera = 'c1'", C1),
        ("not camera is null", Missing("camera", negated=True)),
        ("not camera not in ('c1')", Membership("camera", ("c1",))),
        ("not camera like 'c%'", Pattern("camera", ("c", ""), negated=True)),
        ("not frame between 1 and 2", Any_((Comparison("frame", "<", 1), Comparison("frame", ">", 2)))),
        ("(" * 20 + "frame = 1" + ")" * 20, F1),
    ],
)
def test_accepted_filters(text: str, condition: Condition) -> None:
    assert parse_filter(text, KNOWN) == condition


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("-- nothing", "empty"),
        ("camra = 'c1'", "did you mean 'camera'"),
        ('camera = "c1"', "text is written in single quotes"),
        ("camera = c1", "text is written in single quotes"),
        ("gallery.camera = 'c1'", "no column 'gallery'"),
        ("vector = 1", "no column 'vector'"),
        ("camera", "no condition"),
        ("'c1'", "no condition"),
        ("true", "no condition"),
        ("1 = 1", "where a column must"),
        ("'c1' = camera", "where a column must"),
        ("camera = note", "compares with a text in single quotes"),
        ("camera = 1", "compares with a text in single quotes"),
        ("frame = '1'", "compares with a number"),
        ("frame = true", "compares with a number"),
        ("frame = - - 1", "compares with a number"),
        ("frame = 1 + 1", "'.' is not read"),
        ("frame - 1 = 1", "where a column must"),
        ("frame = 1 - 1", "compares with a number"),
        ("frame = (1)", "compares with a number"),
        ("frame = 007", "no number"),
        ("frame = 1e999", "no number"),
        ("frame = 9007199254740993", "no number"),
        ("frame = 0x10", "no column 'x10'"),
        ("frame = 1_000", "no column '_000'"),
        ("night = 1", "compares with true or false"),
        ("night = 'true'", "compares with true or false"),
        ("night > false", "no order"),
        ("night between false and true", "no order"),
        ("time > 2026", "compares with a time"),
        ("time > 'yesterday'", "no time"),
        ("time like '2026%'", "LIKE is for columns of text"),
        ("camera = ''", "IS NULL"),
        ("camera = null", "IS NULL"),
        ("camera in ('c1', null)", "IS NULL"),
        ("camera is true", "IS is followed by NULL"),
        ("camera is 'c1'", "IS is followed by NULL"),
        ("camera = 'a' 'b'", "compares with"),
        ("camera = N'a'", "is not read"),
        ("camera = X'ff'", "no column 'X'"),
        ("camera = E'a'", "no column 'E'"),
        ("camera = 'a\x00'", "cannot be stored"),
        ("camera = '\ud800'", "cannot be stored"),
        ("frame in ()", "1 to 5,000"),
        ("frame in 1", "more than a filter can"),
        ("frame in (" + "1," * 5000 + "1)", "found 5,001"),
        ("frame=1 or " * 201 + "frame=1", "more than 200 times AND or OR"),
        ("frame in (frame)", "compares with a number"),
        ("frame in (select 1)", "no column 'select'"),
        ("(frame, frame) = (1, 2)", "where a column must"),
        ("camera like note", "compares with"),
        ("camera like 'a' escape", "out of place"),
        ("camera like 'a' escape ''", "one character"),
        ("camera like 'a' escape '!!'", "one character"),
        ("camera like 'a' escape 1", "out of place"),
        ("camera like 'a!b' escape '!'", "before %, _ or itself"),
        ("camera like 'a!' escape '!'", "before %, _ or itself"),
        ("camera = 'a' escape '!'", "ESCAPE follows a LIKE pattern|out of place"),
        ("camera in ('a' escape '!')", "out of place"),
        ("escape = 'a'", "no column 'escape'"),
        ("\"Camra\" = 'c1'", "did you mean 'camera'"),
        ("カメ = 'c1'", "no column 'カメ'; did you mean 'カメラ'"),
        ("camera ilike 'a'", "no column 'ilike'"),
        ("upper(camera) = 'A'", "looks like a function"),
        ("lower(camera) = 'a'", "where a column must"),
        ("lower('a')", "no condition"),
        ("camera = upper('a')", "looks like a function"),
        ("exists(select 1)", "looks like a function"),
        ("cast(frame as int) = 1", "looks like a function"),
        ("frame::int = 1", "'::' is not read"),
        ("case when night = true then 1", "no column 'case'"),
        ("camera = 'c1' collate note", "no column 'collate'"),
        ("camera = 'c1' note", "no condition"),
        ("select * from crops", "no column 'select'"),
        ("drop table crops", "no column 'drop'"),
        ("camera = 'c1'; drop table crops", "';' is not read"),
        ("camera = 'c1';", "';' is not read"),
        ("frame = 1 = 1", "where a column must"),
        ("frame = 1, night = true", "out of place"),
        ("frame = 1 -- and more", "comments"),
        ("frame /* */ = 1", "comments"),
        ("/**/ frame = 1", "comments"),
        ("frame = 1\n--", "comments"),
        ("frame = 1 {# #}", "comments"),
        ("frame = 1 /* ", "out of place"),
        ("camera = 'c1", "out of place"),
        ("camera = 'c1' and", "out of place"),
        ("and frame = 1", "not understood"),
        ("(frame = 1", "out of place"),
        ("frame = 1)", "out of place"),
        ("frame between 1", "out of place"),
        ("not", "out of place"),
        ("frame = ?", "is not read"),
        ("frame = :frame", "is not read"),
        ("frame = @frame", "is not read"),
        ("frame = $1", "is not read"),
        ("{fn frame} = 1", "is not read"),
        ("{% frame %}", "is not read"),
        ("`frame` = 1", "is not read"),
        ("[frame] = 1", "is not read"),
        ("* = 1", "is not read"),
        ("frame == 1", "is not read"),
        ("frame !< 1", "is not read"),
        ("frame <=> 1", "is not read"),
        ("frame = 1 && night = true", "is not read"),
        ("frame = 1 || night = true", "is not read"),
        ("(" * 21 + "frame = 1" + ")" * 21, "deeper than 20"),
        ("not " * 21 + "frame = 1", "deeper than 20"),
        ("(not " * 11 + "frame = 1" + ")" * 11, None),
        ("frame = not " * 160 + "1", "nested too deeply|out of place|compares with"),
    ],
)
def test_refused_filters(text: str, problem: str | None) -> None:
    if problem is None:
        parse_filter(text, KNOWN)
        return
    with pytest.raises(ValueError, match=problem) as refusal:
        parse_filter(text, KNOWN)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("text", ["(" * 10_000_000, "frame = 1 or " * 8000, "camera = '" + "x" * 10_000_000 + "'"])
@pytest.mark.timeout(300)
def test_a_long_filter_is_refused_before_it_is_parsed(text: str) -> None:
    with pytest.raises(ValueError, match="at most 100,000"):
        parse_filter(text, KNOWN)


def test_a_long_chain_is_not_deep() -> None:
    parsed = parse_filter(" and ".join(["frame=1"] * 160), KNOWN)
    assert parsed == All((F1,) * 160)


def has_one_form(text: str) -> bool:
    """Return whether NFC and NFD of a text are equal, so that it has one form."""
    return all(unicodedata.is_normalized(form, text) for form in ("NFC", "NFD"))


@given(conditions().filter(lambda condition: has_one_form(written(condition))))
def test_a_condition_survives_its_text(condition: Condition) -> None:
    assert parse_filter(written(condition), KNOWN) == condition


@given(conditions(), values())
def test_not_inverts_a_condition_on_known_values(condition: Condition, known: dict[str, Value]) -> None:
    text = f"NOT ({written(condition)})"
    assume(has_one_form(text))
    opposite = parse_filter(text, KNOWN)
    usual: dict[str, Value] = {"camera": "c1", "note": "n", "frame": 1, "night": True, "time": "2026-01-31T12:00:00"}
    full = {**usual, **known}
    assert fulfils(opposite, full) != fulfils(condition, full)


@given(conditions().filter(lambda condition: "NULL" not in written(condition)), values())
def test_without_a_value_neither_a_condition_nor_its_opposite_holds(
    condition: Condition, known: dict[str, Value]
) -> None:
    used = _columns_of(condition)
    nothing_known = {column: value for column, value in known.items() if column not in used}
    assert not fulfils(condition, nothing_known)
    if len(written(condition)) < 1990:
        assert not fulfils(parse_filter(f"NOT ({written(condition)})", KNOWN), nothing_known)


def _columns_of(condition: Condition) -> set[str]:
    if isinstance(condition, All | Any_):
        return set().union(*(_columns_of(part) for part in condition.conditions))
    return {condition.column}


PIECES = """
    camera frame night time order lower ( ) , - = != < <= > >= AND OR NOT IN BETWEEN LIKE IS NULL TRUE FALSE 1 2.5 'a'
    '' 'c%' + * . ; :: -- /* */ " ' \\ { } [ ] ? @x $1 select from case when end cast interval date array exists any all
"""


@given(st.lists(st.sampled_from(PIECES.split()), max_size=25).map(" ".join) | st.text(max_size=60))
@settings(max_examples=300)
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        condition = parse_filter(text, KNOWN)
    except ValueError as refusal:
        assert "\n" not in str(refusal)
    else:
        assert parse_filter(written(condition), KNOWN) == condition


@settings(deadline=None)
@given(condition=conditions(), known=values())
def test_fulfils_is_the_meaning_of_a_condition(condition: Condition, known: dict[str, Value]) -> None:
    assert conditions_module.fulfils(condition, known) == fulfils(condition, known)


def test_a_value_of_another_kind_fulfils_no_comparison() -> None:
    assert not conditions_module.fulfils(Comparison("frame", "<", 3), {"frame": "2"})
