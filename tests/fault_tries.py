"""How often a fault is tried: a few times in `make test`; in `make test-faults` as docs/reliability.md says."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

LONG = os.environ.get("CSKT_LONG_FAULTS") == "1"
"""Whether this is the long part."""
SEED = int(os.environ.get("CSKT_FAULT_SEED", "1"))


def tries(fast: int, long: int) -> int:
    """How often a fault is tried in this part."""
    return long if LONG else fast


def chance(test: str) -> random.Random:
    """Where and when a test strikes: the same in every run with one seed."""
    return random.Random(f"{SEED} {test}")


def record(fault: str, *, tried: int, test: str) -> None:
    """Note that a fault was tried so often and nothing was lost, which the test has seen before it calls this."""
    _note({"fault": fault, "tries": tried, "test": test})


def record_failure(test: str) -> None:
    """Note that a test has failed: something was lost, or may have been."""
    _note({"failed": test})


def _note(fact: dict[str, str | int]) -> None:
    """Into the file that $CSKT_FAULTS_JSON names; `fault_table.py` makes a table of it."""
    if path := os.environ.get("CSKT_FAULTS_JSON"):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(fact) + "\n")
