"""A data set of one's own: imported, shown, checked, trained on and evaluated, with people who have names."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from command_line import done, typed
from PIL import Image

NAMES = ("Anna", "Ben", "Cem", "Dana", "Émile", "Fatima", "Götz", "Hana", "Ivan", "Jo", "Kim", "Lea")


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`people.csv` of 12 people with two images each and two columns of captions."""
    folder = tmp_path_factory.mktemp("table")
    done(
        f"cskt data make {folder} --layout jsonl --train-ids 12 --val-ids 0 --test-ids 0 --images-per-id 2"
        " --captions-per-image 2"
    )
    with (folder / "people.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["photo", "who", "caption_1", "caption_2", "camera"])
        for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            writer.writerow([record["image"], NAMES[record["pid"]], *record["captions"], "c1"])
    return folder / "people.csv"


@pytest.fixture(scope="session")
def imported(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "my-data"
    shown = done(f"cskt data import {table} {folder} --person who --attribute camera --val 0.25 --test 0.25 --seed 1")
    assert [line.split()[1::2] for line in shown.splitlines() if line.startswith("│")] == [
        ["train", "6", "12", "24"], ["val", "3", "6", "12"], ["test", "3", "6", "12"],
    ]  # fmt: skip
    assert f"data check {folder}" in shown and f"train --config demo --dataset jsonl --root {folder}" in shown
    return folder


def test_an_imported_table_has_no_errors_and_can_be_shown(imported: Path, tmp_path: Path) -> None:
    done(f"cskt data check {imported}")
    page = tmp_path / "people.html"
    shown = done(f"cskt data show {imported} --people 3 --images 1 --output {page}")
    assert "my-data train: 3 of 6 people" in shown
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 3 and text.count("data:image/jpeg") == 3
    assert "1 of 2 images, 4 captions; camera: c1" in text
    with Image.open(tmp_path / "people.png") as sheet:
        assert sheet.height > 3 * 224
    test = [json.loads(line)["pid"] for line in (imported / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    refusal = typed(f"cskt data show {imported} --pid {test[0]}").refusal()
    assert refusal == f"--pid {test[0]}: is in test and not in train; use --split test"
    done(f"cskt data show {imported} --split test --pid {test[0]} --output {page}")
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 1 and f"<h2>{test[0]}</h2>" in text and text.count("data:image/jpeg") == 2


@pytest.mark.slow
def test_training_and_results_name_the_people(imported: Path, root: Path, train_command: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = train_command.replace(f"--root {root}", f"--dataset jsonl --root {imported}")
    done(f"{command} --output {run}")
    done(f"cskt evaluate {run} --device cpu")
    (file,) = (run / "evaluations").glob("jsonl_test_*.json")
    pids = json.loads(file.read_text(encoding="utf-8"))["query_pids"]
    assert len(pids) == 12 and set(pids) < set(NAMES)
    found = typed(f"cskt search --model {run} --split test 'a man in red' -k 2 --json --device cpu").json()
    assert {hit["metadata"]["pid"] for hit in found[0]["hits"]} <= set(pids)
    done(f"cskt report {run} --output {tmp_path}/report.html --lists 1 --device cpu")
    assert f"person {pids[0]}: first right image at rank" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_one_training_on_two_data_sets(
    imported: Path, own_data: Path, root: Path, train_command: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = train_command.replace(f"--root {root}", f"--dataset jsonl --root {imported} --root {own_data}")
    shown = done(f"{command} --output {run}")
    assert shown.splitlines()[-1].endswith(f"evaluate {run} --root {imported} --root {own_data}")
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert events[0]["train_identities"] == 6 + 8
    stages = [event["stage"] for event in events if event["event"] == "mix-evaluation"]
    assert stages == ["zero-shot-mix-2", "step-0-mix-2", "epoch-mix-2", "epoch-mix-2"]
    other = typed(f"cskt evaluate {run} --dataset jsonl --root {own_data} --split val --device cpu --json").json()
    assert other["t2i"]["num_queries"] == events[-2]["t2i"]["num_queries"] == 16
    assert "already finished" in done(f"cskt train --resume {run}")
    both = typed(f"cskt evaluate {run} --split val --device cpu --json").json()["datasets"]
    assert [each["root"] for each in both] == [str(imported), str(own_data)]
    assert [each["t2i"]["num_queries"] for each in both] == [12, 16] and both[1]["t2i"] == other["t2i"]
    assert len(list((run / "evaluations").glob("jsonl_val_*.json"))) == 2
    table = done(f"cskt evaluate {run} --device cpu")
    assert "2 data sets, test" in " ".join(table.split()) and "jsonl in my-data" in table

    pairs = tmp_path / "pairs"
    shutil.copytree(own_data, pairs)
    (pairs / "test.jsonl").unlink()
    alone = typed(f"cskt evaluate {run} --device cpu --json --root {imported} --root {pairs}").json()
    assert alone["t2i"]["num_queries"] == 12, "a data set without that split is left out"

    weighted = f"--mix '{{root: {own_data}, weight: 0.5}}' --mix-batches one"
    single = train_command.replace(f"--root {root}", f"--dataset jsonl --root {imported}")
    done(f"{single} {weighted} --num-epochs 1 --output {tmp_path}/weighted")
    assert "weight: 0.5" in (tmp_path / "weighted" / "config.yaml").read_text(encoding="utf-8")
    refusal = typed(f"{command} {weighted} --output {tmp_path}/both").refusal()
    assert refusal.startswith("--root several times is a mix of data sets; leave out --mix")


@pytest.mark.slow
def test_a_mix_that_was_moved_is_found_again(
    imported: Path, own_data: Path, root: Path, train_command: str, tmp_path: Path
) -> None:
    for name, folder in (("a", imported), ("b", own_data)):
        shutil.copytree(folder, tmp_path / name)
    run, a, b = tmp_path / "run", tmp_path / "new-a", tmp_path / "new-b"
    command = train_command.replace(f"--root {root}", f"--dataset jsonl --root {tmp_path}/a")
    mix = f"--mix '{{root: {tmp_path}/b, weight: 0.5}}'"
    done(f"{command} {mix} --output {run} --stop-after-epochs 1")
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / f"new-{name}")
    refusal = typed(f"cskt train --resume {run} --root {a} --root {b} --root {b}").refusal()
    assert "3 folders" in refusal and f"in the order {tmp_path}/a, {tmp_path}/b" in refusal
    assert "trained on other images" in typed(f"cskt train --resume {run} --root {b} --root {a}").refusal()
    shown = done(f"cskt train --resume {run} --root {a} --root {b}")
    assert shown.splitlines()[-1].endswith(f"evaluate {run} --root {a} --root {b}")
    refusal = typed(f"cskt evaluate {run} --device cpu").refusal()
    assert f"--root DIR for each of its 2 data sets, in the order {tmp_path}/a, {tmp_path}/b" in refusal
    moved = typed(f"cskt evaluate {run} --device cpu --json --root {a} --root {b}").json()
    assert [each["t2i"]["num_queries"] for each in moved["datasets"]] == [12, 24]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("import {table} {data} --split camera --val 0.1", "--split takes the splits of the table; leave out --val"),
        ("import {table} {data} --split camera --person who", "the split is 'c1'; use train, val or test"),
        ("import {table} {data}", "no column 'pid' or"),
        ("import {table} {data} --person who --val 0.9", "12 people are too few"),
        ("import {table} {data} --person who --test -1", "test_fraction is -1.0; give a fraction"),
        ("import {table} {imported} --person who", "my-data: already exists; name a new folder"),
        ("show {imported} --pid Nobody", "--pid Nobody: nobody in train has this identity; known: "),
        ("show {imported} --split other", "no split 'other'; it has train, val, test"),
        ("show {imported} --people 0", "--people 0: give 1 to 50"),
        ("show {imported} --output {data}/x.png", "name a file that ends in .html"),
        ("show {table}", "people.csv: no such folder"),
        ("show {data}", "holds no data set; see cskt data import --help"),
        ("check {data}", "no train.jsonl, val.jsonl, test.jsonl; see cskt data import --help"),
        ("check {tables}", "no train.jsonl, val.jsonl, test.jsonl; to import a table: "),
    ],
)
def test_bad_flags_are_refused(flags: str, message: str, table: Path, imported: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    tables = tmp_path / "tables"
    tables.mkdir()
    shutil.copy(table, tables)
    if "import" not in flags:
        data.mkdir()
    command = "cskt data " + flags.format(table=table, imported=imported, data=data, tables=tables)
    assert message in typed(command).refusal()
