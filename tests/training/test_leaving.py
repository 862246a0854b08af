"""SIGTERM: heard from the first moment of a training, and obeyed where nothing is lost.

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
from cskt.training.shutdown import EXIT_CODE, Leaving
from tiny_run import Configure

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")

PROGRAM = """
import os, signal, sys
from cskt.cli import cli
from cskt.training import engine

place, *words = sys.argv[1:]

def told_to_end(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
    print("it went on")

setattr(engine, place, told_to_end)
sys.exit(cli.main(words))
"""


@pytest.mark.parametrize(
    ("place", "told"),
    [("prepare", "nothing was changed"), ("encode_shared", "nothing is saved yet; to begin again, remove {folder}")],
)
def test_what_takes_long_and_saves_nothing_is_left_there_and_then(
    configure: Configure, tmp_path: Path, place: str, told: str
) -> None:
    """While data and weights are read, and while a split is evaluated."""
    config, folder = configure({"loop.evaluate_before": True}), tmp_path / "run"
    save_config(config, tmp_path / "config.yaml")
    words = [place, "train", "--config", tmp_path / "config.yaml", "--output", folder]
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == EXIT_CODE == 143
    assert ended.stderr.splitlines()[-1] == f"stopped by SIGTERM; {told.format(folder=folder)}"
    assert "it went on" not in ended.stdout
    assert not (folder / "last.pt").exists()
    assert train(config, folder, resume=None).best_epoch == 1


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
