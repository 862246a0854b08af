"""Programs that are killed: by themselves, or from outside when they report a moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

DYING = Path(__file__).with_name("dying.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def command(*words: str | Path, moment: int = 0) -> list[str]:
    """Return the command line of `dying.py`."""
    return [sys.executable, str(DYING), str(moment), *map(str, words)]


def run(*words: str | Path, moment: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `dying.py` until it ends or kills itself at a moment."""
    return subprocess.run(
        command(*words, moment=moment), check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )


def num_moments(ended: subprocess.CompletedProcess[str]) -> int:
    """Return the number of moments of a run that ended by itself."""
    assert ended.returncode in (0, 1), ended.stderr
    return ended.stdout.splitlines().count("moment")


def kill_at(moment: int, *words: str | Path) -> bool:
    """Kill `dying.py` from outside when it reports a moment, while it continues; return False if it ended before."""
    with subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            moment -= line == "moment\n"
            if moment == 0:
                process.kill()
                break
    return process.returncode == -signal.SIGKILL
