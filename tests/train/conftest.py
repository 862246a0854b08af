"""Every training test computes in one thread, and can look into the session that `train` prepares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cskt.config import RunConfig
from cskt.train import engine
from cskt.train.setup import Session, prepare
from tiny_run import Configure, quick_config


@pytest.fixture(autouse=True)
def _in_one_thread(one_thread: None) -> None:
    """Sums in the same order, for comparisons bit by bit."""


@pytest.fixture
def configure(dolls: Path, tiny_backbone: Path) -> Configure:
    """A quick recipe over the generated pedestrians, with changes."""

    def configured(changes: dict[str, Any] | None = None, recipe: str = "cskt") -> RunConfig:
        return quick_config(dolls, tiny_backbone, recipe, changes)

    return configured


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that `train` prepares from now on, oldest first."""
    seen: list[Session] = []

    def prepare_and_keep(*arguments: Any, **options: Any) -> Session:
        seen.append(prepare(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(engine, "prepare", prepare_and_keep)
    return seen
