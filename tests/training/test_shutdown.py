"""SIGTERM is received from the start of a training, and ends it where nothing is lost.

It is sent to programs of their own: libraries that other tests load may leave a process in which no signal is safe.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cskt.config import save_config
from cskt.training.loop import train
from cskt.training.shutdown import EXIT_CODE, ShutdownSignal
from tiny_run import Configure

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")

PROGRAM = """
import os, signal, sys
from cskt.cli.main import main
from cskt.training import loop, trainer

place, *words = sys.argv[1:]

def terminated(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
    print("it continued")

module = next(one for one in (loop, trainer) if hasattr(one, place))
setattr(module, place, terminated)
sys.exit(main(words))
"""


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("prepare", "nothing was changed"),
        pytest.param(
            "_encode_split",
            "nothing is saved yet; the same command starts again ({folder} may be deleted)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_sigterm_ends_long_work_that_saves_nothing_at_once(
    configure: Configure, tmp_path: Path, place: str, message: str
) -> None:
    """While data and weights are read, and while a split is evaluated."""
    config, folder = configure({"loop.evaluate_before": True}), tmp_path / "run"
    save_config(config, tmp_path / "config.yaml")
    words = [place, "train", "--config", tmp_path / "config.yaml", "--output", folder]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, check=False, timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == EXIT_CODE == 143
    assert ended.stderr.splitlines()[-1] == f"stopped by SIGTERM; {message.format(folder=folder)}"
    assert "it continued" not in ended.stdout
    assert not (folder / "last.pt").exists()
    assert train(config, folder, resume=None).best_epoch == 1


def test_a_thread_receives_no_signal_and_changes_nothing() -> None:
    found: list[object] = []

    def work() -> None:
        with ShutdownSignal() as shutdown:
            found.extend([shutdown.received, signal.getsignal(signal.SIGTERM)])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, before]
