"""Invented figures and crops for the report tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from cskt.report.pictured_results import PicturedHit, PicturedResult
from cskt.types import Hit


@pytest.fixture
def answer(tmp_path: Path) -> PicturedResult:
    """Three hits: right, wrong, and right with its image file missing."""
    paths = [tmp_path / f"crop_{number}.png" for number in range(3)]
    for path in paths[:2]:
        Image.new("RGB", (48, 128), (30, 60, 200)).save(path)
    hits = [Hit(f"cam_a/crop_{number}.png", 0.5 - 0.1 * number, number + 1) for number in range(3)]
    return PicturedResult("A woman in a red coat.", list(map(PicturedHit, hits, paths, (True, False, True))))
