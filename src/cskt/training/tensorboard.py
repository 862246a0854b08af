"""Scalars for TensorBoard, written by the thread that records them.

torch's SummaryWriter writes from a thread of its own, minutes later: on a full disk that thread dies with a traceback,
and a killed run lacks what was waiting.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

PREFIX = "events.out.tfevents."
STAMP = re.compile(r"[0-9]{10}")
FILE_VERSION = "brain.Event:2"


class ScalarFile:
    """One session's file.

    Args:
        folder: of all sessions of a run; made here.
        purge_step: of what earlier sessions wrote, TensorBoard forgets everything from this step on.

    Raises:
        OSError: as `add` does.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{PREFIX}{_next_stamp(folder):010}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self._stream = self.path.open("wb")
        self._records = RecordWriter(self._stream)
        self._write(Event(file_version=FILE_VERSION))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, scalars: Iterable[tuple[str, float]], step: int) -> None:
        """Write (tag, value) pairs of a step.

        Raises:
            OSError: the disk is full, ...
        """
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: it still lacks what a full disk had no room for.
        """
        self._records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()


def _next_stamp(folder: Path) -> int:
    """Seconds since 1970, or more: TensorBoard reads sessions by name, and the clock may have been put back.

    Names of other programs that look alike are left alone: a stamp has ten digits.
    """
    stamps = [path.name.removeprefix(PREFIX).split(".")[0] for path in folder.glob(f"{PREFIX}*")]
    return max([int(time.time()), *(int(stamp) + 1 for stamp in stamps if STAMP.fullmatch(stamp))])
