"""A `cskt` command, or a training that resumes if it can, which kills itself (-9) at a chosen moment.

    python dying.py MOMENT train CONFIG FOLDER
    python dying.py MOMENT command WORDS...

Moments are counted from 1: before and after a file is synced, renamed, linked or written as a checkpoint, an event
recorded, a step made, a split evaluated. At 0 the program is not killed. Each moment prints the line `moment`.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cskt.cli import main as cli
from cskt.config import load_config
from cskt.training import trainer
from cskt.training.run_folder import RunFolder
from cskt.training.series import train_or_resume

PLACES: list[tuple[Any, str]] = [
    (os, "fsync"), (Path, "replace"), (Path, "hardlink_to"), (torch, "save"), (RunFolder, "record"),
    (trainer, "optimizer_step"), (trainer, "evaluate"),
]  # fmt: skip


class Moments:
    """Counts moments, and kills the program at one of them."""

    def __init__(self, fatal: int) -> None:
        self._left = fatal

    def pass_by(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        print("moment", file=sys.__stdout__, flush=True)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a moment before it and one after it."""

        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            self.pass_by()
            result = function(*arguments, **named)
            self.pass_by()
            return result

        return called


def main(fatal: str, kind: str, *words: str) -> int:
    """Run a command or a training; see the docstring of the module."""
    torch.set_num_threads(1)
    moments = Moments(int(fatal))
    for holder, name in PLACES:
        setattr(holder, name, moments.around(getattr(holder, name)))
    if kind == "command":
        return cli.main(words)
    train_or_resume(load_config(words[0]), Path(words[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
