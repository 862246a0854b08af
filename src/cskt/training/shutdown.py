"""Leaving in order when the system asks for it (SIGTERM): what a scheduler sends before it kills."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

logger = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM ended."""


class Leaving:
    """Whether SIGTERM has come.

        with Leaving() as leaving:
            for step in ...:
                ...
                if leaving.asked: save, leave()
            with leaving.at_once(): what keeps nothing that is not saved

    All of it ends by `SystemExit`. Only the main thread of a program hears signals; in another nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self.hint = "nothing was changed"
        """What to tell on leaving."""
        self._at_once = False
        self._hears = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Leaving:
        if self._hears:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._hears:
            signal.signal(signal.SIGTERM, self._before)

    @contextmanager
    def at_once(self) -> Generator[None, None, None]:
        """Inside the `with` block SIGTERM ends the program there and then."""
        self._at_once = True
        try:
            if self.asked:
                self.leave()
            yield
        finally:
            self._at_once = False

    def leave(self) -> NoReturn:
        """End the program."""
        logger.info("stopped by SIGTERM; %s", self.hint)
        raise SystemExit(EXIT_CODE)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._at_once:
            self.leave()
