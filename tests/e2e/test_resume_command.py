"""`cskt train --resume` past a stop and at the end, and `--init-from`."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import done, typed, words_of

from cskt.cli import train as train_module
from cskt.config import load_config
from cskt.model.io.native import read_method
from cskt.training.events import read_events
from same_run import story
from tiny_run import HEIGHT, WIDTH


@pytest.fixture(scope="module")
def training(root: Path, tiny_backbone: Path) -> str:
    """A command that trains three quick epochs with an identity head."""
    return (
        f"cskt train --config cskt --root {root} --backbone.name {tiny_backbone} --image-height {HEIGHT}"
        f" --image-width {WIDTH} --prompts.depth 2 --prompts.length 2 --batch-size 8 --num-epochs 3 --num-workers 0"
        " --device cpu --evaluate-before false --loss.weights '{sdm: 1, id: 1}' --warmup-epochs 0"
    )


@pytest.fixture(scope="module")
def whole(training: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done(f"{training} --output {folder}")
    return folder


def printed_command(out: str, start: str) -> str:
    """The command behind a line that starts so."""
    (line,) = [line for line in out.splitlines() if line.startswith(start)]
    return "cskt " + line.split(" train ")[0].split("cskt")[-1].strip() + "train " + line.split(" train ", 1)[1]


def test_the_printed_command_continues_past_the_stop(training: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    out = done(f"{training} --output {folder} --stop-after-epochs 1")
    command = printed_command(out, "stopped after 1 of 3 epochs, at loop.stop_after_epochs; to continue:")
    assert words_of(command) == ["cskt", "train", "--resume", str(folder)]
    assert "finished" not in out and len([e for e in read_events(folder) if e["event"] == "evaluation"]) == 1

    out = done(command)
    assert "already" not in out and "stopped" not in out
    assert story(folder) == story(whole)
    assert load_config(folder / "config.yaml").loop.stop_after_epochs is None, "the config says how it was trained"
    ours, theirs = (read_method(one / "best.safetensors").tensors for one in (folder, whole))
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_a_later_stop_may_be_given_and_counts_the_epochs_of_the_run(training: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done(f"{training} --output {folder} --stop-after-epochs 1")
    before = (folder / "metrics.jsonl").read_bytes()
    refusal = typed(f"cskt train --resume {folder} --stop-after-epochs 1").refusal()
    assert refusal == (
        f"loop.stop_after_epochs 1: {folder} has completed 1 of 3 epochs already;"
        " name a later epoch, or leave it out to train to the end"
    )
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert "stopped after 2 of 3 epochs" in done(f"cskt train --resume {folder} --stop-after-epochs 2")
    assert load_config(folder / "config.yaml").loop.stop_after_epochs == 2
    assert "stopped" not in done(f"cskt train --resume {folder}")
    assert [e["epoch"] for e in read_events(folder) if e["event"] == "evaluation"] == [1, 2, 3]


def test_a_finished_run_prints_a_command_to_start_from_it(training: str, whole: Path, tmp_path: Path) -> None:
    before, weights = story(whole), (whole / "best.safetensors").read_bytes()
    out = done(f"cskt train --resume {whole}")
    assert out.splitlines()[0] == "already finished (3 of 3 epochs); nothing was trained"
    assert story(whole) == before and (whole / "best.safetensors").read_bytes() == weights
    command = printed_command(out, "a new run from these weights:")
    assert words_of(command)[1:] == ["train", "--config", f"{whole}/config.yaml", "--init-from", str(whole)]

    folder = tmp_path / "next"
    assert "already" not in done(f"{command} --output {folder} --num-epochs 1 --evaluate-before true")
    start = read_events(folder)[0]
    assert (start["init_from"], start["init_from_heads"]) == (str(whole), ["classifier"])
    by_stage = {e["stage"]: e["t2i"]["r1"] for e in read_events(folder) if e["event"] == "evaluation"}
    assert by_stage["step-0"] == max(e["t2i"]["r1"] for e in before if e["event"] == "evaluation")
    # The run is resumed without the other.
    assert "already finished (1 of 1 epochs)" in done(f"cskt train --resume {folder}")


def test_a_recipe_that_trains_nothing_is_reported(root: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    size = f"--image-height {HEIGHT} --image-width {WIDTH}"
    done(f"cskt train --config clip --root {root} --backbone.name {tiny_backbone} {size} --output {tmp_path}/run")
    out = done(f"cskt train --resume {tmp_path}/run")
    assert out.startswith("already finished (this recipe trains nothing)") and "--init-from" not in out


def test_init_from_is_a_flag_of_every_series(
    training: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(train_module, "run_seeds", lambda config, *_: seen.append(config.init_from) or 0)
    done(f"{training} --init-from {whole} --seeds 1,2 --output {tmp_path}")
    assert seen == [str(whole)]
    refusal = typed(f"cskt train --resume {whole} --init-from {tmp_path}").refusal()
    assert f"(init_from: None -> {tmp_path})" in refusal
