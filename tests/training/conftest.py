"""Every training test computes in one thread, and can look into the context that `train` prepares."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cskt.config import RunConfig
from cskt.training import loop
from cskt.training.context import TrainingContext, prepare
from tiny_run import Configure, quick_config


@pytest.fixture(autouse=True)
def _in_one_thread(one_thread: None) -> None:
    """Sums in the same order, for comparisons bit by bit."""


@pytest.fixture(autouse=True)
def _with_a_scale_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 scales the loss by 64 at first: 65536 overflows over this model, and its first steps would be skipped."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=64.0))


@pytest.fixture
def configure(dolls: Path, tiny_backbone: Path) -> Configure:
    """A quick recipe over the generated pedestrians, with changes."""

    def configured(changes: dict[str, Any] | None = None, recipe: str = "cskt") -> RunConfig:
        return quick_config(dolls, tiny_backbone, recipe, changes)

    return configured


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[TrainingContext]:
    """The sessions that `train` prepares from now on, oldest first."""
    seen: list[TrainingContext] = []

    def prepare_and_keep(*arguments: Any, **options: Any) -> TrainingContext:
        seen.append(prepare(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(loop, "prepare", prepare_and_keep)
    return seen
