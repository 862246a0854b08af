"""Cells of CSV: nothing in them is a formula to a spreadsheet, and what is read back is what was written."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cskt.utils.csv_cells import csv_text, guarded_cell, unguarded_cell

SIGNS = "=+-@＝＋－＠"
SEPARATORS = ";,\t\n\r|"
UNSEEN = "\0\u200b\ufeff"
HOSTILE = st.text(st.sampled_from(f"a {UNSEEN}'\"\u00a0\u3000{SIGNS}{SEPARATORS}"), max_size=12)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize(
    "before", ["", " ", "\t", "\r", "\n ", "'", "\u3000", "a man;", "a man,  ", "x|", "x\t", "x\n", "'x;' "]
)
def test_a_formula_is_marked_wherever_a_spreadsheet_may_look_for_it(before: str, sign: str) -> None:
    cell = guarded_cell(f"{before}{sign}cmd|'/c calc'!A1")
    assert cell.startswith("'")
    for piece in re.split(f"[{SEPARATORS}]", cell):
        assert not piece.strip().startswith(tuple(SIGNS))


@pytest.mark.parametrize("text", ["", "a man", "it's 3 = 2 + 1", "t-shirt", "a, b; c", "c1", "2026-01-31", "a@b.c"])
def test_harmless_text_is_left_alone(text: str) -> None:
    assert guarded_cell(text) == text == unguarded_cell(text)


@pytest.mark.parametrize("text", ["'quoted' and, '-5' more", "a;'=b", "'tis", "size,'-5'"])
def test_a_cell_that_we_did_not_write_is_read_as_it_is(text: str) -> None:
    assert unguarded_cell(text) == text


@given(HOSTILE | st.text(max_size=20))
@example("'=x")
@example("a;' =x")
@example("'a;'=x")
def test_what_is_written_is_read_back(text: str) -> None:
    assert unguarded_cell(guarded_cell(text)) == text


@given(HOSTILE)
def test_no_piece_of_a_written_cell_begins_as_a_formula(text: str) -> None:
    for piece in re.split(f"[{SEPARATORS}]", guarded_cell(text)):
        assert not piece.strip(f" {UNSEEN}").startswith(tuple(SIGNS))


@pytest.mark.parametrize("separator", ";|\t")
@given(HOSTILE)
@example('a;"=cmd|x;b')
@example('a|"=1|')
@example('a\t" =1\t')
def test_no_cell_begins_as_a_formula_where_a_table_is_split_at_another_separator(separator: str, text: str) -> None:
    table = csv_text([["crop", text]])
    for row in csv.reader(io.StringIO(table, newline=""), delimiter=separator):
        for cell in row[1:]:
            assert not cell.strip(f" {UNSEEN}").startswith(tuple(SIGNS))


def test_a_table_has_every_cell_in_quotes_and_numbers_as_they_are() -> None:
    text = csv_text([["label", "delta"], ["a;=b", -0.25], ['"x"\ny', None], ["é", True]])
    assert text == '"label","delta"\n"\'a;\'=b","-0.25"\n"""x""\ny",""\n"é","True"\n'
    rows = list(csv.reader(io.StringIO(text)))
    assert float(rows[1][1]) == -0.25
    assert unguarded_cell(rows[1][0]) == "a;=b"
