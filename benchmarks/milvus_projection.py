"""The arithmetic of `milvus_plan`: measured segments in, what a Milvus cluster would need out. Nothing here measures.

Bytes and seconds throughout; every formula stands beside its figure in `docs/large-galleries.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.milvus_sizes import FETCHED, IndexSize
from cskt.gallery.stores.milvus.options import MOST_SHARDS

GB = 1e9


@dataclass(frozen=True)
class Assumptions:
    """What is not measured here. Change it to what you have: each is a flag."""

    segment_bytes: float = 2**30
    """Milvus merges segments up to this size, all fields counted (dataCoord.segment.maxSize, its default)."""
    disk_segment_bytes: float = 2**31
    """The same with DiskANN (dataCoord.segment.diskSegmentMaxSize, its default)."""
    growing_share: float = 0.12
    """Of a segment, how large it grows before it is sealed and indexed (dataCoord.segment.sealProportion)."""
    partitions: int = 1
    """The option `partitions`, where the address names a column to partition by."""
    shard_bytes: float = 100 * GB
    """Data per shard, Milvus' own advice (create-collection.md)."""
    scalar_factor: float = 3
    """Memory of names, facts and metadata over their plain bytes: text headers, the map of names, delete buffers."""
    node_bytes: float = 64 * GB
    """Memory of a query node."""
    node_share: float = 0.75
    """Of it that segments may fill; the rest is for requests, merging, and segments of a node that fails."""
    node_cores: int = 16
    node_read_bytes: float = 100 * GB
    """What all cores of a query node read from its memory in a second."""
    build_cores: int = 32
    """Of all nodes that build indexes together."""
    built_times: float = 2
    """How often a vector is put into an index: once when its segment is sealed, once when that is merged."""
    disk_read_seconds: float = 1e-4
    """To read one vector from an NVMe disk, where the index does not hold it."""
    request_seconds: float = 5e-3
    """Proxy, network, merging, the second request for names and metadata."""


@dataclass(frozen=True)
class Row:
    """A crop in Milvus: plain bytes of its parts."""

    vector: int
    scalars: int
    thumbnail: int
    written_per_second: float
    """How many such one core makes into messages."""

    @property
    def bytes(self) -> int:
        return self.vector + self.scalars + self.thumbnail


@dataclass(frozen=True)
class Index:
    """What an index takes of a crop."""

    name: str
    memory_bytes: float
    disk_bytes: float
    segment_bytes: float
    """How large segments become."""


@dataclass(frozen=True)
class Plan:
    """What a gallery of so many crops would take; one replica."""

    index: str
    crops: int
    segments: int
    memory_bytes: float
    """Of all query nodes."""
    nodes: int
    """Query nodes."""
    disk_bytes: float
    """Object storage, one copy: vectors, scalars, thumbnails, index."""
    shards: int
    write_hours: float
    """At least: until one core has made all messages; a gallery has one writer at a time."""
    build_hours: float | None = None
    """Of the index, on all build cores, beside the writing; none where it was not measured, as with the next."""
    p50_seconds: float | None = None
    """One query at a time, consistency other than strong."""


def grown(sizes: Sequence[IndexSize], value: Callable[[IndexSize], float], crops: float) -> float:
    """A value at another size: the power law through the two largest measured, its power within [0, 1]."""
    small, large = sorted(sizes, key=lambda size: size.crops)[-2:]
    power = math.log(value(large) / value(small)) / math.log(large.crops / small.crops)
    return value(large) * (crops / large.crops) ** min(1.0, max(0.0, power))


def plan(sizes: Sequence[IndexSize], crops: int, row: Row, given: Assumptions) -> Plan:
    """What so many crops take, from one index measured at several sizes."""
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
    """Memory and disk by Milvus' defaults (common.DiskIndex); no time is known here."""
    codes, cache, neighbours = row.vector * 0.125, row.vector * 0.1, 56 * 4
    on_disk = row.vector + neighbours + codes
    return _room(Index("diskann", codes + cache, on_disk, given.disk_segment_bytes), crops, row, given)


def _room(index: Index, crops: int, row: Row, given: Assumptions) -> Plan:
    """A plan without the times of the index."""
    shards = min(MOST_SHARDS, math.ceil(crops * row.bytes / given.shard_bytes))
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
