"""What 10 and 100 million crops would ask of a Milvus cluster: a projection from small sizes that are measured here.

    python -m benchmarks.milvus_plan                     # measures, then projects; a quarter of an hour on two cores
    python -m benchmarks.milvus_plan --quick             # small sizes: shows that it runs
    python -m benchmarks.milvus_plan --only-indexes      # without our stores

Milvus keeps vectors in segments and searches each of them on its own. A larger gallery has more segments, not larger
ones, so what is extrapolated is mostly their number: the time of one segment lies near the largest size measured.
Every formula stands beside its figure in `docs/large-galleries.md`. Needs `pip install faiss-cpu`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.milvus_sizes import (
    DIM,
    FETCHED,
    STORES,
    IndexSize,
    StoreSize,
    crop_of,
    crops_of,
    measure_store,
    measured_indexes,
    rows_written_per_second,
)
from cskt.gallery.milvus_rows import to_row

SIZES = (10_000, 30_000, 100_000)
QUICK = (1000, 2000, 4000)
PROJECTED = (10_000_000, 100_000_000)
WRITTEN = 5000
"""Crops that are made into messages, as many as go into one commit or two."""
GB = 1e9


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here. Change it to what you have."""

    segment_bytes: float = 2**30
    """Milvus merges segments up to this size, all fields counted (dataCoord.segment.maxSize, its default)."""
    node_bytes: float = 64 * GB
    """Memory of a query node."""
    node_share: float = 0.75
    """Of it that segments may fill; the rest is for growing segments, requests, and a node that fails."""
    node_cores: int = 16
    build_cores: int = 32
    """Of all data nodes that build indexes together."""
    built_times: float = 2
    """How often a vector is put into an index: once when its segment is sealed, once when that is merged."""
    scalar_factor: float = 3
    """Memory of names, facts and metadata over their plain bytes: text headers, the map of names, delete buffers."""
    shard_bytes: float = 100 * GB
    """Data per shard, Milvus' own advice (create-collection.md)."""
    disk_read_seconds: float = 1e-4
    """To read one vector from an NVMe disk, where the index does not hold it."""
    request_seconds: float = 5e-3
    """Proxy, network, merging, the second request for names and metadata."""


@dataclass(frozen=True)
class RowBytes:
    """Plain bytes of a crop in Milvus."""

    vector: int
    scalars: int
    thumbnail: int

    @property
    def total(self) -> int:
        return self.vector + self.scalars + self.thumbnail


@dataclass(frozen=True)
class Plan:
    """What a gallery of so many crops would take."""

    index: str
    crops: int
    segments: int
    memory_bytes: float
    """Of all query nodes, one replica."""
    nodes: int
    """Query nodes."""
    disk_bytes: float
    """Object storage, one copy: vectors, scalars, thumbnails, index."""
    shards: int
    write_hours: float
    """Until one writing process has made all messages; a gallery has one writer at a time."""
    build_hours: float | None
    """Of the index, on all build cores, beside the writing; none where it was not measured, as with the next."""
    p50_seconds: float | None
    """One query at a time, consistency other than strong."""


def row_bytes() -> RowBytes:
    """Of a crop as our store writes it."""
    row = to_row(crop_of(1, crops_of(10)[1]), {"camera": "text"}, "camera")
    thumbnail = len(row.pop("thumbnail"))
    vector = row.pop("vector").nbytes
    # A double, an int64; a bool is a byte. Texts of the dynamic field carry their keys, as Milvus keeps it as JSON.
    sizes = [len(name) + len(value) if isinstance(value, str) else 8 for name, value in row.items()]
    return RowBytes(vector, sum(sizes), thumbnail)


def line(
    sizes: Sequence[IndexSize], of: Callable[[float], float], value: Callable[[IndexSize], float]
) -> Callable[[float], float]:
    """The least-squares a + b * of(crops) through the measured values, as a function of crops; b at least 0."""
    x = np.array([of(size.crops) for size in sizes])
    y = np.array([value(size) for size in sizes])
    slope = max(0.0, float(np.polyfit(x, y, 1)[0]))
    start = float(np.mean(y - slope * x))
    return lambda crops: start + slope * of(crops)


def plan(sizes: Sequence[IndexSize], crops: int, row: RowBytes, written_per_second: float, given: Assumptions) -> Plan:
    """What so many crops take, from one index measured at several sizes."""
    name, largest = sizes[0].index, max(sizes, key=lambda size: size.crops)
    per_segment = given.segment_bytes / row.total
    segments = math.ceil(crops / per_segment)
    index_bytes = largest.index_bytes / largest.crops
    memory = crops * (index_bytes + given.scalar_factor * row.scalars)
    nodes = math.ceil(memory / (given.node_share * given.node_bytes))
    # HNSW walks ever more steps, but few more; the others read a fixed share of the vectors.
    grows: Callable[[float], float] = math.log if name == "hnsw" else float
    one_segment = line(sizes, grows, lambda size: size.search_seconds)(per_segment)
    crowding = max(1.0, largest.crowded_seconds / largest.search_seconds)
    waves = math.ceil(math.ceil(segments / nodes) / given.node_cores)
    from_disk = FETCHED * given.disk_read_seconds if index_bytes < row.vector else 0.0
    each = line(sizes, math.log, lambda size: size.build_core_seconds / size.crops)(per_segment)
    return Plan(
        index=name,
        crops=crops,
        segments=segments,
        memory_bytes=memory,
        nodes=nodes,
        disk_bytes=crops * (row.total + index_bytes),
        shards=min(16, math.ceil(crops * row.total / given.shard_bytes)),
        write_hours=crops / written_per_second / 3600,
        build_hours=given.built_times * crops * each / given.build_cores / 3600,
        p50_seconds=waves * one_segment * crowding + from_disk + given.request_seconds,
    )


