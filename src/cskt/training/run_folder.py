"""The files of a run: its config, its events as JSON lines and for TensorBoard."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from cskt.config import ClipArchitecture, RunConfig, as_trained, load_config, save_config
from cskt.config.released_flags import to_published
from cskt.errors import CsktError
from cskt.training.events import read_event_log
from cskt.training.run_files import RunFiles
from cskt.training.tensorboard import ScalarFile
from cskt.utils.files import write_atomically
from cskt.utils.paths import file_name, inside

CONFIG, FLAT_CONFIG, EVENTS = "config.yaml", "configs.yaml", "metrics.jsonl"
BEST, LAST, PREVIOUS = "best.safetensors", "last.pt", "last.previous.pt"
HEADS = "best.heads.safetensors"
"""Training heads of the best epoch; inference never reads it."""
DAMAGED = "last.damaged.pt"
"""What was found as last.pt and could not be resumed from."""
TENSORBOARD, LOCK = "tensorboard", ".lock"
HALF_WRITTEN = re.compile(r"\.[A-Za-z0-9_.-]+\.[0-9]+(\.[0-9]+)?\.tmp")
"""Name of a file that a process was killed while it wrote: the name that it would have got, process and thread."""


class RunFolder:
    """A folder of one run.

    Args:
        path: exists with a config, or is made here.
        writes: false where another process of the same training writes.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        self.best, self.last = path / BEST, path / LAST
        self._scalar_file: ScalarFile | None = None
        self._purge_step: int | None = None
        self._files = RunFiles(path)

    @classmethod
    def create(cls, config: RunConfig, folder: Path, architecture: ClipArchitecture | None = None) -> RunFolder:
        """Make a folder with a config and nothing else.

        Args:
            config: of the run.
            folder: is made if it is not there.
            architecture: of the model, for the image size and stride in the flat copy of the config.

        Raises:
            CsktError: the folder holds a run already, or cannot be made.
        """
        if (folder / CONFIG).exists():
            raise CsktError(f"{folder}: already holds a run; resume it (--resume {folder}) or name another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flat = yaml.safe_dump(to_published(config, architecture), sort_keys=False)
            write_atomically(folder / FLAT_CONFIG, lambda temporary: temporary.write_text(flat, encoding="utf-8"))
            write_atomically(folder / CONFIG, lambda temporary: save_config(config, temporary))
        except OSError as error:
            raise _unwritable(folder, error) from None
        return cls(folder)

    @property
    def config(self) -> RunConfig:
        """The run's config, from its config.yaml."""
        return as_trained(load_config(self.path / CONFIG))

    def set_stop(self, stop_after_epochs: int | None) -> None:
        """Put the epoch at which a resumed run is to stop into its config.yaml.

        Raises:
            CsktError: the file cannot be written.
        """
        config = self.config
        if self._writes and config.loop.stop_after_epochs != stop_after_epochs:
            loop = dataclasses.replace(config.loop, stop_after_epochs=stop_after_epochs)
            changed = dataclasses.replace(config, loop=loop)
            write_atomically(self.path / CONFIG, lambda temporary: save_config(changed, temporary))

    def record(self, event: str, **values: Any) -> None:
        """Append an event to metrics.jsonl, and its scalars to TensorBoard under its `step`.

        Raises:
            CsktError: the disk is full, files of the run were deleted meanwhile, a link is in place of a file, ...
        """
        if not self._writes:
            return
        self.check_files()
        self.expect_files()
        place = inside(self.path, EVENTS, follow_links=False)
        try:
            with place.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"event": event, **values}) + "\n")
            self._files.expect(place, hold=True)
            place = inside(self.path, TENSORBOARD, follow_links=False)
            if scalars := _scalars(values, values.get("stage", event)):
                self._scalar_file = self._scalar_file or ScalarFile(place, self._purge_step)
                self._files.expect(self._scalar_file.path, hold=True)
                self._scalar_file.add(scalars, values.get("step", 0))
        except OSError as error:
            raise CsktError(f"{place}: cannot write: {error.strerror}; is there room, and may you write?") from None

    def check_files(self) -> None:
        """Check that what the run has written is still there.

        Raises:
            CsktError: somebody has deleted, moved or replaced it; see `RunFiles.check`.
        """
        if self._writes:
            self._files.check()

    def expect_files(self) -> None:
        """From now on `check_files` requires the config and the weights that are in the folder."""
        for path in (self.path / CONFIG, self.best, self.last):
            if self._writes and path.is_file():
                self._files.expect(path)

    def events(self) -> list[dict[str, Any]]:
        """All events so far, oldest first; see `read_events`."""
        return read_events(self.path)

    def forget_after(self, total_steps: int, epochs: int) -> None:
        """Drop the events beyond a checkpoint, so that a resumed run tells its story once; and files half written.

        Args:
            total_steps: steps that the checkpoint has behind it.
            epochs: epochs that it has completed, their evaluation included.
        """

        if not self._writes:
            return

        def is_past(event: dict[str, Any]) -> bool:
            if event["event"] == "evaluation" and event["epoch"] > epochs:
                return False  # at the checkpoint's own step, but not yet counted in its best score
            return event["event"] != "end" and event.get("step", 0) <= total_steps

        text = "".join(json.dumps(event) + "\n" for event in self.events() if is_past(event))
        for cut_short in self.path.glob(".*.tmp"):
            if HALF_WRITTEN.fullmatch(cut_short.name) and (cut_short.is_file() or cut_short.is_symlink()):
                cut_short.unlink(missing_ok=True)
        self._purge_step = total_steps + 1
        write_atomically(self.path / EVENTS, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def close(self) -> None:
        """Close the files that are open."""
        self._files.close()
        if self._scalar_file is not None:
            with suppress(OSError):  # what it could not hold, metrics.jsonl does, or `record` has said so
                self._scalar_file.close()


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run folder, oldest first; none if nothing was recorded. Lines that are none are left out."""
    return [dict(event) for event in read_event_log(folder / EVENTS).events]


def ignored_lines(folder: Path) -> str:
    """The numbers of those lines of a run's metrics.jsonl that are no events, for a report; empty if all are."""
    return read_event_log(folder / EVENTS).note


def first_event(events: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """The first event of a kind, such as `start`; empty where there is none."""
    return next((event for event in events if event["event"] == kind), {})


def last_event(events: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """The last event of a kind, such as `end`; empty where there is none."""
    return first_event(reversed(events), kind)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process alone works on a folder; another that asks meanwhile is told no.

    The operating system lets go of the claim when a process ends, however it ends. So the same series may be started
    in several terminals, or on several GPUs, and each takes what no other has. Whoever holds a claim may claim again.

    Raises:
        CsktError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        inside(folder, LOCK, follow_links=False)
        lock = FileLock(folder / LOCK, is_singleton=True)
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        yield True
    finally:
        lock.release()


def fresh_folder(config: RunConfig) -> Path:
    """Where a run goes that nobody has named a folder for: `<output_dir>/<dataset>/<time>_<name>`.

    Characters of the name that mean something in a path are replaced, so that the folder is always in that place. It is
    made here, for two trainings that are started in the same second are not to meet.

    Raises:
        CsktError: it cannot be made.
    """
    parent = Path(config.output_dir) / file_name(config.data.dataset)
    stem = f"{time.strftime('%Y%m%d_%H%M%S')}_{file_name(config.name)}"
    names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    return next(parent / name for name in names if _is_made(parent / name))


def _is_made(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise _unwritable(folder, error) from None
    return True


def _unwritable(folder: Path, error: OSError) -> CsktError:
    return CsktError(f"{folder}: cannot write a run there: {error.strerror}; choose another folder")


def _scalars(values: Mapping[str, Any], tag: str) -> list[tuple[str, float]]:
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _scalars(value, f"{tag}/{name}")
        elif isinstance(value, int | float) and name not in ("step", "epoch"):
            found.append((f"{tag}/{name}", float(value)))
    return found
