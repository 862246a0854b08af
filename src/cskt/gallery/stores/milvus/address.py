"""Address of a Milvus collection: the server or file, and the options after a `?`.

    milvus://HOST:PORT/COLLECTION?index=hnsw&ef=256&partition=camera&consistency=bounded
    milvus:FILE.db

All options but the search numbers (`ef`, `nprobe`, `search_list`) and the consistency are fixed when the collection is
made. Defaults are ours, not Milvus', so that a newer server changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from cskt.errors import CsktError
from cskt.gallery.columns import column_name

CONSISTENCY = {"strong": "Strong", "session": "Session", "bounded": "Bounded", "eventually": "Eventually"}
"""Option -> Milvus' name. It applies to searches; reads on which a write depends are always Strong."""
MAX_PARTITIONS = 1024
"""Partitions of a collection that a server allows by default."""
MAX_SHARDS = 16
"""Shards of a collection that a server allows by default."""
_SERVER = re.compile(
    r"milvus://(?P<host>[^/:@\s]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]+)/(?P<name>[A-Za-z_]\w*)", re.ASCII
)


@dataclass(frozen=True)
class IndexNumber:
    """A whole number that configures an index."""

    milvus_name: str
    default: int
    minimum: int
    maximum: int


@dataclass(frozen=True)
class VectorIndex:
    """A kind of vector index."""

    milvus_type: str
    build: Mapping[str, IndexNumber] = field(default_factory=dict)
    search: Mapping[str, IndexNumber] = field(default_factory=dict)
    counts_candidates: bool = False
    """True if the search number counts candidates, of which there must be at least as many as requested hits."""
    in_lite: bool = True
    """True if milvus-lite supports it."""


_NLIST = {"nlist": IndexNumber("nlist", 128, 1, 65_536)}
_NPROBE = {"nprobe": IndexNumber("nprobe", 16, 1, 65_536)}
INDEXES = {
    "flat": VectorIndex("FLAT"),
    "ivf_flat": VectorIndex("IVF_FLAT", _NLIST, _NPROBE),
    "ivf_sq8": VectorIndex("IVF_SQ8", _NLIST, _NPROBE),
    "hnsw": VectorIndex(
        "HNSW",
        build={"m": IndexNumber("M", 16, 2, 2048), "ef_construction": IndexNumber("efConstruction", 200, 1, 65_536)},
        search={"ef": IndexNumber("ef", 128, 1, 32_768)},
        counts_candidates=True,
    ),
    "diskann": VectorIndex(
        "DISKANN",
        search={"search_list": IndexNumber("search_list", 100, 1, 65_535)},
        counts_candidates=True,
        in_lite=False,
    ),
}
"""Option -> index; all but `flat` are approximate: they may miss crops, but scores are exact."""


@dataclass(frozen=True)
class CollectionOptions:
    """Options of an address."""

    index: str = "flat"
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Given numbers of the index; the others have their defaults."""
    partition: str | None = None
    """Metadata column whose values are stored in partitions of their own."""
    partitions: int = 16
    """Number of partitions over which these values are distributed, by their hash."""
    shards: int = 1
    """Streams that accept writes."""
    consistency: str = "strong"

    @property
    def is_exact(self) -> bool:
        """True if a search compares every vector."""
        return self.index == "flat"

    def build_numbers(self) -> dict[str, int]:
        """Return the parameters with which the index is built, under Milvus' names."""
        return self._by_milvus_name(INDEXES[self.index].build)

    def search_numbers(self, limit: int) -> dict[str, int]:
        """Return the parameters of a search for `limit` hits, under Milvus' names."""
        index = INDEXES[self.index]
        numbers = self._by_milvus_name(index.search)
        return {name: max(value, limit) for name, value in numbers.items()} if index.counts_candidates else numbers

    def _by_milvus_name(self, known: Mapping[str, IndexNumber]) -> dict[str, int]:
        return {number.milvus_name: self.numbers.get(name, number.default) for name, number in known.items()}


def read_address(url: str, generation: str = "") -> tuple[str, str]:
    """Return the address to which pymilvus connects, and the collection's name there, which ends in `generation`."""
    suffix = f"_{generation}" if generation else ""
    place = url.partition("?")[0]
    if server := _SERVER.fullmatch(place):
        return f"http://{server['host']}:{server['port']}", server["name"] + suffix
    path = Path(place.removeprefix("milvus:"))
    if place.startswith("milvus://") or not place.startswith("milvus:") or path.suffix != ".db":
        raise CsktError(f"store '{url}' is not understood; expected milvus:FILE.db or milvus://HOST:PORT/COLLECTION")
    if not path.parent.is_dir():
        raise CsktError(f"{url}: no folder {path.parent}; make it first")
    return str(path.resolve()), f"crops{suffix}"


def read_options(url: str) -> CollectionOptions:
    """Return the options of an address."""
    place, _, query = url.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    if len(given) < len(pairs):
        raise CsktError(f"{url}: an option is given twice; leave one out")
    index = _one_of(url, "index", given.pop("index", "flat"), INDEXES)
    consistency = _one_of(url, "consistency", given.pop("consistency", "strong"), CONSISTENCY)
    partition = given.pop("partition", None)
    if partition is not None and column_name(partition) != partition:
        raise CsktError(f"{url}: partition={partition} is no column; metadata calls it {column_name(partition)}")
    if partition is None and "partitions" in given:
        raise CsktError(f"{url}: partitions={given['partitions']} need a column; name one, too: partition=camera")
    partitions = _whole(url, "partitions", given.pop("partitions", "16"), 1, MAX_PARTITIONS)
    shards = _whole(url, "shards", given.pop("shards", "1"), 1, MAX_SHARDS)
    options = CollectionOptions(index, _numbers(url, index, given), partition, partitions, shards, consistency)
    nprobe, nlist = options.search_numbers(1).get("nprobe", 0), options.build_numbers().get("nlist", 0)
    if nprobe > nlist:
        raise CsktError(f"{url}: nprobe={nprobe} cells of nlist={nlist}; visit no more than there are")
    if place.endswith(".db"):  # milvus-lite would fail while it searches, or ignore the option
        if not INDEXES[index].in_lite:
            in_lite = ", ".join(name for name, known in INDEXES.items() if known.in_lite)
            raise CsktError(f"{url}: milvus-lite has no index '{index}'; expected {in_lite}, or a server")
        if (partitions, shards) != (16, 1):
            raise CsktError(f"{url}: milvus-lite has 16 partitions and one shard; leave the number out")
    return options


def _numbers(url: str, index: str, given: Mapping[str, str]) -> dict[str, int]:
    known = {**INDEXES[index].build, **INDEXES[index].search}
    for name in given:
        if name not in known:
            of = [other for other, each in INDEXES.items() if name in {*each.build, *each.search}]
            others = ", ".join(["index", "partition", "partitions", "shards", "consistency", *known])
            hint = f"is for index={' or '.join(of)}, not {index}" if of else f"is unknown; expected {others}"
            raise CsktError(f"{url}: option '{name}' {hint}")
    return {name: _whole(url, name, text, known[name].minimum, known[name].maximum) for name, text in given.items()}


def _one_of(url: str, option: str, value: str, known: Mapping[str, object]) -> str:
    if value not in known:
        raise CsktError(f"{url}: {option}={value} is unknown; expected {', '.join(known)}")
    return value


def _whole(url: str, option: str, text: str, minimum: int, maximum: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and minimum <= int(text) <= maximum):
        raise CsktError(f"{url}: {option}={text}; expected a whole number from {minimum} to {maximum:,}")
    return int(text)
