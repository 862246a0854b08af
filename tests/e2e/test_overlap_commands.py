"""Data whose splits share people or images: refused by the commands that compute figures, listed by `data check`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import contents, typed

from cskt.data.datasets import read_dataset


@pytest.fixture
def shared(own_data: Path, tmp_path: Path) -> Path:
    """JSON lines of which a training image is in the test split, too, under its own identity."""
    root = tmp_path / "shared"
    shutil.copytree(own_data, root)
    with (root / "train.jsonl").open(encoding="utf-8") as lines:
        first = lines.readline()
    with (root / "test.jsonl").open("a", encoding="utf-8") as lines:
        lines.write(first)
    return root


def expected(root: Path) -> str:
    pid = json.loads((root / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])["pid"]
    return f"{root}: identities in both train and test: 1 ({pid}); number people apart and keep each in one split"


def test_training_refuses_before_anything_is_written(
    shared: Path, root: Path, train_command: str, tmp_path: Path
) -> None:
    command = train_command.replace(f"--root {root}", f"--dataset jsonl --root {shared}")
    outcome = typed(f"{command} --output {tmp_path / 'run'}")
    assert outcome.refusal().startswith(expected(shared))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "command",
    [
        "cskt evaluate {model} {data}",
        "cskt report {model} {data} --output {page}",
        "cskt matrix {model} --datasets jsonl@{root}",
    ],
)
def test_figures_are_refused(shared: Path, tiny_backbone: Path, tmp_path: Path, command: str) -> None:
    data = f"--dataset jsonl --root {shared}"
    outcome = typed(command.format(model=tiny_backbone, data=data, root=shared, page=tmp_path / "page.html"))
    assert outcome.refusal().startswith(expected(shared))


def test_a_study_is_refused_at_its_start(shared: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "title: one\nseeds: [1]\ndatasets: [{name: own, dataset: jsonl}]\n"
        "baseline: a\narms: [{label: a, recipe: clip}]\n"
    )
    outcome = typed(f"cskt study {study} --root {shared} --output {tmp_path / 'out'}")
    assert outcome.refusal().startswith(expected(shared))


def test_query_only_warns(shared: Path, tiny_backbone: Path, caplog: pytest.LogCaptureFixture) -> None:
    outcome = typed(f"cskt query {tiny_backbone} person -k 1 --dataset jsonl --root {shared} --device cpu")
    assert outcome.code == 0
    assert [record.message for record in caplog.records if "identities in both" in record.message]


def test_data_check_ends_with_findings(shared: Path) -> None:
    before = contents(shared)
    outcome = typed(f"cskt data check {shared} --json")
    (report,) = json.loads(outcome.out)
    assert outcome.code == 1 and [error.split(":")[0] for error in report["errors"]] == [
        "identities in both train and test", "images in both train and test",
    ]  # fmt: skip
    assert contents(shared) == before


def test_published_data_and_programs_only_warn(
    root: Path, tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`train.py`, `test.py` and `cskt train` on a published layout with an overlap work, and say so."""
    place = tmp_path / "root"
    shutil.copytree(root / "CUHK-PEDES", place / "CUHK-PEDES")
    annotation = place / "CUHK-PEDES" / "reid_raw.json"
    records = json.loads(annotation.read_text(encoding="utf-8"))
    records.append({**next(record for record in records if record["split"] == "train"), "split": "test"})
    annotation.write_text(json.dumps(records), encoding="utf-8")
    assert len(read_dataset("cuhk-pedes", place)) == 3
    small = "--depth 2 --n_ctx 2 --batch_size 8 --num_epoch 1 --img_size 32,16 --device cpu"
    backbone = f"--loss_names sdm --pretrain_choice {tiny_backbone}"
    trained = typed(
        f"python train.py --dataset_name CUHK-PEDES --root_dir {place} {backbone} --output_dir {tmp_path} {small}"
    )
    assert trained.code == 0, trained.err
    (run,) = (tmp_path / "cuhk-pedes").iterdir()
    assert typed(f"python test.py --config_file {run}/configs.yaml --device cpu").code == 0
    assert typed(f"cskt evaluate {run} --device cpu").code == 0
    assert [record.message for record in caplog.records if "may be too high" in record.message]
