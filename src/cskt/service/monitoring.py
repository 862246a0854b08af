"""Metrics for Prometheus, and a log without any text that a client sent.

Of a request only method, route, status, time and request id may be logged. Messages of exceptions and of other
packages may quote what was sent (a filter, a sentence, a name), so they are not written: an error is logged by its type
and the places in the code.
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

from cskt.utils.messages import require

require("serve", "prometheus_client")

from prometheus_client import (  # noqa: E402
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
OWN = "cskt"
"""The package whose messages are logged unchanged."""

log = logging.getLogger(__name__)


class Metrics:
    """Metrics of one app, in a registry of their own so that two apps in a process do not share them.

    A stage is one kind of work with threads of its own; `cskt.service.worker` lists them.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU time and open files; on Linux only
        options: Any = {"namespace": "cskt", "registry": self._registry}
        by_stage = options | {"labelnames": ("stage",)}
        seconds = options | {"buckets": SECONDS}
        self.gallery = Info("gallery", "Model and store of the gallery, and the version of cskt.", **options)
        self.requests = Counter("requests", "Requests answered.", ("route", "method", "code"), **options)
        self.request_seconds = Histogram("request_seconds", "Time to answer a request.", ("route",), **seconds)
        self.stage_seconds = Histogram("stage_seconds", "Time of a thread for a task or batch.", **by_stage | seconds)
        self.wait_seconds = Histogram("wait_seconds", "Time that a task waits for a thread.", **by_stage | seconds)
        self.pending = Gauge("pending", "Tasks that wait or are being worked on.", **by_stage)
        self.pending_limit = Gauge("pending_limit", "Pending tasks beyond which further ones get a 503.", **by_stage)
        self.batch_size = Histogram("batch_size", "Queries encoded together.", buckets=BATCHES, **options)
        self.in_flight = Gauge("requests_in_flight", "Requests being answered.", **options)
        self.crops = Gauge("crops", "Crops in the gallery.", **options)
        self.index_bytes = Gauge("index_bytes", "Files of the vectors; 0 if another server stores them.", **options)
        self.disk_free_bytes = Gauge("disk_free_bytes", "Free space where the gallery is.", **options)
        self.gallery_up = Gauge("gallery_up", "Whether the gallery can be asked: 1 or 0.", **options)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


def trace_of(error: BaseException) -> str:
    """Describe an exception and its causes in lines as Python does, without their messages.

    An error of the system has its standard text, such as "No space left on device".
    """
    lines: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        lines.insert(0, "".join(traceback.format_tb(current.__traceback__)) + _name_of(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n".join(lines)


def log_failure(logger: logging.Logger, message: str, error: BaseException) -> None:
    """Log an error with `trace_of` as its traceback, for every kind of handler."""
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, message, (), None)
    record.exc_text = trace_of(error)
    logger.handle(record)


@contextmanager
def private_logging() -> Iterator[None]:
    """Keep client text out of everything that this process logs, and out of stderr.

    Records are changed when they are made, because packages such as pymilvus have handlers of their own: the message
    of another package becomes its place in the code, a traceback becomes `trace_of`. Warnings of the module `warnings`,
    and errors of threads without a waiting caller, are logged by the same rule.
    """
    factory = logging.getLogRecordFactory()
    hooks = threading.excepthook, sys.unraisablehook

    def private_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        if record.name.partition(".")[0] != OWN:
            record.msg, record.args = (
                f"{record.name}: {record.levelname.lower()} in {record.module}:{record.lineno}",
                (),
            )
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = trace_of(record.exc_info[1])
        record.exc_info = None
        return record

    def log_unhandled(failure: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> None:
        if failure.exc_value is not None:
            kind = "a thread failed" if isinstance(failure, threading.ExceptHookArgs) else "an error was not raised"
            log_failure(log, kind, failure.exc_value)

    logging.setLogRecordFactory(private_record)
    logging.captureWarnings(capture=True)
    threading.excepthook = sys.unraisablehook = log_unhandled
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        logging.captureWarnings(capture=False)
        logging.setLogRecordFactory(factory)


def _name_of(error: BaseException) -> str:
    name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, BaseExceptionGroup):
        parts = "\n".join(trace_of(part) for part in error.exceptions)
        return f"{name} of {len(error.exceptions)}:\n{parts}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)}"
    return name
