"""Small sizes measured for `milvus_plan`: indexes as Milvus' query nodes hold them, and our stores around them.

Milvus' engine searches FLAT, IVF and HNSW with a fork of faiss, so faiss stands for one segment on a query node. Stores
are measured whole, with names, metadata and thumbnails, each in a process of its own.

Vectors are made, not encoded: 10 crops of a person differ as crops do, sentences lie off the crops (the gap between
modalities, Liang et al. 2022), and all have 64 directions that matter among 512. Real galleries may be easier or
harder for an approximate index: measure recall on yours.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from cskt.gallery.store import Crop, CropFacts, VectorStore

DIM = 512
K = 10
FETCHED = K + 16
"""Hits that our store asks Milvus for, to score them again."""
THUMBNAIL_BYTES = 3000
CROPS_PER_PERSON = 10
LATENT = 64
ROWS_AT_ONCE = 5000
NUM_CAMERAS = 8


@dataclass(frozen=True)
class IndexSize:
    """An index over one segment of so many vectors."""

    index: str
    crops: int
    build_core_seconds: float
    """Seconds times threads."""
    index_bytes: int
    """As it is written; in memory it is as large."""
    search_seconds: float
    """Median of one query on one thread, nothing else running."""
    crowded_seconds: float
    """Median with a search on every thread at once: they share caches and the way to memory."""
    recall: float
    """Of the exact 10 best, how many are among the 26 fetched, in [0, 1]."""


@dataclass(frozen=True)
class StoreSize:
    """A store of so many crops."""

    store: str
    crops: int
    stored_per_second: float
    tidy_seconds: float
    """To merge what was added and to build the index."""
    memory_bytes: int
    """What the process grows by until it has searched."""
    disk_bytes: int
    search_seconds: float
    """Median of one query, k = 10, names and metadata included."""
    states_seconds: float
    """To read every crop's file state, as each `cskt index` does first."""
    recall: float


