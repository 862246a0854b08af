"""Programs that are killed, by themselves or from outside."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

DYING = Path(__file__).with_name("dying.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def run(*words: str | Path, moment: int = 0) -> subprocess.CompletedProcess[str]:
    """`dying.py` to its end, whichever that is."""
    command = [sys.executable, str(DYING), str(moment), *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)


def num_moments(ended: subprocess.CompletedProcess[str]) -> int:
    """Of a run that came to its end."""
    assert ended.returncode in (0, 1), ended.stderr
    return int(ended.stdout.splitlines()[-1].removeprefix("moments: "))


def kill_some_time(chance: random.Random, most_seconds: float, *words: str | Path) -> bool:
    """Kill `dying.py` within so many seconds of its start; whether it was still at work."""
    command = [sys.executable, str(DYING), "0", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        process.stdout.readline()  # imports are behind it
        time.sleep(chance.uniform(0, most_seconds))
        process.kill()
    return process.returncode == -signal.SIGKILL
