"""A program that replaces all crops of a Milvus collection repeatedly until it is killed, for `test_milvus_faults`.

    python replacing_process.py URL FIRST LOG

It writes round FIRST, then the next one, and so on, and logs the number of each acknowledged round.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import numpy as np

from cskt.gallery.columns import Kind, Value
from cskt.gallery.stores.base import Crop, CropRecord
from cskt.gallery.stores.milvus.milvus_store import open_milvus

DIM = 8
COLUMNS: Mapping[str, Kind] = {"camera": "text", "round": "number"}
NUM_CROPS = 100


def crops_of(round_: int) -> Iterator[Crop]:
    """Yield all crops of one round; odd rounds have values that even ones lack."""
    for number in range(NUM_CROPS):
        metadata: dict[str, Value] = {"camera": f"c{number % 3}", "round": round_} if round_ % 2 else {}
        vector = np.random.default_rng(1000 * round_ + number).standard_normal(DIM).astype(np.float32)
        facts = CropRecord(f"{number:03}", 64, 128, 4321, round_, f"{round_:064x}", False, metadata)
        yield Crop(facts, vector / np.linalg.norm(vector), b"jpeg of round %d" % round_)


def main(url: str, first: str, log: str) -> None:
    """Replace the crops until the end of this process."""
    store = open_milvus(url, DIM, COLUMNS)
    with Path(log).open("a", encoding="ascii") as stream:
        for round_ in count(int(first)):
            store.add(list(crops_of(round_)))
            stream.write(f"{round_}\n")
            stream.flush()
            os.fsync(stream.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
