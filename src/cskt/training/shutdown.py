"""Graceful shutdown: SIGTERM, which a scheduler sends before it kills, ends a training where nothing is lost."""

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
"""Exit code that a shell reports for a process that SIGTERM ended."""


class CommonExit(SystemExit):
    """Exit of all processes of a training after the same step."""


class ShutdownSignal:
    """Listens for SIGTERM: at once within `immediate`, else when the loop has seen `received`, saved and called `exit`.

    Only the main thread of a program receives signals; in another thread nothing changes.
    """

    def __init__(self) -> None:
        self.received = False
        self.hint = "nothing was changed"
        """End of the message that is logged at the exit."""
        self._is_immediate = False
        self._listens = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> ShutdownSignal:
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    @contextmanager
    def immediate(self) -> Generator[None, None, None]:
        """Return a context in which SIGTERM ends the program at once."""
        self._is_immediate = True
        try:
            if self.received:
                self._exit(SystemExit)
            yield
        finally:
            self._is_immediate = False

    def exit(self) -> NoReturn:
        """End the program; all processes of a training must call it after the same step."""
        self._exit(CommonExit)

    def _exit(self, kind: type[SystemExit]) -> NoReturn:
        logger.info("stopped by SIGTERM; %s", self.hint)
        raise kind(EXIT_CODE)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if self._is_immediate:
            self._exit(SystemExit)
