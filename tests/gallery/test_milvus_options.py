"""Options in the address of a Milvus collection, and the errors of invalid ones."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pymilvus")

from cskt.errors import CsktError
from cskt.gallery.stores.milvus.address import INDEXES, CollectionOptions, read_options
from cskt.gallery.stores.milvus.milvus_store import open_milvus

pytestmark = pytest.mark.milvus
SERVER = "milvus://localhost:19530/crops"


def test_an_address_without_options_is_exact_and_sees_every_write() -> None:
    options = read_options(SERVER)
    assert options == CollectionOptions() == read_options(SERVER + "?")
    assert options.is_exact and options.consistency == "strong" and options.partition is None
    assert options.build_numbers() == options.search_numbers(1000) == {}


def test_options_are_read() -> None:
    options = read_options(
        SERVER + "?index=hnsw&m=32&ef=64&partition=camera&partitions=128&shards=4&consistency=bounded"
    )
    assert options == CollectionOptions("hnsw", {"m": 32, "ef": 64}, "camera", 128, 4, "bounded")
    assert not options.is_exact
    assert options.build_numbers() == {"M": 32, "efConstruction": 200}


@pytest.mark.parametrize(
    ("query", "few", "many"),
    [
        ("index=hnsw&ef=64", {"ef": 64}, {"ef": 500}),
        ("index=diskann", {"search_list": 100}, {"search_list": 500}),
        ("index=ivf_sq8&nlist=1024&nprobe=32", {"nprobe": 32}, {"nprobe": 32}),
    ],
)
def test_a_search_uses_at_least_as_many_candidates_as_hits(
    query: str, few: dict[str, int], many: dict[str, int]
) -> None:
    """A server refuses a search with fewer candidates; `nprobe` counts cells, not candidates."""
    options = read_options(f"{SERVER}?{query}")
    assert (options.search_numbers(10), options.search_numbers(500)) == (few, many)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("index=hsnw", "index=hsnw is unknown; expected flat, ivf_flat, ivf_sq8, hnsw, diskann"),
        ("index=HNSW", "index=HNSW is unknown"),
        ("index=", "index= is unknown"),
        ("shard=2", "option 'shard' is unknown; expected index, partition, partitions, shards, consistency$"),
        ("index=hnsw&eff=2", "option 'eff' is unknown; expected .*consistency, m, ef_construction, ef$"),
        ("index=hnsw&nprobe=2", "option 'nprobe' is for index=ivf_flat or ivf_sq8, not hnsw"),
        ("ef=100", "option 'ef' is for index=hnsw, not flat"),
        ("index=hnsw&m=1", "m=1; expected a whole number from 2 to 2,048"),
        ("index=hnsw&ef=1e3", "ef=1e3; expected a whole number"),
        ("index=hnsw&ef=-5", "ef=-5; expected a whole number"),
        ("index=hnsw&ef=\u0663", "expected a whole number"),
        ("index=hnsw&ef=" + "9" * 5000, "expected a whole number"),
        ("index=ivf_flat&nlist=8", "nprobe=16 cells of nlist=8; visit no more than there are"),
        ("index=ivf_flat&nprobe=129", "nprobe=129 cells of nlist=128"),
        ("shards=0", "shards=0; expected a whole number from 1 to 16"),
        ("partitions=64", "partitions=64 need a column; name one, too: partition=camera"),
        ("partition=camera&partitions=1025", "expected a whole number from 1 to 1,024"),
        ("partition=Track ID", "partition=Track ID is no column; metadata calls it track_id"),
        ("partition=width", "reserved name"),
        ("partition=", "no letter"),
        ("consistency=weak", "consistency=weak is unknown; expected strong, session, bounded, eventually"),
        ("index=hnsw&index=flat", "an option is given twice"),
    ],
)  # fmt: skip
def test_an_invalid_option_is_refused_before_connecting(query: str, reason: str) -> None:
    with pytest.raises(CsktError, match=reason) as refusal:
        open_milvus(f"{SERVER}?{query}", 8, {})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("index=diskann", "milvus-lite has no index 'diskann'; expected flat, ivf_flat, ivf_sq8, hnsw, or a server"),
        ("shards=2", "milvus-lite has 16 partitions and one shard"),
        ("partition=camera&partitions=64", "milvus-lite has 16 partitions and one shard"),
    ],
)
def test_an_option_of_servers_is_refused_for_a_file(tmp_path: Path, query: str, reason: str) -> None:
    with pytest.raises(CsktError, match=reason):
        open_milvus(f"milvus:{tmp_path}/crops.db?{query}", 8, {})
    assert not list(tmp_path.iterdir())


def test_defaults_are_within_their_own_bounds() -> None:
    for name, index in INDEXES.items():
        for number in (*index.build.values(), *index.search.values()):
            assert number.minimum <= number.default <= number.maximum, (name, number)
