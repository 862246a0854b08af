"""`cskt demo`, with few people and one epoch: the whole of what a stranger sees first."""

from __future__ import annotations

import html
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import done, typed, words_of
from PIL import Image

from cskt.config import load_config
from cskt.report.pictured_results import RIGHT, WRONG

COMMAND = "cskt demo --train-ids 10 --test-ids 10 --epochs 1 --device cpu"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder and what it printed."""
    folder = tmp_path_factory.mktemp("home") / "my demo"
    return folder, done(f"{COMMAND} --output '{folder}'")


def run_of(folder: Path) -> Path:
    (run,) = (folder / "cuhk-pedes").iterdir()
    return run


def figures_of(line: str) -> list[float]:
    return [float(word) for word in line.split() if re.fullmatch(r"\d+\.\d\d", word)]


def test_table_compares_zero_shot_with_cskt(demo: tuple[Path, str]) -> None:
    folder, out = demo
    heading, zero_shot, trained = (
        next(line for line in out.splitlines() if label in line) for label in ("Method", "zero-shot", "CSKT")
    )
    assert heading.split() == ["Method", "R1", "R5", "R10", "mAP", "mINP", "Trained"]
    assert len(figures_of(zero_shot)) == 5 and zero_shot.split()[-3:] == ["0", "(0.00", "%)"]
    evaluated = typed(f"cskt evaluate '{run_of(folder)}' --json").json()["t2i"]
    expected = [round(100 * evaluated[name], 2) for name in ("r1", "r5", "r10", "mean_ap", "mean_inp")]
    assert figures_of(trained)[:5] == pytest.approx(expected)
    assert "10 unseen people, 40 images" in out
    start = json.loads((run_of(folder) / "metrics.jsonl").read_text().splitlines()[0])
    assert f"{start['trainable_parameters']:,}" in trained


def test_shipped_backbone_knows_something_before_training(demo: tuple[Path, str]) -> None:
    (line,) = (line for line in demo[1].splitlines() if "zero-shot" in line and figures_of(line))
    assert figures_of(line)[0] > 20, "chance is 10 %"


def test_three_sentences_are_answered_with_framed_crops(demo: tuple[Path, str]) -> None:
    folder, out = demo
    sheets = sorted(folder.glob("answer-*.png"))
    assert [sheet.name for sheet in sheets] == ["answer-1.png", "answer-2.png", "answer-3.png"]
    assert all(str(sheet) in out for sheet in sheets)
    for sheet in sheets:
        with Image.open(sheet) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        framed = sum(int((pixels == colour).all(axis=2).sum()) for colour in (RIGHT, WRONG))
        assert framed > 2000 and pixels.std() > 20


def test_report_holds_everything_in_one_file(demo: tuple[Path, str]) -> None:
    folder, out = demo
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert str(folder / "report.html") in out
    assert page == (run_of(folder) / "report.html").read_text(encoding="utf-8")
    assert page.count('<figure class="hit') == 15 and page.count("data:image/jpeg;base64,") == 15
    assert "data:image/svg+xml;base64," in page
    assert "zero-shot" in page and "CSKT" in page and "mINP" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing beside the file is needed"


@pytest.mark.slow
def test_next_commands_run_as_printed(demo: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = demo
    query, evaluate, train, make, remark, licensed = (line.strip() for line in out.partition("next:\n")[2].splitlines())
    assert remark == "with a licensed data set and CLIP's weights (see README.md):"
    assert words_of(licensed) == ["cskt", "train", "--config", "cskt", "--root", "DIR"]
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    assert all(command in page for command in (query, evaluate, train, make, licensed))
    monkeypatch.chdir(tmp_path)
    done(query)
    assert Path("answer.png").stat().st_size > 10_000
    assert "text to image" in done(evaluate)
    assert "selected on val" in done(f"{train} --num-epochs 1 --batch-size 20")
    assert done(f"{make} --train-ids 2 --val-ids 1 --test-ids 1") == f"{Path('my-data') / 'RSTPReid'}\n"


@pytest.mark.slow
def test_second_time_draws_nothing_anew(demo: tuple[Path, str], caplog: pytest.LogCaptureFixture) -> None:
    folder, out = demo
    image = min((folder / "data").rglob("*.jpg"))
    drawn_at = image.stat().st_mtime_ns
    caplog.set_level(logging.INFO)
    again = done(f"{COMMAND} --output '{folder}'")
    assert image.stat().st_mtime_ns == drawn_at and "already made with these arguments" in caplog.text
    assert again.splitlines()[:6] == out.splitlines()[:6], "the same seed, the same figures"
    for run in sorted((folder / "cuhk-pedes").iterdir())[1:]:
        assert load_config(run / "config.yaml").seed == 1
