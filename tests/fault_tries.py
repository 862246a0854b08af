"""Tries of a fault: their number (few in `make test-all`, many in `make test-faults`), their moment, their record."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

LONG = os.environ.get("CSKT_LONG_FAULTS") == "1"
"""True in `make test-faults`."""
SEED = int(os.environ.get("CSKT_FAULT_SEED", "1"))


def tries(fast: int, long: int) -> int:
    """Return the number of tries."""
    return long if LONG else fast


def chance(test: str) -> random.Random:
    """Return a generator for the choices of a test, the same in every run with one seed."""
    return random.Random(f"{SEED} {test}")


def wait_until(event: Callable[[], bool], process: subprocess.Popen, seconds: float = 300) -> None:
    """Wait for an event that a process causes, so that a kill or an interrupt strikes at the same point everywhere."""
    end = time.monotonic() + seconds
    while not event():
        assert process.poll() is None, "the process ended before the event"
        assert time.monotonic() < end, f"nothing happened within {seconds:.0f} s"
        time.sleep(0.005)


def record(fault: str, *, tried: int, test: str) -> None:
    """Record the tries of a fault after the test has checked that nothing was lost."""
    _note({"fault": fault, "tries": tried, "test": test})


def record_failure(test: str) -> None:
    """Record a failed test."""
    _note({"failed": test})


def _note(fact: dict[str, str | int]) -> None:
    """Append to the file $CSKT_FAULTS_JSON, from which `fault_table.py` makes a table."""
    if path := os.environ.get("CSKT_FAULTS_JSON"):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(fact) + "\n")
