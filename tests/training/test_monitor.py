"""Collapse of SDM, steps that fp16 skips, and gradients that are not finite: warned of, counted, or refused."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cskt.config import load_config
from cskt.errors import CsktError
from cskt.losses import sdm, sdm_at_collapse
from cskt.model.io.tensors import load_plain
from cskt.training import trainer
from cskt.training.context import TrainingContext
from cskt.training.events import read_events
from cskt.training.loop import train
from cskt.training.monitor import COLLAPSE_STEPS, CollapseWatch, StepMonitor
from cskt.training.state import Progress
from tiny_run import Configure

PIDS = torch.arange(32) // 2


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


def constant_features() -> Tensor:
    return torch.ones(len(PIDS), 16)


def random_features(seed: int) -> Tensor:
    return torch.randn(len(PIDS), 16, generator=torch.Generator().manual_seed(seed))


def add_step(watch: CollapseWatch, images: Tensor, texts: Tensor, pids: Tensor = PIDS) -> None:
    watch.add(sdm(images, texts, pids).item(), pids, torch.arange(len(pids)))


def test_constant_features_warn_once_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    watch = CollapseWatch()
    for _ in range(COLLAPSE_STEPS - 1):
        add_step(watch, constant_features(), constant_features())
    assert not caplog.messages, "not before the patience is over"
    for _ in range(2 * COLLAPSE_STEPS):
        add_step(watch, constant_features(), constant_features())
    (message,) = caplog.messages
    assert message.startswith("collapse: for 100 steps all similarities have been equal (sdm 2")
    assert "Lower optim.lr, raise loss.temperature" in message and "\n" not in message


def test_equal_features_on_one_side_are_a_collapse_too(caplog: pytest.LogCaptureFixture) -> None:
    """All captions alike: each image is equally similar to every one of them."""
    watch = CollapseWatch()
    noise = 1e-5 * random_features(0)
    for _ in range(COLLAPSE_STEPS):
        add_step(watch, constant_features() + noise, constant_features())
    assert len(caplog.messages) == 1


def test_random_features_do_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    watch = CollapseWatch()
    for seed in range(3 * COLLAPSE_STEPS):
        add_step(watch, random_features(seed), random_features(seed + 1000))
    assert not caplog.messages


def test_a_single_better_step_starts_the_count_again(caplog: pytest.LogCaptureFixture) -> None:
    watch = CollapseWatch()
    for _ in range(3):
        for _ in range(COLLAPSE_STEPS - 1):
            add_step(watch, constant_features(), constant_features())
        add_step(watch, random_features(0), random_features(1))
    assert not caplog.messages


def test_batches_of_one_person_and_runs_without_sdm_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    watch, one_person = CollapseWatch(), torch.zeros(len(PIDS), dtype=torch.int64)
    for _ in range(2 * COLLAPSE_STEPS):
        add_step(watch, constant_features(), constant_features(), one_person)
        watch.add(None, PIDS, PIDS)
    assert not caplog.messages


def test_a_batch_of_one_person_does_not_end_a_collapse(caplog: pytest.LogCaptureFixture) -> None:
    watch, one_person = CollapseWatch(), torch.zeros(len(PIDS), dtype=torch.int64)
    for step in range(COLLAPSE_STEPS + COLLAPSE_STEPS // 5):
        add_step(watch, constant_features(), constant_features(), one_person if step % 10 == 9 else PIDS)
    assert len(caplog.messages) == 1


def test_the_value_at_collapse_depends_on_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    """The last batch of an epoch is smaller, and its collapsed loss another."""
    watch = CollapseWatch()
    for step in range(COLLAPSE_STEPS):
        pids = PIDS[: 5 if step % 4 == 3 else 32]
        watch.add(sdm_at_collapse(pids).item(), pids, pids)
    assert len(caplog.messages) == 1


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["event"] == "step"]


def overflowing(monkeypatch: pytest.MonkeyPatch, bad_steps: set[int], value: float = torch.inf) -> None:
    """Let a gradient be infinite in these steps of a run, counted from 1, and in no others."""
    forward_backward, num_steps = trainer.forward_backward, 0

    def add(context: TrainingContext, *rest: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        parts = forward_backward(context, *rest)
        if num_steps in bad_steps:
            next(p.grad for p in context.state.model.parameters() if p.grad is not None).view(-1)[0] = value
        return parts

    monkeypatch.setattr(trainer, "forward_backward", add)


def test_skipped_steps_are_recorded_and_warned_of(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    overflowing(monkeypatch, {2, 4, 5})
    config = configure({"precision": "fp16", "loop.num_epochs": 3})  # three steps each
    folder = train(config, tmp_path / "run").folder
    assert [event["skipped_steps"] for event in steps_of(folder)] == [0, 1, 1, 1, 2, 2, 0, 0, 0]
    warnings = [record.message for record in caplog.records if "skipped" in record.message]
    assert [message.split(" because")[0] for message in warnings] == [
        "epoch 1: 1 of 3 steps were skipped", "epoch 2: 2 of 3 steps were skipped",
    ]  # fmt: skip


def test_a_scale_that_is_too_high_at_first_does_not_end_the_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    overflowing(monkeypatch, {1, 2, 3})
    folder = train(configure({"precision": "fp16", "loop.num_epochs": 2}), tmp_path / "run").folder
    assert [event["skipped_steps"] for event in steps_of(folder)] == [1, 2, 3, 0, 0, 0]
    assert load_plain(folder / "last.pt")["progress"]["has_updated"] is True
    assert "epoch 1: 3 of 3 steps were skipped" in caplog.text


def test_an_epoch_that_overflows_without_scaling_ends_the_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=4.0))
    overflowing(monkeypatch, {4, 5, 6})
    config = configure({"precision": "fp16", "loop.num_epochs": 3})
    with pytest.raises(CsktError, match=r"^precision fp16: all 3 steps of epoch 2 were skipped .*--precision bf16"):
        train(config, tmp_path / "run")
    progress = load_plain(tmp_path / "run" / "last.pt")["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 0), "the last good checkpoint is intact"


def test_the_default_first_scale_skips_every_step_of_a_short_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As found: all of three steps skipped, and a best epoch all the same."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**16))
    with pytest.raises(CsktError, match="all 3 steps of epoch 1 were skipped"):
        train(configure({"precision": "fp16"}), tmp_path / "run")


def test_groups_of_batches_count_as_steps(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing(monkeypatch, {1, 3})  # a group of two batches, then one of one: both have a bad batch
    changes = {"precision": "fp16", "loop.accumulate_steps": 2}
    with pytest.raises(CsktError, match="all 2 steps of epoch 1 were skipped"):
        train(configure(changes), tmp_path / "run")


def test_counting_continues_in_a_resumed_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is stopped within an epoch knows, when it is resumed, what that epoch has skipped before."""
    overflowing(monkeypatch, {1, 2, 3})
    config = configure({"precision": "fp16", "loop.save_period_steps": 1})
    update = trainer.optimizer_step

    def stop(context: TrainingContext, step: int, *rest: Any) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return update(context, step, *rest)

    monkeypatch.setattr(trainer, "optimizer_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    assert load_plain(tmp_path / "run" / "last.pt")["progress"]["skipped_steps"] == 2
    monkeypatch.setattr(trainer, "optimizer_step", update)
    overflowing(monkeypatch, {1})
    with pytest.raises(CsktError, match="all 3 steps of epoch 1 were skipped"):
        train(config, tmp_path / "run", resume=True)


def test_checkpoints_without_these_counts_are_read() -> None:
    older = {"epoch": 1, "step": 0, "total_steps": 3, "best_r1": 0.5, "best_epoch": 1, "seconds": 2.0}
    assert (Progress(**older).skipped_steps, Progress(**older).batches_without_negatives) == (0, 0)


def test_an_epoch_resumed_at_its_end_is_not_refused() -> None:
    state: Any = SimpleNamespace(progress=Progress(step=3))
    StepMonitor(load_config("cskt", {"precision": "fp16"}), state, Path()).end_epoch(num_batches=3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_not_finite_ends_the_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    precision: str, value: float, clip_norm: float | None,
) -> None:  # fmt: skip
    """The loss is finite; the weights would not be after the step, and are not saved."""
    overflowing(monkeypatch, {5}, value)
    changes = {"precision": precision, "loop.num_epochs": 2, "optim.clip_grad_norm": clip_norm}
    with pytest.raises(CsktError, match=r"^a gradient is not finite at epoch 2, step 2; .*keeps the last good check"):
        train(configure(changes), tmp_path / "run")
    saved = load_plain(tmp_path / "run" / "last.pt")
    assert saved["progress"]["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def test_large_but_finite_gradients_are_no_error(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their squares overflow, so that a Euclidean norm would be infinite."""
    overflowing(monkeypatch, {1}, 1e30)
    train(configure({"optim.name": "sgd", "optim.lr": 1e-30}), tmp_path / "run")


@pytest.mark.parametrize("has_updated", [False, True])
def test_the_last_epoch_may_skip_its_steps_only_after_an_update(has_updated: bool) -> None:
    """Recorded, because a fused optimizer has a state after a step that was skipped, too."""
    progress = Progress(step=3, skipped_steps=3, has_updated=has_updated)
    state: Any = SimpleNamespace(progress=progress, scaler=SimpleNamespace(get_scale=lambda: 8.0))
    monitor = StepMonitor(load_config("cskt", {"precision": "fp16", "loop.num_epochs": 1}), state, Path())
    with nullcontext() if has_updated else pytest.raises(CsktError, match="all 3 steps of epoch 1 were skipped"):
        monitor.end_epoch(num_batches=3)
