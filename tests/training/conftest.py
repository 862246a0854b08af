"""Fixtures of training tests: one thread, quick configs, and the contexts that `train` prepares."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cskt.config import RunConfig
from cskt.training import loop
from cskt.training.context import TrainingContext, prepare
from tiny_run import Configure, quick_config


@pytest.fixture(scope="module", autouse=True)
def _one_thread_and_a_small_scale() -> Iterator[None]:
    """Sum in the same order, for comparisons bit by bit; scale fp16 losses by 64 at first.

    A scale of 65536 overflows over this model, and its first steps would be skipped.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=64.0))
        yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def configure(dolls: Path, tiny_backbone: Path) -> Configure:
    """A quick recipe over the generated pedestrians, with changes."""

    def configured(changes: dict[str, Any] | None = None, recipe: str = "cskt") -> RunConfig:
        return quick_config(dolls, tiny_backbone, recipe, changes)

    return configured


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[TrainingContext]:
    """Contexts that `train` prepares from now on, oldest first."""
    seen: list[TrainingContext] = []

    def prepare_and_keep(*arguments: Any, **options: Any) -> TrainingContext:
        seen.append(prepare(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(loop, "prepare", prepare_and_keep)
    return seen
