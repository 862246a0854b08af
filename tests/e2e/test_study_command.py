"""`cskt study` and `cskt train --seeds`: what is missing is run, whatever happened to the run before."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Outcome, contents, done, typed, words_of

from cskt.config import load_config
from cskt.evaluation.results import find_results
from cskt.model.io.cache import sha256_of
from cskt.training.events import read_events
from elsewhere import claimed_elsewhere
from tiny_run import HEIGHT, WIDTH

ARMS: list[dict[str, Any]] = [
    {"label": "CLIP zero-shot", "recipe": "clip"},
    {"label": "CSKT", "recipe": "cskt"},
    {"label": "LoRA & co.", "recipe": "lora", "small": {"optim.lr": 5e-3}},
]
FOLDERS = ["clip-zero-shot/seed-1", "cskt/seed-1", "lora-co/seed-1", "cskt/seed-2", "lora-co/seed-2"]
"""Runs of the study in the order of its plan."""
SUFFIXES = ("md", "tex", "csv", "json")


def write(folder: Path, backbone: Path, changes: dict[str, Any] | None = None) -> Path:
    """A study that ends within seconds."""
    content: dict[str, Any] = {
        "title": "Two methods and none", "baseline": "CLIP zero-shot", "seeds": [1, 2], "arms": ARMS,
        "datasets": [{"name": "dolls", "dataset": "cuhk-pedes"}],
        "small": {
            "backbone.name": str(backbone), "backbone.image_height": HEIGHT, "backbone.image_width": WIDTH,
            "device": "cpu", "prompts.depth": 2, "prompts.length": 2, "optim.lr": 1e-2, "optim.warmup_epochs": 0,
            "data.batch_size": 8, "data.num_workers": 0, "loop.num_epochs": 2, "loop.evaluate_before": False,
            "loop.log_period_steps": 1,
        },
    }  # fmt: skip
    path = folder / "quick.yaml"
    path.write_text(yaml.safe_dump(content | (changes or {})))
    return path


def study(file: Path, root: Path, output: Path, more: str = "") -> Outcome:
    return typed(f"cskt study {file} --root {root} --output {output} {more}")


def work_of(folder: Path) -> dict[Path, tuple[int, str]]:
    """When weights, events and results of every run were written, and what they hold; tables left out."""
    digests = contents(folder)
    kept = [path for path in digests if path.parent != folder and path.name != ".lock"]
    return {path.relative_to(folder): (path.stat().st_mtime_ns, digests[path]) for path in kept}


def table_of(folder: Path, name: str = "dolls") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())["rows"]
    return rows


@pytest.fixture(scope="module")
def file(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("study"), tiny_backbone)


@pytest.fixture(scope="module")
def whole(file: Path, dolls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, run without interruption; tests leave its runs as they are."""
    folder = tmp_path_factory.mktemp("studies") / "whole"
    outcome = study(file, dolls, folder)
    assert outcome.code == 0, outcome
    return folder


# --- a study that nobody disturbs


def test_runs_and_tables(whole: Path, file: Path, dolls: Path) -> None:
    assert sorted(path.parent.relative_to(whole / "dolls").as_posix() for path in whole.rglob("best.safetensors")) == (
        sorted(FOLDERS)
    )
    assert not list(whole.rglob("last.pt")), "gigabytes that nobody resumes from"
    tables, plots = {f"dolls.{one}" for one in SUFFIXES}, {"dolls-curves.png", "dolls-parameters.png"}
    assert {path.name for path in whole.iterdir() if path.is_file()} == tables | plots
    clip, cskt, lora = table_of(whole)
    assert [row["label"] for row in (clip, cskt, lora)] == ["CLIP zero-shot", "CSKT", "LoRA & co."]
    assert [row["seeds"] for row in (clip, cskt, lora)] == ["1", "1 2", "1 2"]
    assert clip["r1_difference"] is None and cskt["r1_p_value"] is not None
    for row, name in ((clip, "clip-zero-shot"), (cskt, "cskt"), (lora, "lora-co")):
        kept = [find_results(folder)[0] for folder in sorted((whole / "dolls" / name).iterdir())]
        assert row["r1"] == pytest.approx(sum(one.metrics["t2i"]["r1"] for one in kept) / len(kept))
        assert {one.label for one in kept} == {row["label"]}
    text = {one: (whole / f"dolls.{one}").read_text() for one in SUFFIXES}
    assert "| CSKT " in text["md"] and r"LoRA \& co." in text["tex"] and text["csv"].startswith('"label",')
    assert load_config(whole / "dolls" / "lora-co" / "seed-2" / "config.yaml").optim.lr == 5e-3
    weights = [(whole / "dolls" / "cskt" / seed / "best.safetensors").read_bytes() for seed in ("seed-1", "seed-2")]
    assert weights[0] != weights[1]


