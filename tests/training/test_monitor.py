"""The watch over a collapse of SDM: silent while there is something to learn, one warning when there is not."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from cskt.losses import sdm, sdm_at_collapse
from cskt.training.monitor import COLLAPSE_STEPS, CollapseWatch

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
