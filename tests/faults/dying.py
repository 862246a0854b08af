"""A `cskt` command, or a training that goes on where it can, which kills itself (-9) at a chosen moment.

    python dying.py MOMENT train CONFIG FOLDER
    python dying.py MOMENT command WORDS...

Moments are counted from 1: before and after a file is synced, renamed, linked or written as a checkpoint, an event
recorded, a step made, a split evaluated. At 0 nothing happens; the number of moments is printed at the end.
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
from cskt.training import loop
from cskt.training.run_folder import RunFolder
from cskt.training.series import train_or_resume

PLACES: list[tuple[Any, str]] = [
    (os, "fsync"), (Path, "replace"), (Path, "hardlink_to"), (torch, "save"), (RunFolder, "record"),
    (loop, "update"), (loop, "evaluate"),
]  # fmt: skip


class Moments:
    """Counts, and strikes."""

    def __init__(self, fatal: int) -> None:
        self.count = 0
        self._fatal = fatal

    def pass_by(self) -> None:
        """A moment."""
        self.count += 1
        if self.count == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a moment before and one after it."""

        @functools.wraps(function)
        def called(*arguments: Any, **named: Any) -> Any:
            self.pass_by()
            result = function(*arguments, **named)
            self.pass_by()
            return result

        return called


def main(fatal: str, kind: str, *words: str) -> int:
    """See the module."""
    torch.set_num_threads(1)
    moments = Moments(int(fatal))
    for holder, name in PLACES:
        setattr(holder, name, moments.around(getattr(holder, name)))
    print("begun", flush=True)
    code = 0
    if kind == "train":
        train_or_resume(load_config(words[0]), Path(words[1]))
    else:
        code = cli.main(words)
    print(f"moments: {moments.count}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
