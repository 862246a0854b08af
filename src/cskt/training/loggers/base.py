"""Interface of the loggers, and the loggers of one training, which never end it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cskt.config import RunConfig
from cskt.errors import CsktError, file_system_errors
from cskt.plugins import Registry
from cskt.utils.files import write_atomically
from cskt.utils.messages import one_line
from cskt.utils.paths import inside

logger = logging.getLogger(__name__)

RUN_ID = re.compile(r"[\w-]{1,128}", re.ASCII)


class Logger:
    """Sends the events of a run somewhere; `metrics.jsonl` has them in any case.

    Training makes one per name in `loop.loggers`, in the main process, and calls it from the thread that trains. An
    exception is logged once as a warning, and the logger is closed: it never ends the training.

    Args:
        folder: of the run.
        config: of the run.
        facts: those of the `start` event, and for a resumed run `resumed_after_step`: later steps are logged again.

    Example:
        >>> from cskt.training.loggers import Logger, register
        >>> @register("print")
        ... class Print(Logger):
        ...     def log(self, event):
        ...         print(event["event"], event.get("loss"))
    """

    def __init__(self, folder: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
        self.folder, self.config, self.facts = folder, config, facts

    @classmethod
    def check(cls) -> None:
        """Raise CsktError if the logger cannot work here, such as without its package; called before training."""

    def log(self, event: Mapping[str, Any]) -> None:
        """Send one event, as it is in `metrics.jsonl`: `event` is its kind; see `scalars_of` for its numbers."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what is open; called once, whether the run has ended (event `end`), failed or was stopped."""


LOGGERS: Registry[type[Logger]] = Registry("logger", "cskt.loggers")
"""Logger by its name in `loop.loggers`."""
Kind = TypeVar("Kind", bound=type[Logger])


def register(name: str) -> Callable[[Kind], Kind]:
    """Return a decorator that makes a `Logger` known to configurations; `loop.loggers` names it."""
    return LOGGERS.register(name)


class Loggers:
    """Loggers of one session of a run; one that fails is closed, with a warning.

    Args:
        names: keys of `LOGGERS`; for the other arguments see `Logger`.
    """

    def __init__(
        self, names: Sequence[str] = (), folder: Path = Path(), config: RunConfig | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._open: dict[str, Logger] = {}
        for name in names:
            assert config is not None
            with self._warning(name):
                self._open[name] = LOGGERS[name](folder, config, facts or {})

    def log(self, event: Mapping[str, Any]) -> None:
        """Send an event to all loggers."""
        for name, one in list(self._open.items()):
            with self._warning(name):
                one.log(event)

    def close(self) -> None:
        """Close all loggers."""
        for name, one in list(self._open.items()):
            with self._warning(name):
                one.close()
        self._open.clear()

    @contextmanager
    def _warning(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # clients of services raise anything
            logger.warning(
                "logger %s: %s; it logs nothing more in this session, metrics.jsonl has all events",
                name, one_line(error).rstrip(".") or type(error).__name__,
            )  # fmt: skip
            logger.debug("logger %s", name, exc_info=True)
            if failed := self._open.pop(name, None):
                try:
                    failed.close()
                except Exception:
                    logger.debug("closing logger %s", name, exc_info=True)


def scalars_of(event: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of an event with their tags, but for its position, `step` and `epoch`.

    Example:
        >>> list(scalars_of({"event": "step", "step": 7, "loss": 2.5, "losses": {"sdm": 1.5}}))
        [('step/loss', 2.5), ('step/losses/sdm', 1.5)]
        >>> list(scalars_of({"event": "evaluation", "stage": "epoch", "step": 7, "t2i": {"r1": 0.5}}))
        [('epoch/t2i/r1', 0.5)]
    """
    numbers = {name: value for name, value in event.items() if name not in ("step", "epoch")}
    yield from _numbers(numbers, event.get("stage", event["event"]))


def _numbers(values: Mapping[str, Any], tag: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{tag}/{name}")
        elif isinstance(value, int | float):
            yield f"{tag}/{name}", float(value)


def remembered_id(folder: Path, service: str, make: Callable[[], str]) -> tuple[str, bool]:
    """Return the id of a run at a service, and True if it is new; the file `<service>.id` in the run folder holds it.

    Raises:
        CsktError: the file holds no id.
    """
    path = inside(folder, f"{service}.id", follow_links=False)
    if not path.exists():
        made = make()
        write_atomically(path, lambda temporary: temporary.write_text(made, encoding="utf-8"))
        return made, True
    with file_system_errors(path):
        text = path.read_bytes()[:200].decode("utf-8", "replace").strip()
    if not RUN_ID.fullmatch(text):
        raise CsktError(f"{path}: must hold letters, digits, _ or -; delete it to start a new run there")
    return text, False
