"""Files below a folder, and their sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cskt.utils import files
from cskt.utils.files import bytes_below, files_below


def test_sizes_are_added_up_without_files_that_vanish_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    for name, size in (("a/1", 3), ("2", 5)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert bytes_below(tmp_path) == 8 and bytes_below(tmp_path / "2") == 5 and bytes_below(tmp_path / "none") == 0
    there = list(files_below(tmp_path))
    monkeypatch.setattr(files, "files_below", lambda place: [*there, place / "gone"])
    assert bytes_below(tmp_path) == 8
