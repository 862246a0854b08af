"""CSV without formulas for spreadsheets: cells are quoted, formulas marked as text, and read back unchanged.

A spreadsheet takes a cell for a formula, which may start programs, where it begins with `=`, `+`, `-` or `@`. It may
also split a cell, quoted or not, at a separator that its country uses, drop quotes around nothing, and pass over
characters that draw nothing. So an apostrophe goes before the cell, and before each formula behind a separator within
it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

_FORMULA = r"[\s'\"\0-\x1f\u200b-\u200f\u2060\ufeff]*[=+\-@＝＋－＠﹦﹢﹣﹫]"
_AT_START = re.compile(rf"[\t\r']|{_FORMULA}")
_WITHIN = re.compile(rf"(?<=[;,|\t\n\r])(?={_FORMULA})")
_MARKED_WITHIN = re.compile(rf"(?<=[;,|\t\n\r])'(?={_FORMULA})")


def guarded_cell(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; `unguarded_cell` gives the text again."""
    guarded = _WITHIN.sub("'", text)
    return f"'{guarded}" if guarded != text or _AT_START.match(text) else text


def unguarded_cell(cell: str) -> str:
    """Return the text of a cell of `guarded_cell`; any other cell is returned as it is."""
    text = _MARKED_WITHIN.sub("", cell.removeprefix("'"))
    return text if cell.startswith("'") and guarded_cell(text) == cell else cell


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV: each cell in quotes, text guarded, numbers as they are, None empty."""
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([guarded_cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    return file.getvalue()
