"""What a reader of foreign files may do: take them, or refuse them in one line, within a limit of time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SECONDS = 20.0
"""For one case, on a machine that does other things, too."""
LONGEST = 1500
"""Characters of a message: it does not repeat a megabyte of what it was given."""


class TooSlowError(BaseException):
    """Passes by every handler of errors."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Break off what takes longer; where there are alarms, even within a library."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"not done after {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def taken_or_refused(read: Callable[[], object]) -> str:
    """The one line of the refusal; empty if it was taken. Anything else is an error of the test."""
    started = time.monotonic()
    try:
        with limited(SECONDS):
            read()
    except ValueError as error:
        message = str(error)
        assert type(error) is ValueError, f"{type(error).__name__}: {message[:300]}"
        assert message.strip() and "\n" not in message.strip(), message[:300]
        assert len(message) <= LONGEST, f"{len(message)} characters: {message[:300]}"
        message.encode()  # it can be printed
        return message
    assert time.monotonic() - started < SECONDS
    return ""
