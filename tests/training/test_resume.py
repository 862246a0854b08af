"""A run that was stopped and resumed equals one that never stopped, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_loop import with_scores

from cskt.config import RunConfig, save_config
from cskt.data.paperdoll import make_dataset
from cskt.errors import CsktError
from cskt.model.io.tensors import load_plain
from cskt.training import trainer
from cskt.training.loop import train
from cskt.training.state import TrainState
from same_run import assert_equal, assert_same_run, story
from tiny_run import quick_config, write_backbone

# 24 pairs in batches of 5: five steps an epoch, the last with four pairs. Everything that a checkpoint must carry is in
# play: moments of Adam, a classifier, the scaler of fp16, augmentation, and groups of batches in the last case.
CHANGES: dict[str, Any] = {
    "data.batch_size": 5, "loop.num_epochs": 3, "loop.save_period_steps": 3, "loop.evaluate_before": True,
    "loss.weights": {"sdm": 1.0, "id": 1.0}, "adapters.init": "normal",
}  # fmt: skip
KILLED_RUN = """
import functools, os, pathlib, signal, sys, torch
from cskt.config import load_config
from cskt.training.loop import train
from cskt.training.run_folder import RunFolder

config, folder, event_to_die_at, step = sys.argv[1:]
torch.set_num_threads(1)
torch.amp.GradScaler = functools.partial(torch.amp.GradScaler, init_scale=64.0)
record = RunFolder.record

def record_or_die(self, event, **values):
    record(self, event, **values)
    if event == event_to_die_at and values["step"] == int(step):
        os.kill(os.getpid(), signal.SIGKILL)

RunFolder.record = record_or_die
train(load_config(config), pathlib.Path(folder))
"""


@pytest.fixture(scope="module")
def config(dolls: Path, tiny_backbone: Path) -> RunConfig:
    return quick_config(dolls, tiny_backbone, "cskt", CHANGES)


@pytest.fixture(scope="module")
def uninterrupted(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `config` that never stopped."""
    return train(config, tmp_path_factory.mktemp("uninterrupted") / "run").folder


def stop_after_epoch(
    epoch: int, config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int = 0
) -> None:
    """Train until `epoch`, and `step` of the next one, are saved, and be interrupted there."""

    def save_and_stop(path: Path, state: TrainState, config: RunConfig) -> None:
        save_last(path, state, config)
        if (state.progress.epoch, state.progress.step) == (epoch, step):
            raise KeyboardInterrupt

    save_last = trainer.save_last
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "save_last", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder)


