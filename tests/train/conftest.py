"""Every training test computes in one thread, and can look into the session that `train` prepares."""

from __future__ import annotations

import pytest

from cskt.train import engine
from cskt.train.setup import Session, prepare


@pytest.fixture(autouse=True)
def _in_one_thread(one_thread: None) -> None:
    """Sums in the same order, for comparisons bit by bit."""


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that `train` prepares from now on, oldest first."""
    seen: list[Session] = []

    def prepare_and_keep(config: object) -> Session:
        seen.append(prepare(config))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(engine, "prepare", prepare_and_keep)
    return seen
