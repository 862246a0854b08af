"""The checker of plain English finds what it lists, and leaves compatible names alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "tools" / "check_english.py"
spec = importlib.util.spec_from_file_location("check_english", PATH)
assert spec is not None and spec.loader is not None
check_english = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_english)


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ("self.leader = self.add_up(self.told)", 3),  # english: ignore
        ("call(cut_off=1)", 1),
        ("from a import damaged as b", 1),  # english: ignore
        ("self._settled = 1", 1),  # english: ignore
        ("'''Whether it is so.'''", 1),
        ("'the file is damaged'", 1),  # english: ignore
        ("'last.damaged.pt'", 0),
        ("'damage', 'stands for', 'file.tell()'", 0),
    ],
)
def test_findings_of_a_line(source: str, number: int) -> None:
    assert len(list(check_english.check_python(source))) == number


def test_a_compatible_name_is_allowed_in_its_files_only() -> None:
    assert not list(check_english.check_python("answer.cut_off", "src/cskt/service/schemas.py"))
    assert list(check_english.check_python("answer.cut_off", "src/cskt/cli/search.py"))
