"""Search in a gallery of random vectors compared with faiss: ingest, p50 and p99, memory, disk, first search.

    python -m benchmarks.gallery --crops 100000
    python -m benchmarks.gallery --crops 1000000

Our search returns names and metadata in exact float32 order, with and without a filter. Faiss is its flat index in
float32, which returns row numbers. Both have the same vectors and alternate in one process on the same queries, without
encoding. Clients are threads that send one query at a time; ours share passes over the vectors, as in the service.
Memory is the growth of a separate process for each. Needs `pip install faiss-cpu`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.gallery.columns import BUILT_IN, Kind
from cskt.gallery.filters import parse_filter
from cskt.gallery.stores.base import Crop, CropRecord
from cskt.gallery.stores.lance.lance_store import LanceStore, open_lance
from cskt.service.batching import Batcher
from cskt.service.monitoring import Metrics
from cskt.types import Hit

DIM = 512
K = 10
COLUMNS: dict[str, Kind] = {"camera": "text", "speed": "number"}
NUM_CAMERAS = 8
FILTERS = {"none": None, "camera (1 in 8)": "camera = 'c3'", "speed (1 in 1000)": "speed < 0.001"}
ROWS_AT_ONCE = 8192
THUMBNAIL = bytes(3000)


def main() -> None:
    """Print a table, and everything as JSON with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=100_000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--queries", type=int, default=200, help="of each client count, ours and faiss each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the gallery here, and use it if it is there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-memory-of", choices=("ours", "faiss"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    if args.only_memory_of:
        measure = {"ours": memory_of_ours, "faiss": memory_of_faiss}[args.only_memory_of]
        print(json.dumps(measure(args.folder, args.crops)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        result = run(args.folder or Path(scratch), args.crops, args.clients, args.queries, args.threads)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps(result, indent=1))


def run(folder: Path, crops: int, clients: Sequence[int], num_queries: int, threads: int) -> dict[str, object]:
    """Measure everything for one size."""
    result: dict[str, object] = {"crops": crops, "dim": DIM, "k": K, "threads": threads, "cpus": os.cpu_count()}
    store = open_lance(folder, DIM, COLUMNS)
    if store.count() < crops:
        result["ingest_crops_per_second"] = round(ingest(store, crops))
    result["disk_bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    store.close()
    for side in ("ours", "faiss"):
        result[f"memory_{side}"] = in_new_process(side, folder, crops, threads)

    store = open_lance(folder, DIM, COLUMNS)
    index = faiss.IndexFlatIP(DIM)
    for start in range(0, crops, ROWS_AT_ONCE):
        index.add(vectors_of(start, min(start + ROWS_AT_ONCE, crops)))
    queries = torch.from_numpy(vectors_of(crops, crops + num_queries))
    check_same_answers(store, index, queries[:20])
    result["search"] = [
        compare(store, index, queries, name, where, clients=number)
        for name, where in FILTERS.items()
        for number in clients
    ]
    store.close()
    return result


def vectors_of(start: int, end: int) -> NDArray[np.float32]:
    """Return unit vectors [end - start, D] that depend on their row numbers only."""
    blocks = []
    for first in range(start - start % ROWS_AT_ONCE, end, ROWS_AT_ONCE):
        block = np.random.default_rng(first).standard_normal((ROWS_AT_ONCE, DIM), dtype=np.float32)
        blocks.append(block[max(0, start - first) : end - first])
    vectors = np.concatenate(blocks)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def name_of(row: int) -> str:
    """Return the name of a crop."""
    return f"cam{row % NUM_CAMERAS}/{row:09d}.jpg"


def ingest(store: LanceStore, crops: int) -> float:
    """Return crops stored per second, with thumbnails of 3 kB and metadata."""
    spent = 0.0
    for start in range(0, crops, ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, crops)
        speeds = np.random.default_rng([start, 1]).random(end - start)
        batch = [
            Crop(
                CropRecord(
                    name_of(row), 128, 384, 30_000, row, f"{row:064x}", False,
                    {"camera": f"c{row % NUM_CAMERAS}", "speed": float(speed)},
                ),
                vector,
                THUMBNAIL,
            )
            for row, vector, speed in zip(range(start, end), vectors_of(start, end), speeds, strict=True)
        ]  # fmt: skip
        started = time.perf_counter()
        store.add(batch)
        spent += time.perf_counter() - started
    started = time.perf_counter()
    store.compact()
    return crops / (spent + time.perf_counter() - started)


def check_same_answers(store: LanceStore, index: faiss.IndexFlatIP, queries: Tensor) -> None:
    """Check that both return the same crops, up to the rounding of float32 sums in two orders."""
    scores, rows = index.search(queries.numpy(), K)
    for answer, expected_scores, expected in zip(store.search(queries, K), scores, rows, strict=True):
        assert [hit.image_id for hit in answer] == [name_of(row) for row in expected]
        assert np.allclose([found.score for found in answer], expected_scores, atol=1e-6)


def compare(
    store: LanceStore, index: faiss.IndexFlatIP, queries: Tensor, name: str, where: str | None, *, clients: int
) -> dict[str, object]:
    """Return search times in milliseconds, ours and faiss alternating; faiss has no filter and always searches all."""
    condition = parse_filter(where, {**COLUMNS, **BUILT_IN}) if where else None

    def together(asked: Sequence[Tensor]) -> Sequence[list[Hit]]:
        return store.search(torch.stack(list(asked)), K, condition)

    batcher: Batcher[Tensor, list[Hit]] = Batcher("search", Metrics(), together, max_batch=128, max_waiting=1000)
    ours: list[float] = []
    bare: list[float] = []
    rounds = 4
    for part in queries.tensor_split(rounds):
        ours += ask(part, clients, lambda query: batcher.enqueue(query).result())
        bare += ask(part, clients, lambda query: index.search(query[None].numpy(), K))
    batcher.stop()
    figures: dict[str, object] = {"filter": name, "clients": clients}
    for side, times in (("ours", ours), ("faiss", bare)):
        times.sort()
        figures[f"{side}_p50_ms"] = round(statistics.median(times) * 1000, 2)
        figures[f"{side}_p99_ms"] = round(times[int(0.99 * (len(times) - 1))] * 1000, 2)
    figures["p50_ratio"] = round(statistics.median(bare) / statistics.median(ours), 2)
    return figures


def ask(queries: Tensor, clients: int, search: Callable[[Tensor], object]) -> list[float]:
    """Return the seconds of each query; a client sends the next query after the answer to the last."""
    seconds: list[float] = []
    rest = iter(range(max(len(queries), 2 * clients)))
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                number = next(rest, None)
            if number is None:
                return
            started = time.perf_counter()
            search(queries[number % len(queries)])
            seconds.append(time.perf_counter() - started)

    workers = [threading.Thread(target=client) for _ in range(clients)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return seconds


def in_new_process(side: str, folder: Path, crops: int, threads: int) -> dict[str, float]:
    words = ["--only-memory-of", side, "--folder", str(folder), "--crops", str(crops), "--threads", str(threads)]
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.gallery", *words], check=True, capture_output=True, encoding="utf-8"
    )
    figures: dict[str, float] = json.loads(finished.stdout)
    return figures


def memory_of_ours(folder: Path, crops: int) -> dict[str, float]:
    """Return the growth of a process by opening and searching, and the time of the first search."""
    query = torch.from_numpy(vectors_of(crops, crops + 1))
    before = resident_bytes()
    started = time.perf_counter()
    store = open_lance(folder, DIM, COLUMNS)
    store.search(query, K)
    first = time.perf_counter() - started
    for name in FILTERS.values():
        store.search(query, K, parse_filter(name, {**COLUMNS, **BUILT_IN}) if name else None)
    return {
        "bytes": resident_bytes() - before,
        "peak_bytes": peak_bytes() - before,
        "first_search_seconds": round(first, 2),
    }


def memory_of_faiss(folder: Path, crops: int) -> dict[str, float]:
    """Return the growth of a process by a flat index of the same vectors."""
    query = vectors_of(crops, crops + 1)
    before = resident_bytes()
    index = faiss.IndexFlatIP(DIM)
    for start in range(0, crops, ROWS_AT_ONCE):
        index.add(vectors_of(start, min(start + ROWS_AT_ONCE, crops)))
    index.search(query, K)
    return {"bytes": resident_bytes() - before, "peak_bytes": peak_bytes() - before}


def resident_bytes() -> int:
    return _status("VmRSS:")


def peak_bytes() -> int:
    return _status("VmHWM:")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


if __name__ == "__main__":
    main()
