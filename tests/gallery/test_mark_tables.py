"""Tables of users: delimiters, byte order marks, quotes, JSON lines, and their errors."""

from pathlib import Path

import pytest

from cskt.utils.csv_cells import guarded_cell
from cskt.utils.user_tables import column_of, read_table


def written(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_delimiters_byte_order_marks_and_line_ends(tmp_path: Path, delimiter: str, start: str, end: str) -> None:
    lines = [("image", "camera"), ("a.jpg", f'"Café{delimiter} ""left"""'), ("", ""), ("b.jpg", "")]
    path = written(tmp_path, start + end.join(delimiter.join(cells) for cells in lines) + end)
    assert [dict(row.cells) for row in read_table(path)] == [
        {"image": "a.jpg", "camera": f'Café{delimiter} "left"'},
        {"image": "b.jpg", "camera": ""},
    ]


def test_rows_have_line_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, 'image,note\n\na.jpg,"two\nlines"\nb.jpg,x\n')
    assert [row.where for row in read_table(path)] == [f"{path}:4", f"{path}:5"]


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    path = written(tmp_path, '\n{"image": "a.jpg", "count": 3, "night": true}\n\n{"image": "b.jpg"}\n')
    assert [dict(row.cells) for row in read_table(path)] == [
        {"image": "a.jpg", "count": 3, "night": True},
        {"image": "b.jpg"},
    ]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "'quoted", "'=x", "\tx", "plain", "it's = fine", ""])
def test_a_guarded_cell_is_read_back(tmp_path: Path, text: str) -> None:
    cell = guarded_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    path = written(tmp_path, f'image,text\na.jpg,"{cell}"\n')
    assert read_table(path)[0].cells["text"] == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no row"),
        ("image,camera\n", "has no row"),
        ("image,camera\na.jpg,c1,c2\n", r"table\.csv:2: 3 cells under 2 headings"),
        ("image,image\na.jpg,b.jpg\n", r"table\.csv:1: the heading 'image' is there twice"),
        ('image,note\na.jpg,"open\n', r"table\.csv:2: not CSV: .* left open"),
        ('{"image": "a.jpg"}\n{"image"\n', r"table\.csv:2: not JSON"),
        ('{"image": "a.jpg"}\n[1]\n', r"table\.csv:2: no JSON object"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("image,ort\na.jpg,Köln\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 at byte 17; save the table as UTF-8"):
        read_table(tmp_path / "latin.csv")
    with pytest.raises(ValueError, match="missing.csv: cannot be read: No such file"):
        read_table(tmp_path / "missing.csv")


def test_columns_are_found_in_any_case(tmp_path: Path) -> None:
    path = written(tmp_path, "File,Camera\na.jpg,1\n")
    rows = read_table(path)
    assert column_of(rows, ("image", "path", "file"), path) == "File"
    with pytest.raises(ValueError, match="no column text or caption; it has Camera, File"):
        column_of(rows, ("text", "caption"), path)
