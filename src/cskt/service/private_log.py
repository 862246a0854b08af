"""A log without the words of clients: what they search for belongs to the audit log alone.

Of a request only method, route, status and time may be logged. Messages of exceptions and of other packages may quote
anything that was sent (a filter, a sentence, a name), so neither is written: an error is logged by its type and the
places in the code.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OWN = "cskt"
"""The package whose messages are written as they are."""

log = logging.getLogger(__name__)


def trace_of(error: BaseException) -> str:
    """Describe an exception and its causes as Python does, without their messages.

    Returns:
        Several lines: for each exception, the first cause first, its frames and its type. An error of the system also
        has its standard text, such as "No space left on device".
    """
    lines: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        lines.insert(0, "".join(traceback.format_tb(current.__traceback__)) + _name_of(current))
        hidden = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or hidden
    return "\n".join(lines)


def log_failure(logger: logging.Logger, message: str, error: BaseException) -> None:
    """Log an error with `trace_of` as its traceback, whichever handlers there are."""
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, message, (), None)
    record.exc_text = trace_of(error)
    logger.handle(record)


def make_private(record: logging.LogRecord) -> None:
    """Replace the message of another package by its place in the code, and a traceback by `trace_of`."""
    is_own = record.name.partition(".")[0] == OWN
    if not is_own:
        place = f"{record.module}:{record.lineno}"
        record.msg, record.args = f"{record.name}: {record.levelname.lower()} in {place}", ()
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = trace_of(record.exc_info[1])
    record.exc_info = None


@contextmanager
def private_logging() -> Iterator[None]:
    """Keep clients' words out of everything that this process logs, and out of stderr.

    Records are changed as they are made, because packages such as pymilvus have handlers of their own. Warnings of the
    module `warnings`, and errors of threads that nobody waits for, are logged by the same rule.
    """
    made = logging.getLogRecordFactory()
    hooks = threading.excepthook, sys.unraisablehook

    def private_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = made(*args, **kwargs)
        make_private(record)
        return record

    def thread_failed(failure: threading.ExceptHookArgs) -> None:
        if failure.exc_value is not None:
            log_failure(log, "a thread failed", failure.exc_value)

    def ignored(failure: sys.UnraisableHookArgs) -> None:
        if failure.exc_value is not None:
            log_failure(log, "an error could not be raised", failure.exc_value)

    logging.setLogRecordFactory(private_record)
    logging.captureWarnings(capture=True)
    threading.excepthook, sys.unraisablehook = thread_failed, ignored
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        logging.captureWarnings(capture=False)
        logging.setLogRecordFactory(made)


def _name_of(error: BaseException) -> str:
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, BaseExceptionGroup):
        parts = "\n".join(trace_of(part) for part in error.exceptions)
        return f"{name} of {len(error.exceptions)}:\n{parts}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)}"
    return name
