"""The way of a user through `cskt`: data, training, evaluation, questions, export."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import done, in_new_process, typed
from PIL import Image
from safetensors import safe_open

import cskt
from cskt.cli.main import COMMANDS
from cskt.cli.parsing import command_line, config_value
from cskt.config import load_config
from cskt.embed import Encoder
from cskt.evaluation.evaluate import split_of
from cskt.evaluation.results import EVALUATIONS
from cskt.training import loop, trainer

METRICS = {"r1", "r5", "r10", "mean_ap", "mean_inp", "num_queries", "num_gallery", "num_unmatched_queries"}


def events_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same_state(run: Path, other: Path) -> None:
    """Two runs have come to the same parameters and the same state of the optimiser, bit for bit."""
    one, two = (torch.load(folder / "last.pt") for folder in (run, other))
    for part in ("model", "objective", "optimizer"):
        torch.testing.assert_close(one[part], two[part], rtol=0, atol=0)
    assert one["progress"]["best_r1"] == two["progress"]["best_r1"]


# --- help and version


def test_version_and_usage(tmp_path: Path) -> None:
    assert done("cskt --version") == f"cskt {cskt.__version__}\n"
    usage = done("cskt --help")
    assert all(f"  {command} " in usage for command in COMMANDS)
    fresh = in_new_process("cskt --version", tmp_path)
    assert fresh == (0, f"cskt {cskt.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    text = done(f"cskt {command} --help")
    assert text.startswith(f"usage: cskt {command}")
    assert "--" in text


def test_help_of_train_lists_every_config_key_with_its_default() -> None:
    text = " ".join(done("cskt train --help").split())
    assert "--optim.lr VALUE, --lr VALUE Base learning rate. (default: 0.0003)" in text
    assert "--data.batch-size VALUE, --batch-size VALUE" in text
    assert "--image-height VALUE Height that images are resized to, in pixels;" in text
    assert "(recipe cskt: 384; default: none)" in text and "(default: 0.02,0.4)" in text


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.clip_grad_norm", "none", None),
        ("optim.clip_grad_norm", "0.5", 0.5),
        ("backbone.image_height", "null", None),
        ("prompts.directions", "none", "none"),
        ("augment.erase_area", "0.02,0.4", [0.02, 0.4]),
        ("augment.erase_area", "[0.02, 0.4]", [0.02, 0.4]),
        ("optim.milestones", "10,20", [10, 20]),
        ("optim.milestones", "10", [10]),
        ("name", "none", "none"),
    ],
)
def test_values_of_flags(key: str, text: str, value: Any) -> None:
    assert config_value(key, text) == value
    load_config("cskt", {key: value})


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_a_closed_pipe_ends_the_help_without_a_message(words: list[str]) -> None:
    command = [sys.executable, "-m", "cskt", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["accelerator", "torch", "Python"],
)
def test_full_memory(run: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(loop, "prepare", fail)
        refusal = typed(f"cskt train --output {tmp_path / 'new'}").refusal()
        assert refusal == (
            "out of memory: use --fit, a smaller --batch-size, --precision bf16 or --checkpoint-activations"
        )
        assert "--checkpoint_activations" in typed("python train.py").refusal()
    monkeypatch.setattr(Encoder, "encode_image", fail)
    refusal = typed(f"cskt evaluate {run}").refusal()
    assert refusal == "out of memory: use a smaller --batch-size or --precision bf16"


def test_other_failures_are_not_taken_for_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes [2] and [3] do not match")

    monkeypatch.setattr(loop, "prepare", fail)
    assert "shapes [2] and [3]" in typed("cskt train").bug()


def test_commands_to_type_next_where_nothing_is_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    python = tmp_path / "my env" / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    assert command_line("evaluate", "a run") == f"'{python}' -m cskt evaluate 'a run'"
    monkeypatch.chdir(tmp_path)
    assert command_line("evaluate") == "'my env/bin/python' -m cskt evaluate"
    installed = tmp_path / "cskt"
    installed.touch(mode=0o755)
    assert command_line("query", Path("run"), 'a "red" coat') == "cskt query run 'a \"red\" coat'"


# --- data


def test_make_then_check(tmp_path: Path) -> None:
    made = done(f"cskt data make {tmp_path} --layout rstpreid --train-ids 3 --val-ids 2 --test-ids 2 --masks")
    assert made == f"{tmp_path / 'RSTPReid'}\n"
    assert len(list((tmp_path / "RSTPReid" / "masks").rglob("*.png"))) == 28
    table = done(f"cskt data check {tmp_path}")
    assert "3701" in table and "warning" in table and "error" not in table
    (report,) = typed(f"cskt data check {tmp_path} --json").json()
    assert report["dataset"] == "rstpreid" and report["errors"] == []
    assert [(split["name"], split["counts"]) for split in report["splits"]] == [
        ("train", [3, 12, 24]), ("val", [2, 8, 16]), ("test", [2, 8, 16]),
    ]  # fmt: skip


def test_check_finds_every_data_set_under_a_root(root: Path, own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = typed(f"cskt data check {root} --no-decode --json").json()
    assert [report["dataset"] for report in reports] == ["cuhk-pedes", "icfg-pedes", "rstpreid"]
    (one,) = typed(f"cskt data check {root} --dataset ICFG_PEDES --no-decode --json").json()
    assert one["dataset"] == "icfg-pedes"
    monkeypatch.chdir(root / "RSTPReid")
    (here,) = typed("cskt data check . --no-decode --json").json()
    assert (here["dataset"], here["errors"]) == ("rstpreid", [])
    (own,) = typed(f"cskt data check {own_data} --json").json()
    assert (own["dataset"], own["errors"], own["warnings"]) == ("jsonl", [], [])


def test_check_ends_with_1_where_something_is_wrong(root: Path, tmp_path: Path) -> None:
    # brackets in the path: what prints the table must not take them for its own markup
    copy = Path(shutil.copytree(root / "CUHK-PEDES", tmp_path / "[/b]" / "CUHK-PEDES"))
    images = sorted((copy / "imgs").rglob("*.jpg"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:-200])
    annotation = copy / "reid_raw.json"
    records = json.loads(annotation.read_text())
    records[-1]["id"] = records[0]["id"]
    annotation.write_text(json.dumps(records))
    outcome = typed(f"cskt data check {copy}")
    assert (outcome.code, outcome.err) == (1, "")
    assert f"train: missing images: 1 of 16 ({images[0]})" in outcome.out
    assert f"train: corrupt images: 1 of 16 ({images[1]}: corrupt image" in outcome.out
    assert "identities in both train and test: 1" in outcome.out
    as_json = typed(f"cskt data check {copy} --json")
    assert as_json.code == 1
    assert len(json.loads(as_json.out)[0]["errors"]) == 3


# --- training


def test_run_folder_is_complete(run: Path, tiny_backbone: Path) -> None:
    assert {path.name for path in run.iterdir()} - {EVALUATIONS} == {
        "config.yaml", "configs.yaml", "best.safetensors", "last.pt", "last.previous.pt", "metrics.jsonl",
        "tensorboard", "report.html", ".lock",
    }  # fmt: skip
    assert any((run / "tensorboard").iterdir())
    modes = {path.stat().st_mode for path in run.iterdir() if path.is_file()}
    assert len(modes) == 1, "config and weights have the same rights"
    config = load_config(run / "config.yaml")
    assert (config.prompts.depth, config.data.batch_size, config.optim.lr) == (2, 8, 0.01)
    flat = yaml.safe_load((run / "configs.yaml").read_text())
    assert (flat["dataset_name"], flat["depth"], flat["img_size"]) == ("CUHK-PEDES", 2, [32, 16])
    with safe_open(run / "best.safetensors", framework="pt") as weights:
        names = set(weights.keys())
        origin = json.loads(weights.metadata()["cskt"])
    assert names and all(name.startswith(("prompts.", "adapters.")) for name in names)
    assert (origin["backbone_name"], origin["backbone_sha256"]) == (str(tiny_backbone), digest(tiny_backbone))
    report = (run / "report.html").read_text()
    assert "selected on val" in report and "CLIP zero-shot" in report and "image/svg+xml" in report


def test_zero_shot_and_step_0_are_two_figures(run: Path, tiny_backbone: Path, root: Path) -> None:
    stages = {event["stage"]: event for event in events_of(run) if event["event"] == "evaluation"}
    assert list(stages) == ["zero-shot", "step-0", "epoch"]
    assert all(event["split"] == "val" and event["t2i"].keys() == METRICS for event in stages.values())
    assert stages["zero-shot"]["t2i"] != stages["step-0"]["t2i"], "prompt slots alone move the features"
    plain = typed(f"cskt evaluate {tiny_backbone} --dataset cuhk-pedes --root {root} --split val --json").json()
    assert stages["zero-shot"]["t2i"] == plain["t2i"]


def test_recipe_of_ones_own_and_both_spellings(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"name: mine\nbackbone: {{name: {tiny_backbone}, image_height: 32, image_width: 16}}\n"
        "prompts: {directions: none}\nadapters: {sides: vision}\nloss: {weights: {sdm: 1, id: 0.5}}\n"
        "data: {batch_size: 8, num_workers: 0}\nloop: {num_epochs: 5}\n"
    )
    out = done(
        f"cskt train --config {recipe} --data.root={root} --loop.num_epochs 1 --eval-batch-size 5 --warmup_epochs=0"
        f" --loss.weights '{{itc: 1, triplet: 0.5}}' --device cpu --output-dir {tmp_path} --name 2024-11-23"
    )
    (folder,) = (tmp_path / "cuhk-pedes").iterdir()
    assert f"run: {folder}\n" in out and folder.name.endswith("_2024-11-23")
    config = load_config(folder / "config.yaml")
    assert config.loss.weights == {"itc": 1.0, "triplet": 0.5}, "weights are replaced whole"
    assert (config.loop.num_epochs, config.data.eval_batch_size, config.adapters.sides) == (1, 5, "vision")
    steps = [event for event in events_of(folder) if event["event"] == "step"]
    assert steps[-1]["losses"].keys() == {"itc", "triplet"}


def test_interrupted_and_resumed_equals_uninterrupted(
    train_command: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    save_last = trainer.save_last

    def save_and_press_ctrl_c(*words: Any) -> None:
        save_last(*words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_last", save_and_press_ctrl_c)
        stopped = typed(f"{train_command} --output {folder}")
    assert (stopped.code, stopped.err) == (130, "cskt train: interrupted\n")
    assert "end" not in {event["event"] for event in events_of(folder)}
    again = typed(f"{train_command} --output {folder}").refusal()
    assert f"--resume {folder}" in again, "a second start says how to resume and overwrites nothing"

    done(f"cskt train --resume {folder}")
    assert digest(folder / "best.safetensors") == digest(run / "best.safetensors")
    assert_same_state(folder, run)
    resumed, whole = events_of(folder), events_of(run)
    assert [event["event"] for event in resumed] == [event["event"] for event in whole]
    losses, expected = ([event["loss"] for event in events if event["event"] == "step"] for events in (resumed, whole))
    assert losses == expected


@pytest.mark.slow
def test_results_on_stdout_and_progress_on_stderr(train_command: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trained = in_new_process(f"{train_command} --output {folder}", tmp_path)
    assert trained.code == 0, trained.err
    assert [line.split(":")[0] for line in trained.out.splitlines()] == ["best", "run", "report", "next"]
    # The best epoch over random weights may be no better than zero-shot, which the run then says after the last.
    message = [line.split(":")[0] for line in trained.err.splitlines() if not line.startswith("no epoch is better")]
    assert message[-4:] == ["zero-shot", "step-0", "epoch 1", "epoch 2"]
    following = trained.out.splitlines()[-1].removeprefix("next: ")
    evaluated = in_new_process(f"{following} --json", tmp_path)
    assert re.fullmatch(r"per-query results: \S+\.json\n", evaluated.err)
    assert evaluated.json()["t2i"].keys() == METRICS


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_progress_bar_at_a_terminal(train_command: str, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", *shlex.split(train_command), "--output", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=theirs, encoding="utf-8") as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal whose other end is closed cannot be read
            while part := os.read(ours, 4096):
                shown += part
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    screen = shown.decode()
    assert "training" in screen and "8/8" in screen and "left" in screen and "epoch 2/2, loss" in screen
    assert [line.split(":")[0] for line in out.splitlines()] == ["best", "run", "report", "next"]


# --- evaluation


def test_evaluate_as_table_and_as_json(run: Path) -> None:
    result = typed(f"cskt evaluate {run} --json").json()
    assert (result["model"], result["dataset"], result["split"]) == (str(run), "cuhk-pedes", "test")
    assert (result["t2i"]["num_queries"], result["t2i"]["num_gallery"]) == (24, 12)
    assert (result["i2t"]["num_queries"], result["i2t"]["num_gallery"]) == (12, 24)
    table = done(f"cskt evaluate {run}")
    assert all(heading in table for heading in ("R1", "R5", "R10", "mAP", "mINP"))
    for direction, label in (("t2i", "text to image"), ("i2t", "image to text")):
        (line,) = (line for line in table.splitlines() if label in line)
        figures = [f"{100 * result[direction][name]:.2f}" for name in ("r1", "r5", "r10", "mean_ap", "mean_inp")]
        assert line.split() == [*label.split(), *figures]


def test_evaluate_on_other_data_than_it_was_trained_on(run: Path, root: Path, own_data: Path) -> None:
    other = typed(f"cskt evaluate {run} --dataset rstpreid --root {root} --json").json()
    assert (other["dataset"], other["t2i"]["num_gallery"]) == ("rstpreid", 12)
    own = typed(f"cskt evaluate {run} --dataset jsonl --root {own_data} --split val --json").json()
    assert (own["dataset"], own["split"], own["t2i"]["num_gallery"]) == ("jsonl", "val", 8)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_people_held_out_to_select_on(train_command: str, tmp_path: Path, precision: str) -> None:
    folder = tmp_path / "run"
    done(f"{train_command} --dataset icfg-pedes --holdout-fraction 0.5 --precision {precision} --output {folder}")
    events = events_of(folder)
    selected = max(
        (event for event in events if event["event"] == "evaluation" and event["stage"] == "epoch"),
        key=lambda event: event["t2i"]["r1"],
    )
    val = typed(f"cskt evaluate {folder} --split val --json").json()
    assert (val["t2i"], val["i2t"]) == (selected["t2i"], selected["i2t"])
    other = "fp32" if precision == "bf16" else "bf16"
    assert typed(f"cskt evaluate {folder} --split val --precision {other} --json").json()["split"] == "val"

    rest = typed(f"cskt evaluate {folder} --split train --json").json()
    assert rest["t2i"]["num_queries"] == events[0]["train_pairs"]
    config = load_config(folder / "config.yaml")
    people = {split: set(split_of(str(folder), None, None, split).image_pids) for split in ("train", "val")}
    assert people["train"].isdisjoint(people["val"]) and len(people["val"]) == 6
    own_way = split_of(str(folder), "ICFG-PEDES", config.data.root, "val")
    assert set(own_way.image_pids) == people["val"]


def test_a_run_without_held_out_identities_has_no_val_split(train_command: str, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done(f"{train_command} --dataset icfg-pedes --select-on test --output {folder}")
    for command in (f"cskt evaluate {folder}", f"cskt evaluate {run} --dataset icfg-pedes"):
        assert "no split 'val'; it has train, test" in typed(f"{command} --split val").refusal()


def test_size_of_images_of_plain_weights(tiny_backbone: Path, root: Path) -> None:
    command = f"cskt evaluate {tiny_backbone} --dataset cuhk-pedes --root {root} --json"
    usual = typed(command).json()
    assert typed(f"{command} --image-height 32 --image-width 16 --stride 8").json() == usual
    assert typed(f"{command} --image-height 64 --image-width 32").json()["t2i"] != usual["t2i"]


def test_nothing_but_the_figures_depends_on_how_it_is_computed(run: Path) -> None:
    usual = typed(f"cskt evaluate {run} --json").json()
    other = typed(f"cskt evaluate {run} --json --batch-size 5 --num_workers 0 --device cpu").json()
    assert other == usual
    assert typed(f"cskt evaluate {run} --precision bf16 --json").json()["t2i"].keys() == METRICS


def test_selected_on_test_is_said_everywhere(train_command: str, root: Path, tmp_path: Path) -> None:
    folder, merged = tmp_path / "run", tmp_path / "merged.safetensors"
    assert "selected on test" in done(f"{train_command} --select-on test --output {folder}")
    done(f"cskt export {folder} --merge {merged}")
    for model in (folder, merged, folder / "best.safetensors"):
        assert "selected on test" in done(f"cskt evaluate {model}")
        other = typed(f"cskt evaluate {model} --dataset rstpreid --root {root} --split val --json").json()
        assert other["note"] == "selected on test"
    assert "selected on test" in done(f"python test.py --config_file {folder}/configs.yaml")
    assert "selected on test" in (folder / "report.html").read_text()
    assert yaml.safe_load((folder / "configs.yaml").read_text())["val_dataset"] == "test"
    assert {event["split"] for event in events_of(folder) if event["event"] == "evaluation"} == {"test"}


# --- questions


def test_query_as_json(run: Path) -> None:
    command = f"cskt query {run} 'a woman in a red coat' 'a man with a bag' -k 3"
    first, second = typed(f"{command} --json").json()
    assert (first["query"], second["query"]) == ("a woman in a red coat", "a man with a bag")
    for found in (first, second):
        scores = [hit["score"] for hit in found["hits"]]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
        assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
        assert all(Path(hit["image_id"]).is_file() and "pid" in hit["metadata"] for hit in found["hits"])
    assert "attributes" in first["hits"][0]["metadata"]
    table = done(f"{command} --split val")
    assert "a woman in a red coat" in table and "a man with a bag" in table


def test_search_of_a_split_gives_the_answers_of_query_without_the_extra_of_galleries(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queries.txt").write_text("a man with a bag\n")
    expected = typed(f"cskt query {run} 'a woman in a red coat' 'a man with a bag' -k 10 --json").json()
    for name in [name for name in sys.modules if name.startswith("cskt.gallery")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cskt.gallery", None)  # importing it raises ImportError
    search = f"cskt search --model {run} --split test 'a woman in a red coat'"
    assert typed(f"{search} --queries {tmp_path}/queries.txt --json").json() == expected
    assert "pid" in done(f"{search} -k 1 --sheet {tmp_path}/s.png --html {tmp_path}/p.html")
    assert (tmp_path / "s.png").is_file() and "data:image/jpeg" in (tmp_path / "p.html").read_text()


def test_query_takes_any_sentence(run: Path) -> None:
    table = done(f"cskt query {run} 'a man [/b] [red]in black，<|endoftext|> 👜' -k 1")
    assert "[/b]" in table and "[red]" in table
    for command in ("query", "search --model"):
        assert "a sentence is empty" in typed(f"cskt {command} {run} ''").refusal()
        assert "holds control characters" in typed(f"cskt {command} {run} 'a\x1b[31m'").refusal()


def test_query_warns_of_cut_sentences_and_refuses_too_long_ones(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    done(f"cskt query {run} '{'a man ' * 100}' -k 1")
    assert [record.getMessage() for record in caplog.records] == [
        "the model reads 73 tokens of the sentence, which has 202; shorten it"
    ]
    reason = typed(f"cskt query {run} 'a man' '{'x' * 2001}'").refusal()
    assert reason == "a sentence of 2,001 characters; give at most 2,000"


def test_query_draws_the_crops(run: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "new folder" / "answer.png"
    done(f"cskt query {run} 'a woman in red' -k 4 --sheet '{sheet}'")
    done(f"cskt query {run} one two -k 2 --sheet '{sheet.parent}/pair.png'")
    assert {path.name for path in sheet.parent.iterdir()} == {"answer.png", "pair-1.png", "pair-2.png"}
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    (best,) = typed(f"cskt query {run} 'a woman in red' -k 1 --json").json()
    with Image.open(best["hits"][0]["image_id"]) as crop:
        colour = np.asarray(crop.convert("RGB")).reshape(-1, 3).mean(axis=0)
    left = pixels[pixels.shape[0] // 2 :, : pixels.shape[1] // 4].reshape(-1, 3)
    assert pixels.shape[0] > 256 and pixels.std() > 20, "a picture, not a blank sheet"
    assert np.abs(left[(left < 250).any(axis=1)].mean(axis=0) - colour).max() < 40, "the best crop, on the left"


# --- export


def test_merged_file_needs_nothing_beside_it(
    train_command: str, tiny_backbone: Path, root: Path, tmp_path: Path
) -> None:
    backbone, folder, merged = tmp_path / "clip.safetensors", tmp_path / "run", tmp_path / "merged.safetensors"
    shutil.copy(tiny_backbone, backbone)
    done(f"{train_command} --backbone.name {backbone} --output {folder}")
    expected = typed(f"cskt evaluate {folder} --json").json()
    assert done(f"cskt export {folder} --merge {merged}") == f"{merged}\n"
    backbone.unlink()
    shutil.rmtree(folder)
    alone = typed(f"cskt evaluate {merged} --dataset cuhk-pedes --root {root} --json").json()
    assert alone["t2i"] == expected["t2i"] and alone["i2t"] == expected["i2t"]


def test_trained_clip_becomes_a_backbone(
    train_command: str, root: Path, own_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent, child, backbone = tmp_path / "parent", tmp_path / "child", tmp_path / "mine.safetensors"
    whole = "--trainable all --prompts.directions none --adapters.sides none --lr 1e-3 --num-epochs 1"
    command = train_command.replace(f"--root {root}", f"--dataset jsonl --root {own_data}")
    done(f"{command} {whole} --output {parent}")
    done(f"cskt export {parent} --as-backbone {backbone} --half --seen-tokens")
    assert backbone.stat().st_size < 200_000, "the words of training alone, in half precision"

    caplog.set_level(logging.WARNING)
    done(f"{train_command} --backbone.name {backbone} --output {child}")
    assert "has never seen the word" in caplog.text, "street captions have rarer words than studio ones"
    figures = typed(f"cskt evaluate {child} --json").json()
    assert figures["t2i"]["num_queries"] == 24


def test_run_that_trained_everything_needs_no_backbone_file(train_command: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sizes = (
        "{embed_dim: 16, image_height: 32, image_width: 16, patch_size: 8, stride: 8, vision_width: 32,"
        " vision_layers: 1, vision_heads: 2, text_width: 32, text_layers: 1, text_heads: 2}"
    )
    done(f"{train_command} --trainable all --backbone.architecture '{sizes}' --depth 1 --output {folder}")
    assert typed(f"cskt evaluate {folder} --json").json()["split"] == "test"


def test_environment_names_versions_devices_extras_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSKT_CACHE", "/somewhere")
    facts = typed("cskt env --json").json()
    assert facts["cskt"].startswith(cskt.__version__)
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["extras"]["gallery"].startswith("lancedb ")
    assert "dev" not in facts["extras"]
    assert facts["paths"]["weights cache"] == "/somewhere"
    assert facts["variables"]["CSKT_CACHE"] == "/somewhere"
    lines = done("cskt env").splitlines()
    assert f"  torch: {torch.__version__}" in lines
