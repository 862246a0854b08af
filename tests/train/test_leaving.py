"""SIGTERM: heard from the first moment of a training, and obeyed where nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from cskt.train import engine
from cskt.train.engine import train
from cskt.train.leaving import EXIT_CODE, Leaving
from tiny_run import Configure

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")


def told_to_end(*_: object, **__: object) -> None:
    """Stands where something slow is done."""
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("it went on")


@pytest.mark.parametrize("place", ["prepare", "encode_shared"])
def test_what_takes_long_and_saves_nothing_is_left_there_and_then(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """While data and weights are read, and while a split is evaluated."""
    before = signal.getsignal(signal.SIGTERM)
    caplog.set_level("INFO", "cskt")
    config = configure({"loop.evaluate_before": True})
    with monkeypatch.context() as patch:
        patch.setattr(engine, place, told_to_end)
        with pytest.raises(SystemExit) as left:
            train(config, tmp_path / "run", resume=None)
    assert left.value.code == EXIT_CODE == 143
    assert caplog.messages[-1] == "stopped by SIGTERM; nothing was begun"
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "run" / "last.pt").exists()
    assert train(config, tmp_path / "run", resume=None).best_epoch == 1


def test_it_is_kept_in_mind_until_the_step_is_saved() -> None:
    with Leaving() as leaving:
        os.kill(os.getpid(), signal.SIGTERM)
        assert leaving.asked
        with pytest.raises(SystemExit), leaving.at_once():
            pytest.fail("what begins now is not begun")


def test_a_thread_hears_nothing_and_changes_nothing() -> None:
    heard: list[object] = []

    def work() -> None:
        with Leaving() as leaving:
            heard.extend([leaving.asked, signal.getsignal(signal.SIGTERM)])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False, before]
