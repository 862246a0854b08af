"""What the address of a Milvus collection says beside the place: index, partitions, shards, consistency.

    milvus://HOST:PORT/COLLECTION?index=hnsw&ef=256&partition=camera&consistency=bounded

All but the search numbers (`ef`, `nprobe`, `search_list`) and the consistency are fixed when the collection is made.
Defaults are ours, not Milvus', so that a newer server changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from cskt.errors import CsktError
from cskt.gallery.columns import column_name

CONSISTENCY = {"strong": "Strong", "session": "Session", "bounded": "Bounded", "eventually": "Eventually"}
"""Option -> Milvus' name. What a search promises to see; everything that a write depends on is read as Strong."""
MOST_PARTITIONS = 1024
"""Of a collection, as a server is configured by default."""
MOST_SHARDS = 16
"""The same."""


@dataclass(frozen=True)
class Number:
    """A whole number that an index takes."""

    milvus_name: str
    default: int
    least: int
    most: int


@dataclass(frozen=True)
class Index:
    """A kind of vector index."""

    milvus_type: str
    build: Mapping[str, Number] = field(default_factory=dict)
    search: Mapping[str, Number] = field(default_factory=dict)
    widens: bool = False
    """Whether the search number counts candidates, of which there must be as many as hits are asked for."""
    in_lite: bool = True
    """Whether milvus-lite has it."""


_NLIST = {"nlist": Number("nlist", 128, 1, 65_536)}
_NPROBE = {"nprobe": Number("nprobe", 16, 1, 65_536)}
INDEXES = {
    "flat": Index("FLAT"),
    "ivf_flat": Index("IVF_FLAT", _NLIST, _NPROBE),
    "ivf_sq8": Index("IVF_SQ8", _NLIST, _NPROBE),
    "hnsw": Index(
        "HNSW",
        build={"m": Number("M", 16, 2, 2048), "ef_construction": Number("efConstruction", 200, 1, 65_536)},
        search={"ef": Number("ef", 128, 1, 32_768)},
        widens=True,
    ),
    "diskann": Index(
        "DISKANN", search={"search_list": Number("search_list", 100, 1, 65_535)}, widens=True, in_lite=False
    ),
}
"""Option -> index; all but `flat` are approximate: they may miss crops, never misstate a score."""


@dataclass(frozen=True)
class Options:
    """What stands behind the `?` of an address."""

    index: str = "flat"
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Those of the index that were given; the others have their defaults."""
    partition: str | None = None
    """Metadata column whose values lie in partitions of their own."""
    partitions: int = 16
    """How many partitions these values are spread over, by their hash."""
    shards: int = 1
    """Streams that take writes."""
    consistency: str = "strong"

    @property
    def is_exact(self) -> bool:
        """Whether a search looks at every vector."""
        return self.index == "flat"

    def build_numbers(self) -> dict[str, int]:
        """What the index is built with, in Milvus' words."""
        return self._in_milvus_words(INDEXES[self.index].build)

    def search_numbers(self, limit: int) -> dict[str, int]:
        """What a search for `limit` hits is made with, in Milvus' words."""
        index = INDEXES[self.index]
        numbers = self._in_milvus_words(index.search)
        return {name: max(value, limit) for name, value in numbers.items()} if index.widens else numbers

    def _in_milvus_words(self, known: Mapping[str, Number]) -> dict[str, int]:
        return {number.milvus_name: self.numbers.get(name, number.default) for name, number in known.items()}


def read_options(url: str) -> Options:
    """The options of an address.

    Raises:
        CsktError: one is unknown, given twice, out of range, or of another index than the one that is named.
    """
    _, _, query = url.partition("?")
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
        raise CsktError(f"{url}: partitions={given['partitions']} of what? name a column, too: partition=camera")
    partitions = _whole(url, "partitions", given.pop("partitions", "16"), 1, MOST_PARTITIONS)
    shards = _whole(url, "shards", given.pop("shards", "1"), 1, MOST_SHARDS)
    numbers = _numbers(url, index, given)
    options = Options(index, numbers, partition, partitions, shards, consistency)
    found = options.search_numbers(1).get("nprobe", 0), options.build_numbers().get("nlist", 0)
    if found[0] > found[1]:
        raise CsktError(f"{url}: nprobe={found[0]} cells of nlist={found[1]}; visit no more than there are")
    return options


def check_for_lite(url: str, options: Options) -> None:
    """See that milvus-lite can do what is asked; it would find out while it searches, or never.

    Raises:
        CsktError: it cannot.
    """
    if not INDEXES[options.index].in_lite:
        in_lite = ", ".join(name for name, index in INDEXES.items() if index.in_lite)
        raise CsktError(f"{url}: milvus-lite has no index '{options.index}'; expected {in_lite}, or a server")
    if options.partitions != Options.partitions or options.shards != Options.shards:
        raise CsktError(f"{url}: milvus-lite has {Options.partitions} partitions and one shard; leave the number out")


def _numbers(url: str, index: str, given: Mapping[str, str]) -> dict[str, int]:
    known = {**INDEXES[index].build, **INDEXES[index].search}
    for name in given:
        if name not in known:
            of = [other for other, each in INDEXES.items() if name in {*each.build, *each.search}]
            others = ", ".join(["index", "partition", "partitions", "shards", "consistency", *known])
            hint = f"is for index={' or '.join(of)}, not {index}" if of else f"is unknown; expected {others}"
            raise CsktError(f"{url}: option '{name}' {hint}")
    return {name: _whole(url, name, text, known[name].least, known[name].most) for name, text in given.items()}


def _one_of(url: str, option: str, value: str, known: Mapping[str, object]) -> str:
    if value not in known:
        raise CsktError(f"{url}: {option}={value} is unknown; expected {', '.join(known)}")
    return value


def _whole(url: str, option: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise CsktError(f"{url}: {option}={text}; expected a whole number from {least} to {most:,}")
    return int(text)