def diskann_plan(crops: int, row: RowBytes, written_per_second: float, given: Assumptions) -> Plan:
    """Memory and disk by Milvus' defaults: codes of 1/8 of the vectors, a cache of 1/10; no time is known here."""
    memory = crops * (row.vector * (0.125 + 0.1) + given.scalar_factor * row.scalars)
    graph = 56 * 4  # neighbours of a vector
    return Plan(
        index="diskann",
        crops=crops,
        segments=math.ceil(crops * row.total / given.segment_bytes),
        memory_bytes=memory,
        nodes=math.ceil(memory / (given.node_share * given.node_bytes)),
        disk_bytes=crops * (row.total + row.vector * 1.125 + graph),
        shards=min(16, math.ceil(crops * row.total / given.shard_bytes)),
        write_hours=crops / written_per_second / 3600,
        build_hours=None,
        p50_seconds=None,
    )


def plans(measured: Sequence[IndexSize], row: RowBytes, written_per_second: float, given: Assumptions) -> list[Plan]:
    """Every index at every size that is projected."""
    by_index: dict[str, list[IndexSize]] = {}
    for size in measured:
        by_index.setdefault(size.index, []).append(size)
    found = []
    for crops in PROJECTED:
        found += [plan(sizes, crops, row, written_per_second, given) for sizes in by_index.values()]
        found.append(diskann_plan(crops, row, written_per_second, given))
    return found


def index_table(sizes: Sequence[IndexSize]) -> str:
    """Measured indexes in Markdown."""
    return markdown(
        ["index", "crops", "build, core seconds", "bytes per crop", "p50", "p50, all cores busy", "recall"],
        [
            [
                size.index,
                f"{size.crops:,}",
                f"{size.build_core_seconds:.1f}",
                f"{size.index_bytes / size.crops:,.0f}",
                f"{1e3 * size.search_seconds:.2f} ms",
                f"{1e3 * size.crowded_seconds:.2f} ms",
                f"{size.recall:.3f}",
            ]
            for size in sizes
        ],
    )


def store_table(sizes: Sequence[StoreSize]) -> str:
    """Measured stores in Markdown."""
    return markdown(
        [
            "store",
            "crops",
            "stored per second",
            "merge, index",
            "memory",
            "disk per crop",
            "p50",
            "file states",
            "recall",
        ],
        [
            [
                size.store,
                f"{size.crops:,}",
                f"{size.stored_per_second:,.0f}",
                f"{size.tidy_seconds:.1f} s",
                f"{size.memory_bytes / GB:.2f} GB",
                f"{size.disk_bytes / size.crops:,.0f} B",
                f"{1e3 * size.search_seconds:.0f} ms",
                f"{size.states_seconds:.1f} s",
                f"{size.recall:.3f}",
            ]
            for size in sizes
        ],
    )


def plan_table(found: Sequence[Plan]) -> str:
    """The projection in Markdown."""
    return markdown(
        ["index", "crops", "segments", "memory", "query nodes", "disk", "shards", "writing", "index build", "p50"],
        [
            [
                each.index,
                f"{each.crops // 1_000_000} M",
                f"{each.segments:,}",
                f"{each.memory_bytes / GB:,.0f} GB",
                f"{each.nodes}",
                f"{each.disk_bytes / GB:,.0f} GB",
                f"{each.shards}",
                f"{each.write_hours:.1f} h",
                "not known" if each.build_hours is None else f"{each.build_hours:.1f} h",
                "not known" if each.p50_seconds is None else f"{1e3 * each.p50_seconds:.0f} ms",
            ]
            for each in found
        ],
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def main() -> None:
    """Print the tables of `docs/large-galleries.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, says nothing of size")
    parser.add_argument("--only-indexes", action="store_true", help="leave our stores out")
    parser.add_argument("--queries", type=int, default=100, help="of each measurement")
    parser.add_argument("--threads", type=int, default=measure.THREADS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    args = parser.parse_args()
    sizes = QUICK if args.quick else SIZES
    machine, row, given = measure.machine(), row_bytes(), Assumptions()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    written_per_second = rows_written_per_second(WRITTEN)
    indexes = measured_indexes(sizes, args.queries, args.threads)
    print(f"\nMeasured: one segment of {DIM} numbers, faiss\n\n{index_table(indexes)}", flush=True)
    stores = []
    for store in () if args.only_indexes else STORES:
        for crops in sizes:
            print(f"measuring {store}, {crops:,} crops ...", file=sys.stderr, flush=True)
            stores.append(measure_store(store, crops, args.queries, args.threads))
    if stores:
        print(f"\nMeasured: our stores\n\n{store_table(stores)}")
    found = plans(indexes, row, written_per_second, given)
    print(
        f"\nPROJECTION, not measured; a crop has {row}; one process writes\n{written_per_second:,.0f} crops per second\n\n{plan_table(found)}"
    )
    if args.json:
        parts = {"indexes": indexes, "stores": stores, "plans": found}
        content = {name: [asdict(each) for each in part] for name, part in parts.items()}
        content |= {"machine": [machine], "assumptions": [asdict(given)], "row": [asdict(row)]}
        content |= {"written_per_second": [{"crops": written_per_second}]}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
