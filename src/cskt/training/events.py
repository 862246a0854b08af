"""Events of a run: the lines of `metrics.jsonl`, checked against their schemas.

`cskt.training.trainer.Trainer` emits them; `RunFolder.record` writes each to this file, and the loggers get it too.

A bad line is ignored and counted: a lost figure is no reason to refuse a run whose checkpoint is intact. A run that is
resumed rewrites the file with the good lines only.
"""

from __future__ import annotations

import itertools
import logging
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import AllowInfNan
from pydantic.dataclasses import dataclass

from cskt.config.file_names import EVENTS
from cskt.errors import SHORT, CsktError, file_system_errors
from cskt.evaluation.results import Summary
from cskt.utils.json_files import FOREIGN, MAX_JSON_BYTES, load_json, parse_json

logger = logging.getLogger(__name__)

Loss = Annotated[float, AllowInfNan(True)]
Count = Annotated[int, Ge(0), Le(10**15)]
REMEDY = "the line is ignored"
MAX_NAMED = 10
"""Ignored lines that a message names."""


@dataclass(config=FOREIGN, kw_only=True)
class StepEvent:
    """Figures of training; a loss may be NaN if a run diverged."""

    step: Count
    loss: Loss
    lr: Annotated[float, Ge(0), Le(1e30)]
    epoch: Count = 0
    losses: dict[str, Loss] = field(default_factory=dict)


@dataclass(config=FOREIGN, kw_only=True)
class EvaluationEvent:
    """Figures of a model on the selection split."""

    stage: str
    epoch: Count
    step: Count
    dataset: str
    split: str
    t2i: Summary
    i2t: Summary | None = None


@dataclass(config=FOREIGN, kw_only=True)
class StartEvent:
    """Fields of the start event that readers use."""

    version: str | None = None
    torch: str | None = None
    device: str | None = None
    backbone: str | None = None
    backbone_sha256: str | None = None
    data_sha256: str | None = None
    trainable_parameters: Count | None = None
    total_parameters: Count | None = None
    train_identities: Count | None = None
    train_pairs: Count | None = None
    warnings: list[str] | None = None


@dataclass(config=FOREIGN, kw_only=True)
class EndEvent:
    """Fields of the end event that readers use."""

    best_r1: Annotated[float, Ge(-1), Le(1)]
    best_epoch: Count
    seconds: Annotated[float, Ge(0)]
    peak_memory_bytes: Count
    stopped: str | None = None
    warnings: list[str] | None = None


@dataclass(config=FOREIGN, kw_only=True)
class OtherEvent:
    """Event of a kind that this version does not read."""

    step: Count = 0
    epoch: Count = 0


SCHEMAS: dict[str, type[Any]] = {
    "start": StartEvent, "step": StepEvent, "evaluation": EvaluationEvent, "end": EndEvent,
}  # fmt: skip


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run folder, oldest first; none if nothing was recorded. Ignored lines are logged once."""
    return [dict(event) for event in _read_once(folder)[0]]


def ignored_lines(folder: Path) -> str:
    """Return the numbers of the lines of a run's metrics.jsonl that are no events; empty if there are none."""
    return _read_once(folder)[1]


def first_event(events: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """Return the first event of a kind, such as `start`; empty if there is none."""
    return next((event for event in events if event["event"] == kind), {})


def last_event(events: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """Return the last event of a kind, such as `end`; empty if there is none."""
    return first_event(reversed(events), kind)


def _read_once(folder: Path) -> tuple[list[dict[str, Any]], str]:
    path = folder / EVENTS
    try:
        state = path.stat()
    except OSError:
        return [], ""
    if not stat.S_ISREG(state.st_mode):
        return [], ""
    if state.st_size > MAX_JSON_BYTES:
        raise CsktError(f"{path}: {state.st_size:,} bytes, at most {MAX_JSON_BYTES:,} are read; move the file away")
    return _read(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, _size: int, _mtime_ns: int) -> tuple[list[dict[str, Any]], str]:
    """Return the events of a file, and its ignored lines as a text; read once while a file keeps its size and time."""
    with file_system_errors(path):
        lines = path.read_bytes().split(b"\n")
    events: list[dict[str, Any]] = []
    ignored: dict[int, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            events.append(parse_event(line, f"line {number}"))
        except CsktError as error:
            if number < len(lines):  # a line without an end was cut short by a crash
                ignored[number] = str(error).removesuffix(f"; {REMEDY}")
    if not ignored:
        return events, ""
    named = ", ".join(map(str, itertools.islice(ignored, MAX_NAMED)))
    named += f" and {len(ignored) - MAX_NAMED} more" if len(ignored) > MAX_NAMED else ""
    reason = next(iter(ignored.values()))
    logger.warning("%s: ignored %d lines (%s) that are no events: %s", path, len(ignored), named, reason)
    return events, named


def parse_event(line: bytes, where: str) -> dict[str, Any]:
    """Read one line; raise CsktError if it is no event, or lacks a field of its kind."""
    content = load_json(line, where=where, remedy=REMEDY)
    if not isinstance(content, dict) or not isinstance(content.get("event"), str):
        raise CsktError(f"{where}: must be an object with an 'event', got {SHORT.repr(content)}; {REMEDY}")
    schema = SCHEMAS.get(content["event"], OtherEvent)
    parse_json(line, schema, where=where, remedy=REMEDY)
    return content
