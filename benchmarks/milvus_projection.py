"""Projection of `milvus_plan`: from measured segments to the requirements of a Milvus cluster. Nothing is measured.

All values are in bytes and seconds. `docs/large-galleries.md` has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.milvus_sizes import FETCHED, IndexSize
from cskt.gallery.stores.milvus.address import MAX_SHARDS

GB = 1e9


@dataclass(frozen=True)
class Assumptions:
    """Assumptions about the cluster; each is an option of the command."""

    segment_bytes: float = 2**30
    """Milvus merges segments up to this size, all fields counted (dataCoord.segment.maxSize, its default)."""
    disk_segment_bytes: float = 2**31
    """The same with DiskANN (dataCoord.segment.diskSegmentMaxSize, its default)."""
    growing_share: float = 0.12
    """Share of a segment's size at which it is closed and indexed (dataCoord.segment.sealProportion)."""
    partitions: int = 1
    """The option `partitions`, if the address names a column to partition by."""
    shard_bytes: float = 100 * GB
    """Data per shard, as Milvus recommends (create-collection.md)."""
    scalar_factor: float = 3
    """Memory of names, facts and metadata relative to their bytes: text headers, map of names, delete buffers."""
    node_bytes: float = 64 * GB
    """Memory of a query node."""
    node_share: float = 0.75
    """Share of the memory for segments; the rest is for requests, merging, and segments of a failed node."""
    node_cores: int = 16
    node_read_bytes: float = 100 * GB
    """Memory bandwidth of a query node, all cores together."""
    build_cores: int = 32
    """Cores of all nodes that build indexes."""
    built_times: float = 2
    """Times that a vector is indexed: when its segment is closed, and when it is merged."""
    disk_read_seconds: float = 1e-4
    """Time to read one vector from an NVMe disk, if the index does not contain it."""
    request_seconds: float = 5e-3
    """Proxy, network, merging, and the second request for names and metadata."""


@dataclass(frozen=True)
class Row:
    """Bytes of the parts of a crop in Milvus."""

    vector: int
    scalars: int
    thumbnail: int
    written_per_second: float
    """Crops that one core serialises per second."""

    @property
    def bytes(self) -> int:
        return self.vector + self.scalars + self.thumbnail


@dataclass(frozen=True)
class Index:
    """Bytes and times of an index per crop."""

    name: str
    memory_bytes: float
    disk_bytes: float
    segment_bytes: float
    """Size of a full segment."""


@dataclass(frozen=True)
class Plan:
    """Requirements of a gallery of a number of crops, one replica."""

    index: str
    crops: int
    segments: int
    memory_bytes: float
    """Memory of all query nodes."""
    nodes: int
    """Number of query nodes."""
    disk_bytes: float
    """Object storage, one copy: vectors, scalars, thumbnails, index."""
    shards: int
    write_hours: float
    """Lower bound: the time in which one core serialises all crops; a gallery has one writer."""
    build_hours: float | None = None
    """Time to build the index on all build cores; None if not measured, as the next."""
    p50_seconds: float | None = None
    """One query at a time, consistency other than strong."""


def grown(sizes: Sequence[IndexSize], value: Callable[[IndexSize], float], crops: float) -> float:
    """Extrapolate by the power law through the two largest measured sizes, its exponent within [0, 1]."""
    small, large = sorted(sizes, key=lambda size: size.crops)[-2:]
    power = math.log(value(large) / value(small)) / math.log(large.crops / small.crops)
    return value(large) * (crops / large.crops) ** min(1.0, max(0.0, power))


def plan(sizes: Sequence[IndexSize], crops: int, row: Row, given: Assumptions) -> Plan:
    """Project a number of crops from one index measured at several sizes."""
    largest = max(sizes, key=lambda size: size.crops)
    index_bytes = largest.index_bytes / largest.crops
    on_disk = 0.0 if largest.index == "flat" else index_bytes  # flat is the vectors themselves, stored once
    room = _room(Index(largest.index, index_bytes, on_disk, given.segment_bytes), crops, row, given)
    per_segment = min(crops, given.segment_bytes / row.bytes)
    on_node = room.segments / room.nodes
    crowding = max(1.0, largest.crowded_seconds / largest.search_seconds)
    one_segment = crowding * grown(sizes, lambda size: size.search_seconds, per_segment)
    computing = math.ceil(on_node / given.node_cores) * one_segment
    reading = on_node * grown(sizes, lambda size: size.read_bytes, per_segment) / given.node_read_bytes
    from_disk = FETCHED * given.disk_read_seconds if index_bytes < row.vector else 0.0
    building = grown(sizes, lambda size: size.build_core_seconds / size.crops, per_segment)
    return replace(
        room,
        build_hours=given.built_times * crops * building / given.build_cores / 3600,
        p50_seconds=max(computing, reading) + from_disk + given.request_seconds,
    )


def diskann_plan(crops: int, row: Row, given: Assumptions) -> Plan:
    """Return memory and disk by Milvus' defaults (common.DiskIndex), without times."""
    codes, cache, neighbours = row.vector * 0.125, row.vector * 0.1, 56 * 4
    on_disk = row.vector + neighbours + codes
    return _room(Index("diskann", codes + cache, on_disk, given.disk_segment_bytes), crops, row, given)


def _room(index: Index, crops: int, row: Row, given: Assumptions) -> Plan:
    """Return a plan without the times of the index."""
    shards = min(MAX_SHARDS, math.ceil(crops * row.bytes / given.shard_bytes))
    # Each partition of each shard ends in a segment that is not full, and has one that grows.
    segments = math.ceil(crops * row.bytes / index.segment_bytes) + shards * given.partitions - 1
    growing = shards * given.partitions * given.growing_share * index.segment_bytes
    memory = crops * (index.memory_bytes + given.scalar_factor * row.scalars) + growing
    return Plan(
        index=index.name,
        crops=crops,
        segments=segments,
        memory_bytes=memory,
        nodes=math.ceil(memory / (given.node_share * given.node_bytes)),
        disk_bytes=crops * (row.bytes + index.disk_bytes),
        shards=shards,
        write_hours=crops / row.written_per_second / 3600,
    )