@pytest.mark.slow
def test_a_study_of_the_last_epoch_has_a_table_of_it(tiny_backbone: Path, dolls: Path, tmp_path: Path) -> None:
    arms = [ARMS[0], ARMS[1], {"label": "CSKT, noise", "recipe": "cskt", "set": {"data.noise_rate": 0.5}}]
    file = write(tmp_path, tiny_backbone, {"last_epoch": True, "arms": arms, "seeds": [1]})
    output = tmp_path / "found"
    assert study(file, dolls, output).code == 0
    best, last = table_of(output), table_of(output, "dolls-last-epoch")
    assert [row["label"] for row in best] == [row["label"] for row in last] == [arm["label"] for arm in arms]
    assert best[0] == last[0], "nothing trains"
    for row, folder in zip(last[1:], ("cskt", "cskt-noise"), strict=True):
        run = output / "dolls" / folder / "seed-1"
        (kept,) = find_results(run / "last-epoch")
        assert row["r1"] == pytest.approx(kept.metrics["t2i"]["r1"]) and kept.note == "last epoch"
        assert kept.facts.weights_sha256 == sha256_of(run / "last.safetensors")
        assert read_events(run)[-1]["last_epoch"] == 2
    before = work_of(output)
    assert study(file, dolls, output).code == 0 and work_of(output) == before, "nothing is tested twice"
    (output / "dolls" / "cskt" / "seed-1" / "last-epoch").rename(tmp_path / "gone")
    assert "missing" in study(file, dolls, output, "--plan").out
    assert study(file, dolls, output).code == 0
    assert [row["r1"] for row in table_of(output, "dolls-last-epoch")] == [row["r1"] for row in last]


def test_a_second_call_does_nothing_again(whole: Path, file: Path, dolls: Path) -> None:
    before = work_of(whole)
    again = study(file, dolls, whole)
    assert (again.code, work_of(whole)) == (0, before)
    assert "CSKT" in again.out and f"written: {whole / 'dolls'} (.md, .tex, .csv, .json)" in again.out
    for suffix in SUFFIXES:
        (whole / f"dolls.{suffix}").unlink()
    assert study(file, dolls, whole, "--table").code == 0
    assert len(table_of(whole)) == 3 and work_of(whole) == before