def crops_of(count: int) -> NDArray[np.float32]:
    """[count, D] unit vectors of crops."""
    return _vectors(count, count // CROPS_PER_PERSON, seed=1, mean=0)


def sentences_of(count: int, crops: int) -> NDArray[np.float32]:
    """[count, D] unit vectors of sentences about the people of so many crops."""
    return _vectors(count, crops // CROPS_PER_PERSON, seed=2, mean=1)


def _vectors(count: int, num_people: int, seed: int, mean: int) -> NDArray[np.float32]:
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    directions = world.standard_normal((LATENT, DIM), np.float32) / np.sqrt(np.float32(LATENT))
    means = world.standard_normal((2, DIM), np.float32) / np.sqrt(np.float32(DIM))
    people = np.random.default_rng(3).standard_normal((num_people, LATENT), np.float32)
    seen = people[rng.integers(0, num_people, count)] + 0.5 * rng.standard_normal((count, LATENT), np.float32)
    vectors = seen @ directions + 0.3 * rng.standard_normal((count, DIM), np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) + means[mean]
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def best_of(crops: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """[Q, K] rows of the exact best."""
    index = faiss.IndexFlatIP(DIM)
    index.add(crops)
    rows: NDArray[np.int64] = index.search(queries, K)[1]
    return rows


def empty_indexes() -> dict[str, Callable[[int], Any]]:
    """Name -> an untrained index for so many vectors, with the numbers that `milvus_options` has by default."""

    def ivf_sq8(crops: int) -> Any:
        cells = faiss.IndexFlatIP(DIM)
        index = faiss.IndexIVFScalarQuantizer(
            cells, DIM, 128, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.own_fields, index.nprobe = True, 16
        cells.this.disown()
        return index

    def hnsw(crops: int) -> Any:
        index = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
        return index

    return {"flat": lambda crops: faiss.IndexFlatIP(DIM), "ivf_sq8": ivf_sq8, "hnsw": hnsw}


def measure_index(name: str, crops: int, num_queries: int, threads: int) -> IndexSize:
    """One index over so many vectors."""
    vectors, queries = crops_of(crops), sentences_of(num_queries, crops)
    exact = best_of(vectors, queries)
    faiss.omp_set_num_threads(threads)
    index = empty_indexes()[name](crops)
    started = time.perf_counter()
    index.train(vectors)
    index.add(vectors)
    core_seconds = threads * (time.perf_counter() - started)
    faiss.omp_set_num_threads(1)

    def search(query: NDArray[np.float32]) -> tuple[float, NDArray[np.int64]]:
        started = time.perf_counter()
        rows = index.search(query[None], FETCHED)[1][0]
        return time.perf_counter() - started, rows

    alone = [search(query) for query in queries]
    with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        crowded = list(pool.map(search, [*queries] * threads))
    right = [len({*rows} & {*best}) for (_, rows), best in zip(alone, exact, strict=True)]
    return IndexSize(
        index=name,
        crops=crops,
        build_core_seconds=core_seconds,
        index_bytes=len(faiss.serialize_index(index)),
        search_seconds=statistics.median(seconds for seconds, _ in alone),
        crowded_seconds=statistics.median(seconds for seconds, _ in crowded),
        recall=sum(right) / exact.size,
    )


def crop_of(row: int, vector: NDArray[np.float32]) -> Crop:
    """A crop as a camera of a building would name it."""
    name, camera = f"camera-{row % NUM_CAMERAS}/2026-01-31/{row:09}.jpg", f"c{row % NUM_CAMERAS}"
    facts = CropFacts(name, 128, 384, 30_000, 1_769_817_600_123_456_789, f"{row:064x}", False, {"camera": camera})
    return Crop(facts, vector, np.random.default_rng(row).bytes(THUMBNAIL_BYTES))  # a JPEG cannot be compressed


def _open(store: str, folder: Path) -> VectorStore:
    if store.startswith("lance"):
        from cskt.gallery.lance import MATRIX_LIMIT, open_lance  # noqa: PLC0415  (not where Milvus' memory is measured)

        limit = MATRIX_LIMIT if store == "lance, matrix" else 0
        return open_lance(folder, DIM, {"camera": "text"}, matrix_limit=limit)
    from cskt.gallery.milvus import open_milvus  # noqa: PLC0415  (the same)

    return open_milvus(f"milvus:{folder}/crops.db?index={store.removeprefix('milvus-lite, ')}", DIM, {"camera": "text"})


STORES = ("lance, matrix", "lance, index", "milvus-lite, flat", "milvus-lite, hnsw")


def measure_store(name: str, crops: int, num_queries: int, threads: int) -> StoreSize:
    """One store of so many crops: filled by one process, searched by another."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with ProcessPoolExecutor(1, mp_context=context) as process:
            storing, tidying = process.submit(_fill, name, folder, crops, threads).result()
        with ProcessPoolExecutor(1, mp_context=context) as process:
            memory, seconds, states, recall = process.submit(
                _search, name, folder, crops, num_queries, threads
            ).result()
        disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return StoreSize(name, crops, crops / storing, tidying, memory, disk, seconds, states, recall)


def _fill(name: str, folder: Path, crops: int, threads: int) -> tuple[float, float]:
    """Seconds to add all crops, and to merge and index them."""
    _prepare(threads)
    vectors, store, storing = crops_of(crops), _open(name, folder), 0.0
    for start in range(0, crops, ROWS_AT_ONCE):
        batch = [crop_of(row, vectors[row]) for row in range(start, min(start + ROWS_AT_ONCE, crops))]
        started = time.perf_counter()
        store.add(batch)
        storing += time.perf_counter() - started
    started = time.perf_counter()
    store.compact()
    store.close()
    _open(name, folder).close()  # milvus-lite builds what its background has not yet built
    return storing, time.perf_counter() - started


def _search(name: str, folder: Path, crops: int, num_queries: int, threads: int) -> tuple[int, float, float, float]:
    """Bytes that the process grows by, median seconds of a search, seconds to read all file states, recall."""
    _prepare(threads)
    queries = sentences_of(num_queries, crops)
    exact = best_of(crops_of(crops), queries)
    _open(name, folder).close()  # what importing takes is not counted
    before = _resident_bytes()
    store = _open(name, folder)
    seconds, recall = _searches(store, queries, exact)
    memory = _resident_bytes() - before
    started = time.perf_counter()
    assert len(store.files()) == crops
    states = time.perf_counter() - started
    store.close()
    return memory, seconds, states, recall


def _prepare(threads: int) -> None:
    os.environ["LANCE_LOG"] = "error"  # it warns of its own future at every search
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def _searches(store: VectorStore, queries: NDArray[np.float32], exact: NDArray[np.int64]) -> tuple[float, float]:
    """Median seconds of a search after the first, which loads; and recall."""
    seconds, right = [], 0
    for query, best in zip(queries, exact, strict=True):
        started = time.perf_counter()
        [hits] = store.search(torch.from_numpy(query)[None], K)
        seconds.append(time.perf_counter() - started)
        right += len({int(Path(hit.facts.image_id).stem) for hit in hits} & {*best.tolist()})
    return statistics.median(seconds[1:]), right / exact.size


def _resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


def rows_written_per_second(crops: int) -> float:
    """How fast one process turns crops into messages to a server; how fast that takes them is not known here."""
    from pymilvus.client.prepare import Prepare  # noqa: PLC0415  (not where Lance's memory is measured)

    from cskt.gallery.milvus_rows import to_row  # noqa: PLC0415
    from cskt.gallery.milvus_server import FIELDS  # noqa: PLC0415

    vectors = crops_of(crops)
    batch = [crop_of(row, vector) for row, vector in enumerate(vectors)]
    fields = [{"name": name, "type": kind, "is_primary": name == "image_id"} for name, kind in FIELDS.items()]
    for field in fields:
        field["params"] = {"dim": DIM} if field["name"] == "vector" else {"max_length": 65_535}
    started = time.perf_counter()
    rows = [to_row(crop, {"camera": "text"}, None) for crop in batch]
    Prepare.row_upsert_param("crops", rows, "", fields, enable_dynamic=True).SerializeToString()
    return crops / (time.perf_counter() - started)


def measured_indexes(sizes: Sequence[int], num_queries: int, threads: int) -> list[IndexSize]:
    """Every index at every size."""
    return [measure_index(name, crops, num_queries, threads) for name in empty_indexes() for crops in sizes]
