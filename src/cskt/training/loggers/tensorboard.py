"""Scalars for TensorBoard, written by the thread that records them.

The SummaryWriter of torch writes from a thread of its own, minutes later: on a full disk that thread dies with a
traceback, and a killed run loses the scalars that were waiting.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from cskt.config import RunConfig
from cskt.errors import CsktError
from cskt.training.loggers.base import Logger, register, scalars_of
from cskt.utils.files import write_errors
from cskt.utils.paths import inside

FOLDER = "tensorboard"
PREFIX = "events.out.tfevents."
STAMP = re.compile(r"[0-9]{10}")
FILE_VERSION = "brain.Event:2"


@register("tensorboard")
class TensorBoardLogger(Logger):
    """Curves in `tensorboard/` of the run folder; `tensorboard --logdir logs` shows them."""

    def __init__(self, folder: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, config, facts)
        done = facts.get("resumed_after_step")
        self._place = inside(folder, FOLDER, follow_links=False)
        with write_errors(self._place):
            self._file = ScalarFile(self._place, None if done is None else done + 1)

    def log(self, event: Mapping[str, Any]) -> None:
        """Write the numbers of an event."""
        if not self._file.path.is_file():  # a deleted file takes what is written, and loses it
            raise CsktError(f"{self._file.path} was deleted")
        if scalars := list(scalars_of(event)):
            with write_errors(self._place):
                self._file.add(scalars, event.get("step", 0))

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # `log` has reported a scalar that a full disk did not take
            self._file.close()


class ScalarFile:
    """File of one session, whose methods raise OSError; earlier sessions count up to the step before `purge_step`."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(exist_ok=True)  # not its parent: a run folder that was deleted is not made again
        self.path = folder / f"{PREFIX}{_next_stamp(folder):010}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(self.path.open("wb"))
        self._write(Event(file_version=FILE_VERSION))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, scalars: Iterable[tuple[str, float]], step: int) -> None:
        """Write (tag, value) pairs of a step."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()


def _next_stamp(folder: Path) -> int:
    """Return seconds since 1970, or more: TensorBoard reads sessions by name, and the clock may have been put back."""
    stamps = [path.name.removeprefix(PREFIX).split(".")[0] for path in folder.glob(f"{PREFIX}*")]
    return max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if STAMP.fullmatch(stamp))])
