"""Tables of a user, CSV or JSON lines, read into rows of raw values."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cskt.errors import CsktError
from cskt.utils.csv_cells import unguarded_cell
from cskt.utils.json_files import load_json

DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    where: str
    """`file:line`, for messages."""
    cells: Mapping[str, object]
    """Heading as written -> raw value: text in a CSV file, any value of JSON in a JSON-lines file."""


def read_table(path: Path) -> list[Row]:
    """Read the rows of a table: JSON lines if its first character is `{`, else CSV with headings.

    The delimiter of a CSV file is the most frequent of comma, semicolon and tab in its headings. A byte order mark is
    skipped; UTF-16 with such a mark, as spreadsheets write Unicode text, is read too. Marks of
    `csv_cells.guarded_cell` are removed.
    """
    try:
        content = path.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")  # line ends within a cell stay as they are
    except UnicodeDecodeError as error:
        remedy = "save the table as UTF-8 (in a spreadsheet: CSV UTF-8)"
        raise CsktError(f"{path}: not UTF-8 at byte {error.start}; {remedy}") from None
    except OSError as error:
        raise CsktError(f"{path}: cannot be read: {error.strerror}") from None
    rows = list(_json_lines(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text))
    if not rows:
        raise CsktError(f"{path}: has no row; write headings and a line for each image")
    return rows


def column_of(rows: Sequence[Row], names: Collection[str], path: Path) -> str:
    """Return the heading, as written, that is one of `names` in any case; the first in the order of `names`."""
    written = {heading.strip().lower(): heading for row in reversed(rows) for heading in row.cells}
    found = next((written[name] for name in map(str.lower, names) if name in written), None)
    if found is None:
        known = ", ".join(sorted(written.values())) or "none"
        raise CsktError(f"{path}: no column {' or '.join(names)}; it has {known[:300]}")
    return found


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    """Yield rows without the empty lines and cells that spreadsheets add."""
    start = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=start.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    headings: list[str] = []
    try:
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            while cells and not cells[-1].strip():
                cells.pop()
            if headings and len(cells) > len(headings):
                raise CsktError(f"{where}: {len(cells)} cells under {len(headings)} headings; quote cells with commas")
            if headings and cells:
                yield Row(where, dict(itertools.zip_longest(headings, map(unguarded_cell, cells), fillvalue="")))
            elif cells:
                headings = _checked_headings(cells, where)
    except csv.Error as error:
        raise CsktError(f"{path}:{reader.line_num}: not CSV: {error}; is a quotation mark left open?") from None


def _checked_headings(cells: Sequence[str], where: str) -> list[str]:
    headings = [cell.strip() for cell in cells]
    twice = next((heading for heading, number in Counter(headings).items() if number > 1), None)
    if twice is not None:
        raise CsktError(f"{where}: the heading '{twice[:80]}' is there twice; rename one of them")
    return headings


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        record = load_json(line, where=where, remedy="write one object per line")
        if not isinstance(record, dict):
            raise CsktError(f'{where}: no JSON object; write one per line, as in {{"image": "a.jpg"}}')
        yield Row(where, record)
