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


def record(fault: str, *, tried: int, lost: int, test: str) -> None:
    """Note what came of a fault, in the file that $CSKT_FAULTS_JSON names; `fault_table.py` makes a table of it."""
    if path := os.environ.get("CSKT_FAULTS_JSON"):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"fault": fault, "tries": tried, "lost": lost, "test": test}) + "\n")