def test_stopped_at_the_end_of_an_epoch(
    config: RunConfig, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = tmp_path / "stopped"
    stop_after_epoch(2, config, stopped, monkeypatch)
    assert load_plain(stopped / "last.pt")["progress"]["epoch"] == 2
    assert story(stopped)[-1]["event"] != "end"
    train(config, stopped, resume=True)
    assert_same_run(stopped, uninterrupted)


@pytest.mark.parametrize(
    ("recipe", "changes", "place"),
    [
        ("cskt", {"optim.ema_decay": 0.9, "precision": "fp16"}, (1, 3)),
        # Batches of 5 from groups of 2; the number of steps may differ from epoch to epoch.
        ("cskt", {"data.sampler": "identity-released", "data.instances": 2, "loop.accumulate_steps": 2}, (1, 0)),
        pytest.param("cskt", {"optim.ema_decay": 0.9, "loop.accumulate_steps": 2}, (1, 0), marks=pytest.mark.slow),
        pytest.param(
            "cskt",
            {"data.captions_per_image": 2, "data.batch_size": 6, "loss.sdm_other_image": 0.3},
            (1, 3),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "lora",
            {"augment.caption_mask_probability": 0.3, "augment.caption_drop_probability": 0.2},
            (1, 3),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "irra",
            {"mlm.cmt_depth": 1, "loss.weights": {"sdm": 1.0, "id": 1.0, "mlm": 1.0}, "optim.lr": 1e-4},
            (1, 3),
            marks=pytest.mark.slow,
        ),
        # In the first epoch, while the rate and the share of the soft targets rise by step.
        pytest.param(
            "tbps-clip",
            {"loss.weights": {"nitc": 1.0, "ritc": 1.0, "citc": 0.1, "simclr": 0.4}, "optim.warmup_epochs": 1},
            (0, 3),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_stopped_with_options_on(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    recipe: str,
    changes: dict[str, Any],
    place: tuple[int, int],
) -> None:
    root, backbone = Path(config.data.root), Path(config.backbone.name)
    config = quick_config(root, backbone, recipe, CHANGES | {"loop.num_epochs": 2} | changes)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(config, whole)
    stop_after_epoch(place[0], config, stopped, monkeypatch, step=place[1])
    train(config, stopped, resume=True)
    assert_same_run(stopped, whole)


def test_the_best_score_survives(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best epoch before the stop is the best after it."""
    scores = [0.1, 0.1, 0.6, 0.4, 0.5]  # zero-shot, step 0, three epochs
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with_scores(monkeypatch, scores)
    train(config, whole)
    with_scores(monkeypatch, scores[:3])
    stop_after_epoch(1, config, stopped, monkeypatch)
    with_scores(monkeypatch, scores[3:])
    result = train(config, stopped, resume=True)
    assert (result.best_r1, result.best_epoch) == (0.6, 1)
    assert_same_run(stopped, whole)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
@pytest.mark.parametrize(
    ("changes", "event", "step", "left_at"),
    [
        # Step 9 was made and logged after the last save; it is made again.
        ({}, "step", 9, {"epoch": 1, "step": 3, "total_steps": 8}),
        # Before the first save within an epoch the run starts again from its initial weights.
        pytest.param({}, "step", 2, {"epoch": 0, "step": 0, "total_steps": 0}, marks=pytest.mark.slow),
        # The last step of the epoch was saved and its evaluation logged, but the epoch itself was not saved.
        pytest.param(
            {"loop.save_period_steps": 5},
            "evaluation",
            10,
            {"epoch": 1, "step": 5, "total_steps": 10},
            marks=pytest.mark.slow,
        ),
        # Gradients of two batches are summed: after step 8 a save is due, but the group ends with step 9.
        pytest.param(
            {"loop.accumulate_steps": 2, "precision": "fp16"},
            "step",
            9,
            {"epoch": 1, "step": 0, "total_steps": 5},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_within_an_epoch(
    config: RunConfig,
    uninterrupted: Path,
    tmp_path: Path,
    *,
    changes: dict[str, Any],
    event: str,
    step: int,
    left_at: dict[str, int],
) -> None:
    config = quick_config(Path(config.data.root), Path(config.backbone.name), "cskt", CHANGES | changes)
    whole, killed = train(config, tmp_path / "whole").folder if changes else uninterrupted, tmp_path / "killed"
    save_config(config, tmp_path / "config.yaml")
    process = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(tmp_path / "config.yaml"), str(killed), event, str(step)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    progress = load_plain(killed / "last.pt")["progress"]
    assert {name: progress[name] for name in left_at} == left_at
    assert story(killed)[-1]["step"] == step, "the log is ahead of the checkpoint"
    train(config, killed, resume=True)
    assert_same_run(killed, whole)


def test_a_run_that_stopped_as_configured_is_resumed(config: RunConfig, uninterrupted: Path, tmp_path: Path) -> None:
    whole, stopped = uninterrupted, tmp_path / "stopped"
    first = quick_config(
        Path(config.data.root), Path(config.backbone.name), "cskt", CHANGES | {"loop.stop_after_epochs": 2}
    )
    train(first, stopped)
    assert load_plain(stopped / "last.pt")["progress"]["epoch"] == 2
    train(config, stopped, resume=True)
    assert story(stopped) == story(whole)
    for part in ("model", "objective", "optimizer"):
        assert_equal(load_plain(stopped / "last.pt")[part], load_plain(whole / "last.pt")[part], part)


def test_resuming_a_finished_run_changes_nothing(config: RunConfig, tmp_path: Path) -> None:
    first = train(config, tmp_path / "run")
    before = (tmp_path / "run" / "best.safetensors").read_bytes(), story(tmp_path / "run")
    again = train(config, tmp_path / "run", resume=True)
    assert (again.best_r1, again.best_epoch) == (first.best_r1, first.best_epoch)
    assert ((tmp_path / "run" / "best.safetensors").read_bytes(), story(tmp_path / "run")) == before


def test_another_config_is_refused_and_its_keys_named(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after_epoch(1, config, tmp_path / "run", monkeypatch)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    other = quick_config(
        Path(config.data.root), Path(config.backbone.name), "cskt",
        CHANGES | {"optim.lr": 1e-3, "seed": 5, "loss.weights": {"sdm": 1.0}, "data.num_workers": 1},
    )  # fmt: skip
    with pytest.raises(CsktError) as caught:
        train(other, tmp_path / "run", resume=True)
    message = str(caught.value)
    assert "made with another config (" in message and "\n" not in message
    assert "optim.lr: 0.01 -> 0.001" in message and "seed: 1 -> 5" in message and "loss.weights: {" in message
    assert "num_workers" not in message and message.endswith("use the same or start a new run")
    assert {path: path.read_bytes() for path in before} == before


def test_settings_of_place_and_speed_may_change(
    config: RunConfig, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, moved = uninterrupted, tmp_path / "moved"
    stop_after_epoch(1, config, moved, monkeypatch)
    root, backbone = tmp_path / "elsewhere", tmp_path / "moved.safetensors"
    root.symlink_to(config.data.root)
    backbone.write_bytes(Path(config.backbone.name).read_bytes())
    free = {
        "name": "other", "output_dir": "elsewhere", "data.num_workers": 2, "data.cache_images": True,
        "data.eval_batch_size": 3, "loop.checkpoint_activations": True, "loop.save_period_steps": 0,
        "loop.log_period_steps": 7, "data.cache_dir": str(tmp_path / "pixels"),
    }  # fmt: skip
    train(quick_config(root, backbone, "cskt", CHANGES | free), moved, resume=True)
    ours, theirs = load_plain(moved / "last.pt"), load_plain(whole / "last.pt")
    for part in ("model", "objective", "optimizer"):
        assert_equal(ours[part], theirs[part], part)


def test_another_backbone_or_other_data_are_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after_epoch(1, config, tmp_path / "run", monkeypatch)
    root, backbone = Path(config.data.root), Path(config.backbone.name)
    other_backbone = quick_config(root, write_backbone(tmp_path / "other.safetensors", seed=1), "cskt", CHANGES)
    with pytest.raises(CsktError, match=r"trained over another backbone \(SHA-256 [0-9a-f]{64}\)"):
        train(other_backbone, tmp_path / "run", resume=True)
    make_dataset(tmp_path / "data", ids={"train": 7, "val": 3, "test": 1}, images_per_id=2)
    with pytest.raises(CsktError, match=r"trained on other images or captions; give the folder that holds them"):
        train(quick_config(tmp_path / "data", backbone, "cskt", CHANGES), tmp_path / "run", resume=True)


def test_nothing_to_resume_is_an_error(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(CsktError, match=r"run.last\.pt: no such file; nothing to resume"):
        train(config, tmp_path / "run", resume=True)
    with pytest.raises(CsktError, match="resume: name the folder of the run to continue"):
        train(replace(config, output_dir=str(tmp_path / "logs")), resume=True)
    missing = replace(config, init_from=str(tmp_path / "no-run"))
    with pytest.raises(CsktError, match="no-run"):
        train(missing, tmp_path / "run", resume=None)
    assert not list(tmp_path.iterdir()), "no folder is left"
