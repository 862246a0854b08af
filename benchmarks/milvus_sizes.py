"""Measurements at small sizes for `milvus_plan`: indexes as on Milvus' query nodes, and serialised crops.

Milvus searches FLAT, IVF and HNSW with a fork of faiss, so faiss represents one segment on a query node. Times are
processor times, which depend little on other load.

Vectors are synthetic: the 10 crops of a person differ, sentences are at a distance from the crops (the modality gap,
Liang et al. 2022), and all vary mainly along 64 of 512 directions. Real galleries can be easier or harder for an
approximate index, so measure recall on yours.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from pymilvus.client.prepare import Prepare

from cskt.gallery.stores.base import Crop, CropRecord
from cskt.gallery.stores.milvus.address import CollectionOptions
from cskt.gallery.stores.milvus.collection import FIELDS, to_row

DIM = 512
K = 10
FETCHED = K + 16
"""Hits that our store requests from Milvus and re-scores."""
THUMBNAIL_BYTES = 3000
CROPS_PER_PERSON = 10
LATENT = 64
NUM_CAMERAS = 8


@dataclass(frozen=True)
class IndexSize:
    """An index over one segment of a number of vectors."""

    index: str
    crops: int
    build_core_seconds: float
    index_bytes: int
    """Size when written; the same in memory."""
    search_seconds: float
    """Median time of one query on one thread, without other searches."""
    crowded_seconds: float
    """Median time with a search on every thread; they share caches and memory bandwidth."""
    read_bytes: float
    """Mean bytes of the index that one query reads."""
    recall: float
    """Share of the exact 10 best among the 26 fetched, in [0, 1]."""


def crops_of(count: int) -> NDArray[np.float32]:
    """Return unit vectors [count, D] of crops."""
    return _vectors(count, count // CROPS_PER_PERSON, seed=1, mean=0)


def sentences_of(count: int, crops: int) -> NDArray[np.float32]:
    """Return unit vectors [count, D] of sentences about the people in a number of crops."""
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
    """Return the rows [Q, K] of the exact best."""
    index = faiss.IndexFlatIP(DIM)
    index.add(crops)
    rows: NDArray[np.int64] = index.search(queries, K)[1]
    return rows


INDEXES = ("flat", "ivf_sq8", "hnsw")


def empty_index(name: str) -> Any:
    """Return an untrained index of faiss with the default parameters of the option of this name."""
    numbers = CollectionOptions(index=name).build_numbers() | CollectionOptions(index=name).search_numbers(FETCHED)
    if name == "flat":
        return faiss.IndexFlatIP(DIM)
    if name == "ivf_sq8":
        index: Any = faiss.index_factory(DIM, f"IVF{numbers['nlist']},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.nprobe = numbers["nprobe"]
        return index
    index = faiss.IndexHNSWFlat(DIM, numbers["M"], faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = numbers["efConstruction"], numbers["ef"]
    return index


def read_bytes(name: str, index: Any, queries: NDArray[np.float32]) -> float:
    """Return the mean bytes of vectors and codes that faiss reads for one query."""
    if name == "flat":
        return float(4 * DIM * index.ntotal)
    all_counts: Any = faiss.cvar
    counts = all_counts.indexIVF_stats if name == "ivf_sq8" else all_counts.hnsw_stats
    counts.reset()
    index.search(queries, FETCHED)
    compared = counts.ndis / len(queries)
    return float(DIM * compared + 4 * DIM * index.nlist if name == "ivf_sq8" else 4 * DIM * compared)


def measure_index(name: str, crops: int, num_queries: int, threads: int) -> IndexSize:
    """Measure one index over a number of vectors."""
    vectors, queries = crops_of(crops), sentences_of(num_queries, crops)
    exact = best_of(vectors, queries)
    faiss.omp_set_num_threads(threads)
    index = empty_index(name)
    started = time.process_time()
    index.train(vectors)
    index.add(vectors)
    core_seconds = time.process_time() - started
    faiss.omp_set_num_threads(1)

    def search(query: NDArray[np.float32]) -> tuple[float, NDArray[np.int64]]:
        started = time.thread_time()
        rows = index.search(query[None], FETCHED)[1][0]
        return time.thread_time() - started, rows

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
        read_bytes=read_bytes(name, index, queries),
        recall=sum(right) / exact.size,
    )


def crop_of(row: int, vector: NDArray[np.float32]) -> Crop:
    """Return a crop with a typical name and camera."""
    name, camera = f"camera-{row % NUM_CAMERAS}/2026-01-31/{row:09}.jpg", f"c{row % NUM_CAMERAS}"
    facts = CropRecord(name, 128, 384, 30_000, 1_769_817_600_123_456_789, f"{row:064x}", False, {"camera": camera})
    return Crop(facts, vector, np.random.default_rng(row).bytes(THUMBNAIL_BYTES))  # a JPEG cannot be compressed


def rows_written_per_second(crops: int) -> float:
    """Measure the crops per second that one core serialises; the speed of a server is not measured."""
    batch = [crop_of(row, vector) for row, vector in enumerate(crops_of(crops))]
    fields = [{"name": name, "type": kind, "is_primary": name == "image_id"} for name, kind in FIELDS.items()]
    for field in fields:
        field["params"] = {"dim": DIM} if field["name"] == "vector" else {"max_length": 65_535}
    started = time.process_time()
    rows = [to_row(crop, {"camera": "text"}, None) for crop in batch]
    Prepare.row_upsert_param("crops", rows, "", fields, enable_dynamic=True).SerializeToString()
    return crops / (time.process_time() - started)