def test_weights_are_read_once_however_often_their_results_are_asked_for(
    whole: Path, file: Path, dolls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, read = Path(shutil.copytree(whole, tmp_path / "copy")), []

    def counted(path: Path) -> str:
        read.append(path.parent.relative_to(copy / "dolls").as_posix())
        return sha256_of(path)

    monkeypatch.setattr("cskt.cli.run_results.sha256_of", counted)
    assert study(file, dolls, copy).code == 0 and sorted(read) == sorted(FOLDERS)
    shutil.copy(copy / "dolls" / "cskt" / "seed-1" / "best.safetensors", copy / "dolls" / "cskt" / "seed-2")
    assert "missing" in study(file, dolls, copy, "--plan").out, "other weights are seen all the same"
    assert len(read) == len(FOLDERS) + 1


def test_plan(whole: Path, file: Path, dolls: Path, tmp_path: Path) -> None:
    before = contents(whole)
    planned = study(file, dolls, whole, "--plan --seeds 1,3").out.splitlines()
    assert planned == [
        *(f"done    {whole}/dolls/{name}" for name in FOLDERS[:3]),
        f"missing {whole}/dolls/cskt/seed-3",
        f"missing {whole}/dolls/lora-co/seed-3",
    ]
    assert contents(whole) == before
    fresh = study(file, dolls, tmp_path / "none", "--plan")
    assert fresh.out.count("missing") == 5 and not (tmp_path / "none").exists()


def test_a_table_of_the_finished_runs(whole: Path, file: Path, dolls: Path) -> None:
    before = work_of(whole)
    part = study(file, dolls, whole, "--table --seeds 1,2,3")
    assert part.code == 1 and "2 of 7 runs are missing" in part.out and work_of(whole) == before
    goes_on = part.out.splitlines()[-1].split(" study ")[1]
    assert goes_on == f"{file} --root {dolls} --output {whole} --table --seeds 1,2,3"
    assert [row["seeds"] for row in table_of(whole)] == ["1", "1 2", "1 2"]


@pytest.mark.slow
def test_other_seeds_data_sets_and_config_keys(file: Path, root: Path, tmp_path: Path) -> None:
    more = "--seeds 5 --datasets rstpreid --set loop.num_epochs=1 optim.lr=1e-3"
    assert study(file, root, tmp_path, more).code == 0
    assert {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("best.safetensors")} == {
        f"rstpreid/{name}/seed-5" for name in ("clip-zero-shot", "cskt", "lora-co")
    }
    config = load_config(tmp_path / "rstpreid" / "lora-co" / "seed-5" / "config.yaml")
    assert (config.loop.num_epochs, config.optim.lr, config.data.dataset) == (1, 1e-3, "rstpreid")
    assert [row["seeds"] for row in table_of(tmp_path, "rstpreid")] == ["5"] * 3


def test_runs_of_another_config_are_in_no_table(whole: Path, file: Path, dolls: Path) -> None:
    """A study whose file has changed since, or other --set: finished runs are not what is asked for."""
    before = contents(whole)
    for more in ("--set loop.num_epochs=1", "--set loop.num_epochs=1 --table", "--set loop.num_epochs=1 --plan"):
        refusal = study(file, dolls, whole, more).refusal()
        assert refusal.startswith(f"{whole}/dolls/") and "(loop.num_epochs: 2 -> 1); name another folder" in refusal
    assert contents(whole) == before


@pytest.mark.slow
def test_tested_on_every_data_set(tiny_backbone: Path, tmp_path: Path) -> None:
    """Two data sets of one format are two domains all the same."""
    for place in ("source", "target"):
        done(f"cskt data make {tmp_path}/{place} --layout jsonl --train-ids 8 --val-ids 3 --test-ids 4"
             f" --images-per-id 2 --seed {len(place)} --domain {place}")  # fmt: skip
    output = tmp_path / "out"
    file = write(
        tmp_path, tiny_backbone,
        {"test_on": "all", "seeds": [1], "arms": ARMS[:2], "datasets": [
            {"name": place, "dataset": "jsonl", "root": place} for place in ("source", "target")
        ]},
    )  # fmt: skip
    assert study(file, tmp_path, output, "--table").code == 1, "nothing is there, and that is no error"
    assert study(file, tmp_path, output).code == 0
    cells = json.loads((output / "matrix.json").read_text())["cells"]
    assert [(cell["label"], cell["trained_on"], cell["tested_on"], cell["in_domain"]) for cell in cells] == [
        ("CLIP zero-shot", None, "source", False), ("CLIP zero-shot", None, "target", False),
        ("CSKT", "source", "source", True), ("CSKT", "source", "target", False),
        ("CSKT", "target", "source", False), ("CSKT", "target", "target", True),
    ]  # fmt: skip
    tables = {path.stem for path in output.glob("*.md")}
    assert tables == {"matrix", "source", "source-on-target", "target-on-source", "target"}
    (crossed,) = (row for row in table_of(output, "source-on-target") if row["label"] == "CSKT")
    assert crossed["r1"] == cells[3]["r1"]
    before = work_of(output)
    assert study(file, tmp_path, output).code == 0 and work_of(output) == before


# --- interruption and company

SLOWED = """
import pathlib, sys, time
from cskt.cli.main import main
from cskt.training.run_folder import RunFolder

folder, step = pathlib.Path(sys.argv[1]), int(sys.argv[2])
record = RunFolder.record

def record_and_wait(self, event, **values):
    record(self, event, **values)
    if self.path == folder and event == "step" and values["step"] == step:
        time.sleep(600)

RunFolder.record = record_and_wait
main(sys.argv[3:])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_shared_by_two_processes_and_killed(whole: Path, file: Path, dolls: Path, tmp_path: Path) -> None:
    """One process is held in its second run, after the first epoch; another does the rest; the first is killed."""
    output, held = tmp_path / "out", tmp_path / "out" / "dolls" / "cskt" / "seed-1"
    command = f"cskt study {file} --root {dolls} --output {output}"
    with subprocess.Popen(
        [sys.executable, "-c", SLOWED, str(held), "4", *words_of(command)[1:]],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            while [event["event"] for event in read_events(held)].count("step") < 4:
                assert process.poll() is None, process.stderr and process.stderr.read().decode()
                time.sleep(0.05)
            first = work_of(output)
            assert {path.parts[1] for path in first} == {"clip-zero-shot", "cskt"}

            company = typed(command)
            assert company.code == 1 and "1 of 5 runs are missing or in progress elsewhere" in company.out
            assert [row["seeds"] for row in table_of(output)] == ["1", "2", "1 2"]
            shared = work_of(output)
            assert {path: shared[path] for path in first} == first, "what the other has done or is at is left alone"
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (held / "last.pt").exists() and not list((held / "evaluations").glob("*"))

    assert typed(command).code == 0
    ended = work_of(output)
    others = {path: written for path, written in shared.items() if path.parts[1:3] != ("cskt", "seed-1")}
    assert {path: ended[path] for path in others} == others, "nothing done is done again"
    starts = [event for event in read_events(held) if event["event"] == "start"]
    assert len(starts) == 1, "resumed, not started again"
    for name in FOLDERS:
        ours, theirs = (folder / "dolls" / name / "best.safetensors" for folder in (output, whole))
        assert ours.read_bytes() == theirs.read_bytes(), name
    for row, expected in zip(table_of(output), table_of(whole), strict=True):
        timeless = {key for key in row if "second" not in key and "bytes" not in key}
        assert {key: row[key] for key in timeless} == {key: expected[key] for key in timeless}


# --- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [*ARMS, {"label": "wrong", "recipe": "cskt", "set": {"optim.lrr": 1}}]},
         "study 'Two methods and none', arm 'wrong': overrides: unknown key 'optim.lrr': did you mean 'optim.lr'?"),
        ({"arms": [*ARMS, {"label": "wrong", "recipe": "cskkt"}]}, "arm 'wrong': unknown recipe 'cskkt'"),
        ({"arms": [*ARMS, {"label": "wrong", "recipe": "cskt", "sett": {}}]}, "arms[4]: unknown key 'sett'"),
        ({"datasets": [{"name": "dolls", "dataset": "cuhk-pedes"}, {"name": "b", "dataset": "jsonl"}]}, "hold jsonl"),
    ],
)  # fmt: skip
def test_nothing_is_trained_where_an_arm_is_wrong(
    changes: dict[str, Any], message: str, tiny_backbone: Path, dolls: Path, tmp_path: Path
) -> None:
    assert message in study(write(tmp_path, tiny_backbone, changes), dolls, tmp_path / "out").refusal()
    assert not (tmp_path / "out").exists()


def test_an_arm_that_fails_is_named(tiny_backbone: Path, dolls: Path, tmp_path: Path) -> None:
    """Twelve blocks of prompts do not fit towers of two; which only the weights show."""
    arms = [{"label": "deep", "recipe": "cskt", "set": {"prompts.depth": 12}}]
    file = write(tmp_path, tiny_backbone, {"arms": arms, "baseline": "deep"})
    assert study(file, dolls, tmp_path / "out").refusal().startswith("arm 'deep', seed 1 on dolls: ")


def test_unknown_studies_and_flags(dolls: Path, file: Path, tmp_path: Path) -> None:
    assert typed(f"cskt study methds --root {dolls}").refusal() == "unknown study 'methds': did you mean 'methods'?"
    assert "no such folder" in study(file, tmp_path / "none", tmp_path / "out").refusal()
    assert "--set optim.lr: give KEY=VALUE" in study(file, dolls, tmp_path / "out", "--set optim.lr").refusal()
    assert "did you mean 'rstpreid'?" in study(file, dolls, tmp_path / "out", "--datasets rstpried").refusal()


# --- several seeds of one recipe


@pytest.fixture(scope="module")
def seeds(train_command: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """The command of two seeds, their folder, and what it printed."""
    folder = tmp_path_factory.mktemp("seeds") / "cskt"
    command = f"{train_command} --num-epochs 1 --output {folder}"
    return command, folder, done(f"{command} --seeds 1,2")


def test_one_folder_per_seed_with_mean_and_deviation(seeds: tuple[str, Path, str]) -> None:
    _, folder, out = seeds
    assert sorted(path.name for path in folder.iterdir()) == ["seed-1", "seed-2"]
    ends = [read_events(folder / name)[-1] for name in ("seed-1", "seed-2")]
    assert [load_config(folder / name / "config.yaml").seed for name in ("seed-1", "seed-2")] == [1, 2]
    r1 = [100 * end["best_r1"] for end in ends]
    mean, deviation = sum(r1) / 2, abs(r1[0] - r1[1]) / 2**0.5
    assert f"mean of 2 seeds: R1 {mean:.2f} ± {deviation:.2f} (standard deviation), selected on val" in out
    assert f"seed 2: epoch 1, R1 {r1[1]:.2f} ({folder / 'seed-2'})" in out
    assert all((folder / name / "report.html").is_file() for name in ("seed-1", "seed-2"))


@pytest.mark.slow
def test_only_missing_seeds_are_trained(seeds: tuple[str, Path, str], caplog: pytest.LogCaptureFixture) -> None:
    command, folder, out = seeds

    def trained() -> dict[Path, int]:
        names = ("best.safetensors", "last.pt", "metrics.jsonl")
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in names}

    before = trained()
    assert done(f"{command} --seeds 1,2") == out
    assert trained() == before
    caplog.set_level(logging.INFO)
    more = done(f"{command} --seeds 1,2,3")
    assert [message for message in caplog.messages if message.startswith("run folder")] == [
        message for message in caplog.messages if f"{folder}/seed-3 " in message
    ]
    assert {path: written for path, written in trained().items() if path.parent.name != "seed-3"} == before
    assert "mean of 3 seeds" in more and (folder / "seed-3" / "best.safetensors").is_file()
    with claimed_elsewhere(folder / "seed-2"):
        busy = typed(f"{command} --seeds 1,2,3")
    assert busy.code == 1 and "seed 2: another process is training it" in busy.out and "mean of 2 seeds" in busy.out


def test_seeds_are_evaluated_and_compared_as_one_method(
    seeds: tuple[str, Path, str], run: Path, root: Path, tmp_path: Path
) -> None:
    _, folder, out = seeds
    command = out.splitlines()[-1].removeprefix("next: ")
    assert words_of(command)[-4:] == ["evaluate", str(folder), "--root", str(root)]
    found = typed(f"{command} --json").json()
    kept = [find_results(path)[0] for path in sorted(folder.iterdir())]
    assert [one["model"] for one in found["seeds"]] == [str(path) for path in sorted(folder.iterdir())]
    for direction in ("t2i", "i2t"):
        assert [one[direction] for one in found["seeds"]] == [one.metrics[direction] for one in kept]
        for metric in ("r1", "r5", "r10", "mean_ap", "mean_inp"):
            values = [one.metrics[direction][metric] for one in kept]
            mean = sum(values) / len(values)
            assert found["mean"][direction][metric] == pytest.approx(mean)
            deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
            assert found["deviation"][direction][metric] == pytest.approx(deviation)

    table = done(f"{command} --output {tmp_path} --label mine")
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0].startswith("mine, text to image on cuhk-pedes test")
    for one in kept:
        assert any(line.startswith(f"seed {one.seed} {100 * one.metrics['t2i']['r1']:.2f} ") for line in lines)
    for name, key in ((f"mean of {len(kept)}", "mean"), ("± (standard deviation)", "deviation")):
        assert any(line.startswith(f"{name} {100 * found[key]['t2i']['r1']:.2f} ") for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in folder.iterdir()}
    assert {find_results(path)[0].label for path in tmp_path.iterdir()} == {"mine"}

    done(f"cskt evaluate {run}")
    rows = typed(f"cskt compare {folder} {run} --format json").json()["rows"]
    assert [row["num_seeds"] for row in rows] == [len(kept), 1]
    assert rows[0]["r1"] == pytest.approx(found["mean"]["t2i"]["r1"])
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluations")))
    (copy / "seed-9").mkdir()
    assert typed(f"cskt evaluate {copy}").refusal().startswith(f"{copy / 'seed-9'}: ")
    assert not list(copy.rglob("evaluations")), "refused before the others are evaluated"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seeds 1,1", "--seeds 1,1: give distinct whole numbers joined by commas, as in --seeds 1,2,3"),
        ("--seeds 1,x", "--seeds 1,x: give distinct whole numbers joined by commas, as in --seeds 1,2,3"),
        ("--seeds 1 --resume run", "--seeds continues unfinished runs by itself; leave out --resume"),
        ("--seeds 2 --lr 5e-3", "holds a run with another config (optim.lr: 0.01 -> 0.005); name another folder"),
    ],
)
def test_invalid_seeds_are_refused(words: str, message: str, seeds: tuple[str, Path, str]) -> None:
    command, _, _ = seeds
    assert typed(f"{command} {words}").refusal().endswith(message)
