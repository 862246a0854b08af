"""Marks as CSV and back, and as training records: crops of one person, and crops left out."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from cskt.data.datasets import read_dataset
from cskt.data.datasets.base import is_name
from cskt.gallery.marks import Mark, marks_csv, read_pairs, training_records
from cskt.training.loop import train
from tiny_run import quick_config

RED, HAT, BAG = "a woman in a red coat", "a man with a hat", "somebody with a bag"


def pid_of(marks: list[Mark]) -> dict[str, str]:
    return {record["image"]: record["pid"] for record in training_records(marks)}


# --- CSV


@pytest.mark.parametrize(
    "text",
    [
        RED,
        "=cmd|'/c calc'!A1",
        "'quoted'",
        'says "hi", twice',
        "two\nlines",
        "-1",
        "红色的外套",
        "a;b\tc",
        "a man;=cmd|'/c calc'!A1",
        "a, -b",
        " =x",
        "a\r=b",
        "two\r\nlines",
        "＝1+1",
        "'=x",
        "a;'=b",
    ],
)
def test_csv_is_read_back_unchanged(tmp_path: Path, text: str) -> None:
    marks = [Mark(text, "cam1/a,b.jpg", True), Mark(text, "+formula.jpg", False)]
    path = tmp_path / "marks.csv"
    path.write_text(marks_csv(marks), encoding="utf-8", newline="")
    assert read_pairs(path) == marks


def test_no_cell_is_a_formula() -> None:
    cells = marks_csv([Mark("=1+1", "@b.jpg", True)]).splitlines()[1].split(",")
    assert cells == ['"\'=1+1"', '"\'@b.jpg"', '"1"']


@pytest.mark.parametrize("yes", ["1", "true", "TRUE", "yes", "right"])
def test_other_tables_are_read_too(tmp_path: Path, yes: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"Path;Sentence;Label\na.jpg;{RED};{yes}\nb.jpg;{RED};0\n")
    assert read_pairs(path) == [Mark(RED, "a.jpg", True), Mark(RED, "b.jpg", False)]


def test_json_lines_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        json.dumps({"text": RED, "image_id": "a.jpg", "right": True})
        + "\n"
        + json.dumps({"text": RED, "image_id": "b.jpg", "right": 0})
        + "\n"
    )
    assert read_pairs(path) == [Mark(RED, "a.jpg", True), Mark(RED, "b.jpg", False)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,a.jpg,maybe", r":2: 'right' is 'maybe'; write 1"),
        ("x,a.jpg", r":2: 'right' is ''"),
        (",a.jpg,1", r":2: no text under 'text'"),
        ("x, ,1", r":2: no text under 'image'"),
        (f"{'x' * 2001},a.jpg,1", r":2: 'text': a sentence of 2,001 characters; give at most 2,000"),
        ("x\x07,a.jpg,1", r":2: 'text': a sentence holds control characters"),
    ],
)
def test_a_line_without_its_values_is_refused(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(f"text,image,right\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("text,image\nx,a.jpg\n")
    with pytest.raises(ValueError, match="no column right or label or match; it has image, text"):
        read_pairs(path)


# --- training records


def test_right_crops_of_one_sentence_are_one_person_and_wrong_ones_are_left_out() -> None:
    marks = [Mark(RED, "a.jpg", True), Mark(RED, "b.jpg", True), Mark(RED, "c.jpg", False), Mark(HAT, "d.jpg", True)]
    assert training_records(marks) == [
        {"image": "a.jpg", "pid": RED, "captions": [RED]},
        {"image": "b.jpg", "pid": RED, "captions": [RED]},
        {"image": "d.jpg", "pid": HAT, "captions": [HAT]},
    ]


def test_sentences_that_share_a_right_crop_are_one_person() -> None:
    marks = [Mark(RED, "a.jpg", True), Mark(HAT, "b.jpg", True), Mark(BAG, "c.jpg", True)]
    assert len(set(pid_of(marks).values())) == 3
    joined = [*marks, Mark(BAG, "a.jpg", True)]
    assert pid_of(joined) == {"a.jpg": RED, "b.jpg": HAT, "c.jpg": RED}
    assert training_records(joined)[0]["captions"] == [RED, BAG]
    assert len(set(pid_of([*joined, Mark(HAT, "c.jpg", True)]).values())) == 1


def test_a_shared_wrong_crop_joins_no_persons() -> None:
    marks = [Mark(RED, "a.jpg", True), Mark(HAT, "b.jpg", True), Mark(RED, "c.jpg", False), Mark(HAT, "c.jpg", True)]
    assert pid_of(marks) == {"a.jpg": RED, "b.jpg": HAT, "c.jpg": HAT}


def test_of_two_marks_the_later_counts() -> None:
    marks = [Mark(RED, "a.jpg", True), Mark(RED, "b.jpg", True), Mark(RED, "a.jpg", False), Mark(RED, "b.jpg", True)]
    assert training_records(marks) == [{"image": "b.jpg", "pid": RED, "captions": [RED]}]
    assert training_records([Mark(RED, "a.jpg", False)]) == []


def test_long_sentences_are_distinct_identities_that_a_data_set_allows() -> None:
    long = "a man " * 100
    pids = set(pid_of([Mark(f"{long}{end}", f"{end}.jpg", True) for end in ("one", "two")]).values())
    assert len(pids) == 2 and all(is_name(pid) for pid in pids)


def test_persons_are_the_connected_components_in_any_order() -> None:
    """Against an oracle that spreads a label until nothing changes."""
    draw = random.Random(0)
    for _ in range(20):
        marks = [Mark(f"t{draw.randrange(8)}", f"i{draw.randrange(12)}", True) for _ in range(10)]
        label = {mark.image_id: mark.image_id for mark in marks}
        for _ in marks:
            for one in marks:
                for other in marks:
                    if one.text == other.text:
                        lowest = min(label[one.image_id], label[other.image_id])
                        label[one.image_id] = label[other.image_id] = lowest
        found = pid_of(marks)
        for one in marks:
            for other in marks:
                same = label[one.image_id] == label[other.image_id]
                assert (found[one.image_id] == found[other.image_id]) == same


def test_training_reads_the_export(tmp_path: Path, tiny_backbone: Path, one_thread: None) -> None:
    for split, texts in (("train", (RED, HAT)), ("val", (f"{RED} of val", f"{HAT} of val"))):
        marks = [Mark(text, f"{split}/{n}{person}.png", True) for person, text in enumerate(texts) for n in "ab"]
        marks.append(Mark(BAG, f"{split}/a0.png", True))
        (tmp_path / split).mkdir()
        for mark in marks:
            Image.new("RGB", (16, 32), (10 * len(mark.text), 0, 0)).save(tmp_path / mark.image_id)
        lines = [json.dumps(record) for record in training_records(marks)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    read = read_dataset("jsonl", tmp_path)["train"]
    assert read.counts == (2, 4, 5)
    assert {record.pid for record in read.records} == {RED, HAT}
    changes = {"data.dataset": "jsonl", "data.batch_size": 4}
    train(quick_config(tmp_path, tiny_backbone, changes=changes), tmp_path / "run")
    assert (tmp_path / "run" / "best.safetensors").is_file()
