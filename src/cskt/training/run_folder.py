"""Folder of a run: its config, its events as JSON lines, and the claim of the process that trains.

While a run trains, its folder is checked before each write: files may be deleted, moved or replaced. A file that is
open stays writable after its name is gone, and saving creates a missing folder again, so a training would otherwise
continue to its end and leave a folder that cannot be resumed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml
from filelock import FileLock, Timeout

from cskt.config import ClipArchitecture, RunConfig, as_trained, load_config, save_config
from cskt.config.file_names import BEST, CONFIG, EVENTS, LAST, LAST_EPOCH, PREVIOUS, RELEASED_CONFIG
from cskt.config.released_flags import to_published
from cskt.errors import CsktError, file_system_errors
from cskt.training.events import read_events
from cskt.training.launch import REFUSED, record_refusal
from cskt.utils.files import write_atomically, write_errors
from cskt.utils.messages import command_text
from cskt.utils.paths import file_name, inside

LOCK = ".lock"
TEMPORARY = re.compile(r"\.[A-Za-z0-9_.-]+\.[0-9]+(\.[0-9]+)?\.tmp")
"""Name of a file whose process was killed while it wrote: the final name, process and thread."""


class RunFolder:
    """Folder of one run. If it does not write, because another process does, nothing is checked either."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.best, self.last, self.last_epoch = path / BEST, path / LAST, path / LAST_EPOCH
        self._writes = writes
        self._expected: dict[Path, IO[bytes] | None] = {}

    def create(self, config: RunConfig, architecture: ClipArchitecture | None = None) -> None:
        """Create the folder with a config, and with a flat copy that has image size and stride of the architecture.

        A start that failed before its first checkpoint holds nothing that anyone needs: its files are replaced.
        """
        flat = yaml.safe_dump(to_published(config, architecture), sort_keys=False)
        if _is_unfinished_start(self.path, flat):
            for name in (REFUSED, EVENTS, CONFIG):  # the config last: without it old events would never be deleted
                with file_system_errors(self.path / name):
                    (self.path / name).unlink(missing_ok=True)
        if (self.path / CONFIG).exists():
            record_refusal(self.path)
            remedy = "it has no last.pt and cannot be resumed; delete it"
            if has_checkpoint(self.path):
                remedy = f"resume it (--resume {self.path})"
            raise CsktError(f"{self.path}: already holds a run; {remedy} or name another folder")
        with self.guarded_write():
            with write_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / RELEASED_CONFIG, lambda file: file.write_text(flat, encoding="utf-8"))
            write_atomically(self.path / CONFIG, lambda file: save_config(config, file))

    @property
    def config(self) -> RunConfig:
        """Config of the run, from its config.yaml."""
        return as_trained(load_config(self.path / CONFIG, fit=False))

    def set_stop(self, stop_after_epochs: int | None) -> None:
        """Write the epoch at which a resumed run stops into its config.yaml."""
        config = self.config
        if self._writes and config.loop.stop_after_epochs != stop_after_epochs:
            loop = dataclasses.replace(config.loop, stop_after_epochs=stop_after_epochs)
            changed = dataclasses.replace(config, loop=loop)
            write_atomically(self.path / CONFIG, lambda temporary: save_config(changed, temporary))

    def record(self, event: str, **values: Any) -> None:
        """Append an event to metrics.jsonl."""
        if not self._writes:
            return
        with self.guarded_write():
            place = inside(self.path, EVENTS, follow_links=False)
            with write_errors(place):
                with place.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"event": event, **values}) + "\n")
                self._require_unchanged(place, keep_open=True)

    @contextmanager
    def guarded_write(self) -> Iterator[None]:
        """Return a context for a write to the folder: files that were written before must still be there."""
        for path, held in self._expected.items():
            if not _is_there(path, held):
                name = path.relative_to(self.path).as_posix()
                problem = f"'{name}' was deleted or replaced" if self.path.is_dir() else "deleted or moved"
                raise CsktError(
                    f"{self.path}: {problem} during training, which ends here; put it back and continue with"
                    f" '{command_text('train', '--resume', self.path)}', or start a new run"
                )
        yield
        for path in (self.path / CONFIG, self.best, self.last):
            if self._writes and path.is_file():
                self._require_unchanged(path)

    def _require_unchanged(self, path: Path, *, keep_open: bool = False) -> None:
        """Require a file from now on; with `keep_open` also that no other replaces it.

        A held file is kept open: its inode number is then not given to another, on any file system.
        """
        if path not in self._expected:
            self._expected[path] = path.open("rb") if keep_open else None

    def drop_events_after(self, total_steps: int, epochs: int) -> None:
        """Drop the events after a checkpoint, which a resumed run records again, and temporary files of killed writes.

        The checkpoint has completed so many steps, and so many epochs including their evaluation.
        """
        if not self._writes:
            return

        def is_before(event: dict[str, Any]) -> bool:
            is_late = event["event"] in ("evaluation", "hook") and event.get("epoch", 0) > epochs
            if is_late and event.get("step", 0) == total_steps:
                return False  # at the step of the checkpoint, but not yet counted in its best score or its hooks
            return event["event"] != "end" and event.get("step", 0) <= total_steps

        text = "".join(json.dumps(event) + "\n" for event in read_events(self.path) if is_before(event))
        with write_errors(self.path):
            for path in self.path.glob(".*.tmp"):
                if TEMPORARY.fullmatch(path.name) and (path.is_file() or path.is_symlink()):
                    path.unlink(missing_ok=True)
        write_atomically(self.path / EVENTS, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def close(self) -> None:
        """Close the files that are open."""
        for held in self._expected.values():
            if held is not None:
                held.close()
        self._expected.clear()


def _is_there(path: Path, held: IO[bytes] | None) -> bool:
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # a network that does not answer is not a deletion; the next write reports it
        return True
    return held is None or os.path.samestat(state, os.fstat(held.fileno()))


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Claim a folder for this process, and yield True; yield False if another process has claimed it.

    The operating system releases the claim when the process ends, however it ends. So the same series may be started
    in several terminals, or on several GPUs, and each process takes the runs that no other has. A process may claim a
    folder again that it has claimed.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        inside(folder, LOCK, follow_links=False)
        lock, is_claimed = FileLock(folder / LOCK, is_singleton=True), True
        try:
            lock.acquire(timeout=0)
        except Timeout:
            is_claimed = False
    try:
        yield is_claimed
    finally:
        if is_claimed:
            lock.release()


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run can be resumed."""
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def _is_unfinished_start(folder: Path, flat: str) -> bool:
    """Return whether a run ended before its first checkpoint, as it does if an image cannot be read.

    A run of which only the weights were deleted has events of steps or of its end. A start that was killed before its
    first event has left the flat config of the same run, `flat`; any other config is a file of the user.
    """
    if any((folder / name).exists() for name in (LAST, PREVIOUS, BEST)):
        return False
    events = {event["event"] for event in read_events(folder)}
    if "start" in events:
        return not events & {"step", "end"}
    copy = folder / RELEASED_CONFIG  # written before config.yaml
    with file_system_errors(copy):
        return not events and copy.is_file() and copy.read_bytes() == flat.encode()


def fresh_folder(config: RunConfig) -> Path:
    """Create the default folder of a run, `<output_dir>/<dataset>/<time>_<name>`, and return its path.

    It is created at once: two trainings that start in the same second must not meet.
    """
    parent = Path(config.output_dir) / file_name(config.data.dataset)
    stem = f"{time.strftime('%Y%m%d_%H%M%S')}_{file_name(config.name)}"
    for number in itertools.count(1):
        folder = parent / (stem if number == 1 else f"{stem}_{number}")
        with write_errors(folder), suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")
