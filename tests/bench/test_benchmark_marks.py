"""Training on marked hits: the measurement runs, and its table has the scores in percent."""

from __future__ import annotations

from pathlib import Path

import pytest

import cskt
from benchmarks.marks import Scores, Sizes, mark_hits, measure_seed, table
from cskt.data.datasets import read_dataset

TINY = Sizes(
    first_people=8, val_people=5, gallery_people=6, images_per_person=2, first_epochs=1, hits=12, marks=(4, 12)
)  # fmt: skip


@pytest.mark.slow
def test_models_are_trained_on_the_first_right_hits(tmp_path: Path) -> None:
    scores = measure_seed(1, tmp_path, TINY)
    assert list(scores) == [0, 4, 12]
    assert all(0 <= value <= 1 for of_model in scores.values() for value in of_model)
    gallery = read_dataset("jsonl", tmp_path / "gallery")["test"]
    encoder = cskt.load(tmp_path / "model", device="cpu")
    marks = mark_hits(encoder, gallery, tmp_path / "gallery", num_hits=12)
    assert sorted(mark.image_id for mark in marks) == sorted(
        path.relative_to(tmp_path / "gallery").as_posix() for path in gallery.image_paths
    ), "all hits are marked, so each image is right once"
    for count in (4, 12):
        trained = read_dataset("jsonl", tmp_path / f"marks-{count}")["train"]
        assert [path.name for path in trained.image_paths] == [Path(mark.image_id).name for mark in marks[:count]]
        assert trained.captions == [mark.text for mark in marks[:count]]


@pytest.mark.slow
def test_too_few_right_hits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="only 12 right hits, 13 are needed"):
        measure_seed(1, tmp_path, Sizes(8, 5, 6, 2, 1, 12, (13,)))


def test_the_table_is_in_percent() -> None:
    scores = {1: {0: Scores(0.5, 0.25), 12: Scores(0.75, 1.0)}, 2: {0: Scores(0.4, 0.25), 12: Scores(0.75, 0.5)}}
    assert table(scores).splitlines() == [
        "| marks | first data: seeds 1, 2 | mean | gallery: seeds 1, 2 | mean |",
        "|---|---|---|---|---|",
        "| none | 50.00, 40.00 | 45.00 | 25.00, 25.00 | 25.00 |",
        "| 12 | 75.00, 75.00 | 75.00 | 100.00, 50.00 | 75.00 |",
    ]
