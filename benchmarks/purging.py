"""Purge of a store of random vectors, as `cskt gallery erase` does it: time, processor time, memory and disk.

    python -m benchmarks.purging --crops 100000

One crop in a hundred is removed before. The disk is measured while the purge runs: old and new files are there at once.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.gallery import name_of
from cskt.gallery.stores.base import Crop, CropRecord
from cskt.gallery.stores.lance.lance_store import LanceStore, open_lance

DIM = 512
THUMBNAIL_BYTES = 3000
ROWS_AT_ONCE = 8192
SAMPLE_SECONDS = 0.2


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), args.crops), indent=1))


def measure(folder: Path, crops: int) -> dict[str, float]:
    """Fill a store, remove one crop in a hundred, and purge it."""
    store = open_lance(folder, DIM, {})
    fill(store, crops)
    store.delete([name_of(row) for row in range(0, crops, 100)])
    before = disk_bytes(folder)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest, ended = [before], threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            largest.append(disk_bytes(folder))

    sampler = threading.Thread(target=sample)
    sampler.start()
    started, used = time.perf_counter(), time.process_time()
    store.purge()
    wall, processor = time.perf_counter() - started, time.process_time() - used
    ended.set()
    sampler.join()
    assert store.count() == crops - len(range(0, crops, 100))
    return {
        "crops": crops,
        "seconds": round(wall, 1),
        "processor_seconds": round(processor, 1),
        "more_memory_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024),
        "disk_mb_before": round(before / 1e6),
        "disk_mb_largest": round(max(largest) / 1e6),
        "disk_mb_after": round(disk_bytes(folder) / 1e6),
    }


def fill(store: LanceStore, crops: int) -> None:
    """Add crops with random unit vectors and thumbnails of 3 kB."""
    for start in range(0, crops, ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, crops))
        random = np.random.default_rng(start)
        vectors = random.standard_normal((len(rows), DIM), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        facts = [CropRecord(name_of(row), 128, 384, 30_000, row, f"{row:064x}", False) for row in rows]
        thumbnails = [random.bytes(THUMBNAIL_BYTES) for _ in rows]
        store.add([Crop(*parts) for parts in zip(facts, vectors, thumbnails, strict=True)])
    store.compact()


def disk_bytes(folder: Path) -> int:
    """Return the size of the files in a folder, of which some may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


if __name__ == "__main__":
    main()
