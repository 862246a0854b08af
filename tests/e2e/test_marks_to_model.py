"""From marks to a better model: the commands of docs/marks.md, and what `cskt train` says to do next."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from command_line import REPOSITORY, done, typed, words_of
from test_documentation import commands_in

from cskt.cli.train import next_commands
from cskt.config import load_config, save_config
from cskt.data.datasets import read_dataset
from cskt.gallery.gallery import Gallery
from cskt.gallery.marks import Mark, marks_csv, training_records

PAGE = (REPOSITORY / "docs" / "marks.md").read_text(encoding="utf-8")
MARKED_PEOPLE = 6


def mark_hits(gallery: Path, street: Path, output: Path) -> list[Mark]:
    """Search for one sentence of each of a few people, judge the hits, and write what the page exports."""
    records = [record for split in read_dataset("jsonl", street).values() for record in split.records]
    person_of = {record.image_path.relative_to(street / "imgs").as_posix(): record.pid for record in records}
    sentences = {record.pid: record.captions[0] for record in reversed(records) if record.split == "test"}
    marks = []
    with Gallery.open(gallery, device="cpu") as opened:
        for pid in list(sentences)[:MARKED_PEOPLE]:
            hits = opened.search(sentences[pid], k=40)
            right = [Mark(sentences[pid], hit.image_id, True) for hit in hits if person_of[hit.image_id] == pid]
            wrong = [Mark(sentences[pid], hit.image_id, False) for hit in hits if person_of[hit.image_id] != pid]
            marks += right[:2] + wrong[:4]
    (output / "marks.csv").write_text(marks_csv(marks), encoding="utf-8", newline="")
    lines = [json.dumps(record) + "\n" for record in training_records(marks)]
    (street / "imgs" / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    return marks


@pytest.mark.slow
def test_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    commands = commands_in(PAGE)
    verbs = [
        "data",
        "train",
        "data",
        "index",
        "serve",
        "train",
        "evaluate",
        "evaluate",
        "compare",
        "reindex",
        "calibrate",
    ]
    assert [command.split()[1] for command in commands] == verbs
    *first, _, adapt, evaluate_first, evaluate_adapted, compare, reindex, calibrate = commands
    for command in first:  # smaller than on the page
        shorter = " --num-epochs 1 --batch-size 32" if command.startswith("cskt train") else ""
        done(command.replace("-ids 40", "-ids 12").replace("--val-ids 10", "--val-ids 4") + shorter)
    marks = mark_hits(Path("gallery"), Path("street"), tmp_path)
    assert sum(mark.right for mark in marks) >= 6

    caplog.clear()
    lines = done(adapt).splitlines()
    config = load_config("adapted/config.yaml")
    assert config.data.select_on == "train" and config.loop.eval_period_epochs == config.loop.num_epochs
    assert any(line.startswith(f"best: epoch {config.loop.num_epochs}, ") for line in lines), "the last is kept"
    assert config.data.batch_size < 32 and config.optim.lr == pytest.approx(3e-4)
    assert "data.select_on val -> train" in caplog.text
    (start,) = [number for number, line in enumerate(lines) if line.startswith("next: ")]
    printed = [words_of(line.removeprefix("next:").strip()) for line in lines[start : start + 3]]
    assert printed == [words_of(command) for command in (evaluate_first, evaluate_adapted, compare)]
    assert lines[start + 3].endswith("reindex GALLERY --model adapted")
    for command in (evaluate_first, evaluate_adapted):
        done(command)
    assert "adapt against demo: " in " ".join(done(compare).split())

    done(calibrate)
    again = done(reindex).splitlines()[-1].partition(": ")[2]
    assert words_of(again) == words_of(calibrate)
    done(again)


def test_adapt_needs_a_run_and_its_marks(tmp_path: Path, run: Path) -> None:
    assert "name its run: --init-from RUN" in typed(f"cskt train --config adapt --root {tmp_path}").refusal()
    refusal = typed(f"cskt train --config adapt --root {tmp_path} --init-from {run}").refusal()
    assert str(tmp_path) in refusal and ".jsonl" in refusal


def test_next_commands_quote_paths_and_choose_a_test_split_that_exists(tmp_path: Path, own_data: Path) -> None:
    before, marks, new = tmp_path / "my first run", tmp_path / "marks", tmp_path / "new"
    for folder in (before, marks):
        folder.mkdir()
    (marks / "train.jsonl").write_text('{"image": "a.jpg", "pid": 1, "captions": ["a man"]}\n', encoding="utf-8")
    save_config(load_config("demo", {"data.root": str(own_data), "data.dataset": "jsonl"}), before / "config.yaml")
    config = load_config("adapt", {"init_from": str(before), "data.root": str(marks)})
    data = ["--dataset", "jsonl", "--root", str(own_data)]
    *three, last = next_commands(new, config)
    assert [words_of(command)[1:] for command in three] == [
        ["evaluate", str(before), *data],
        ["evaluate", str(new), *data],
        ["compare", str(before), str(new), "--dataset", "jsonl", "--split", "test"],
    ]
    assert last.endswith(f"reindex GALLERY --model {new}")

    (marks / "test.jsonl").write_text('{"image": "b.jpg", "pid": 2, "captions": ["a man"]}\n', encoding="utf-8")
    assert words_of(next_commands(new, config)[0])[-1] == str(marks), "other people, marked at the same place"
    alone = load_config("demo", {"data.root": str(own_data)})
    assert [words_of(line)[1:] for line in next_commands(new, alone)] == [
        ["evaluate", str(new), "--root", str(own_data)]
    ]
