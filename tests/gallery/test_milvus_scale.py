"""Indexes, partitions and consistency of a Milvus collection, through milvus-lite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filter_oracle import COLUMNS, conditions, fulfils, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cskt.errors import CsktError
from cskt.gallery.columns import Value
from cskt.gallery.conditions import All, Any_, Comparison, Condition, Membership, Missing, Pattern
from cskt.gallery.stores.base import Crop, CropRecord

pytest.importorskip("milvus_lite")

from cskt.gallery.stores.milvus import milvus_store
from cskt.gallery.stores.milvus.expressions import compiled, partition_of, partitions_of
from cskt.gallery.stores.milvus.milvus_store import MilvusStore, open_milvus

pytestmark = pytest.mark.milvus
DIM = 16


def crops_of(number: int, **metadata: Value) -> list[Crop]:
    """Return crops `0000`, `0001`, ... with different vectors."""
    rng = np.random.default_rng(number)
    vectors = rng.standard_normal((number, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        Crop(CropRecord(f"{index:04}", 64, 128, 99, 0, f"{index:064x}", False, metadata), vector, b"jpeg")
        for index, vector in enumerate(vectors)
    ]


def best_of(crops: list[Crop], query: NDArray[np.float32], k: int) -> list[str]:
    ranked = sorted(crops, key=lambda crop: -float(crop.vector.astype(np.float64) @ query))
    return [crop.facts.image_id for crop in ranked[:k]]


def found_by(store: MilvusStore, query: NDArray[np.float32], k: int, where: Condition | None = None) -> list[str]:
    return [hit.image_id for hit in store.search(torch.from_numpy(query)[None], k, where)[0]]


@pytest.fixture
def queries() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((20, DIM)).astype(np.float32)


@pytest.mark.parametrize(
    ("narrow", "wide", "milvus_type"),
    [
        ("index=hnsw&m=3&ef_construction=20&ef=1", "index=hnsw&m=3&ef_construction=20&ef=1000", "HNSW"),
        ("index=ivf_flat&nlist=8&nprobe=1", "index=ivf_flat&nlist=8&nprobe=8", "IVF_FLAT"),
        ("index=ivf_sq8&nlist=8&nprobe=1", "index=ivf_sq8&nlist=8&nprobe=8", "IVF_SQ8"),
    ],
)
def test_an_index_is_built_with_its_numbers_and_searched_with_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    queries: NDArray[np.float32],
    narrow: str,
    wide: str,
    milvus_type: str,
) -> None:
    """Searches with small numbers miss crops, so the index is used; scores are exact in all searches."""
    monkeypatch.setattr(milvus_store, "MANY_ROWS", 1000)
    crops, url = crops_of(1500), f"milvus:{tmp_path}/crops.db"
    store = open_milvus(f"{url}?{narrow}", DIM, {})
    store.add(crops)
    store.compact()  # rows in memory are searched without an index
    store.close()
    recalls = {}
    for query in (narrow, wide):
        store = open_milvus(f"{url}?{query}", DIM, {})
        described = store._client.describe_index(store._name, "vector")
        assert (described["index_type"], described["indexed_rows"]) == (milvus_type, 1500)
        right = [len({*found_by(store, each, 10)} & {*best_of(crops, each, 10)}) for each in queries]
        recalls[query] = sum(right) / (10 * len(queries))
        [hits] = store.search(torch.from_numpy(queries[:1]), 10)
        for hit in hits:
            exact = float(crops[int(hit.image_id)].vector.astype(np.float64) @ queries[0])
            assert hit.score == pytest.approx(exact, abs=1e-6)
        assert hits == sorted(hits, key=lambda hit: -hit.score)
        store.close()
    assert recalls[narrow] < 0.95 <= recalls[wide]


def test_an_approximate_search_with_many_ties_requests_one_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_milvus(f"milvus:{tmp_path}/crops.db?index=hnsw", DIM, {})
    twin = crops_of(1)[0].vector
    store.add([Crop(crop.facts, twin, b"jpeg") for crop in crops_of(300)])
    asked: list[int] = []
    search = store._client.search
    monkeypatch.setattr(
        store._client, "search", lambda *args, **kwargs: asked.append(kwargs["limit"]) or search(*args, **kwargs)
    )
    [hits] = store.search(torch.from_numpy(twin)[None], 5)
    assert len(hits) == 5 and asked == [21]
    store.close()


@pytest.mark.parametrize(
    ("made", "opened", "reason"),
    [
        ("index=hnsw&m=8", "index=flat", r"has another index \(index_type HNSW\)"),
        ("index=hnsw&m=8", "index=hnsw&m=16", r"has another index \(index_type HNSW, M 8, efConstruction 200\)"),
        ("partition=camera", "", r"has other partitions \(PARTITION_camera\)"),
        ("", "partition=camera", r"has other partitions \(none\)"),
        ("partition=camera", "partition=day", r"has other partitions \(PARTITION_camera\)"),
    ],
)
def test_a_collection_with_other_options_is_refused(tmp_path: Path, made: str, opened: str, reason: str) -> None:
    url = f"milvus:{tmp_path}/crops.db"
    open_milvus(f"{url}?{made}", DIM, {}).close()
    with pytest.raises(CsktError, match=reason) as refusal:
        open_milvus(f"{url}?{opened}", DIM, {})
    assert "\n" not in str(refusal.value)
    open_milvus(f"{url}?{made}&consistency=bounded", DIM, {}).close()  # that may change


@pytest.fixture(scope="module")
def by_camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    store = open_milvus(f"milvus:{tmp_path_factory.mktemp('milvus')}/crops.db?partition=camera", DIM, COLUMNS)
    yield store
    store.close()


def camera(*names: str) -> Condition:
    return Membership("camera", names) if len(names) > 1 else Comparison("camera", "=", names[0])


NIGHT = Comparison("night", "=", True)


@pytest.mark.parametrize(
    ("condition", "partitions"),
    [
        (camera("c1"), {"c1"}),
        (camera("c1", "c2"), {"c1", "c2"}),
        (Missing("camera"), {""}),
        (All((NIGHT, camera("c1"))), {"c1"}),
        (All((camera("c1", "c2"), camera("c2", "c3"))), {"c2"}),
        (All((camera("c1"), camera("c2"))), set()),
        (Any_((camera("c1"), Missing("camera"))), {"c1", ""}),
        (Any_((camera("c1"), NIGHT)), None),
        (All((NIGHT, NIGHT)), None),
        (Comparison("camera", "!=", "c1"), None),
        (Comparison("camera", "<", "c1"), None),
        (Membership("camera", ("c1",), negated=True), None),
        (Missing("camera", negated=True), None),
        (Pattern("camera", ("c", "")), None),
        (NIGHT, None),
    ],
)
def test_a_condition_determines_the_partitions_of_its_crops(condition: Condition, partitions: set[str] | None) -> None:
    assert partitions_of(condition, "camera") == partitions


def test_a_search_names_the_partitions_that_it_needs() -> None:
    assert compiled(camera('c"1'), "camera").startswith('PARTITION_camera in ["c\\"1"] and (')
    assert compiled(camera("c1"), None) == compiled(camera("c1")) == '$meta["camera"] == "c1"'
    assert "PARTITION" not in compiled(All((camera("c1"), camera("c2"))), "camera")  # of none: no list to name


def test_equal_values_are_in_one_partition() -> None:
    assert partition_of(0) == partition_of(-0.0) == partition_of(0.0)
    assert partition_of(3) == partition_of(3.0) != partition_of(3.5)
    assert (partition_of(True), partition_of("c1"), partition_of(None)) == ("true", "c1", "")


@given(st.lists(values(), min_size=1, max_size=5), st.lists(conditions(), min_size=1, max_size=8))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_partitions_change_no_answer(
    by_camera: MilvusStore, metadata: list[dict[str, Value]], asked: list[Condition]
) -> None:
    by_camera.delete(list(by_camera.files()))
    by_camera.add([_with(crop, known) for crop, known in zip(crops_of(len(metadata)), metadata, strict=True)])
    for condition in [*asked, *(Comparison("camera", "=", known["camera"]) for known in metadata if "camera" in known)]:
        found = found_by(by_camera, np.ones(DIM, np.float32), 10, condition)
        assert {*found} == {f"{index:04}" for index, known in enumerate(metadata) if fulfils(condition, known)}
        assert by_camera.count(condition) == len(found)


def test_a_crop_that_changes_its_partition_is_stored_once(
    by_camera: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_store, "MANY_ROWS", 1)
    by_camera.delete(list(by_camera.files()))
    crops = crops_of(20, camera="c1", night=True)
    by_camera.add(crops)
    by_camera.compact()
    by_camera.add([_with(crops[3], {"camera": "c2", "night": True})])
    by_camera.add([_with(crops[4], {"night": True})])
    by_camera.compact()
    assert by_camera.count() == 20
    counts = [by_camera.count(each) for each in (camera("c1"), camera("c2"), Missing("camera"))]
    assert counts == [18, 1, 1]
    assert found_by(by_camera, crops[3].vector, 1, camera("c2")) == ["0003"]
    assert "0003" not in found_by(by_camera, crops[3].vector, 20, camera("c1"))
    assert by_camera.delete(["0003", "0004"]) == 2 and by_camera.count() == 18


def test_milvus_stores_each_value_in_one_of_its_partitions(tmp_path: Path) -> None:
    store = open_milvus(f"milvus:{tmp_path}/crops.db?partition=camera", DIM, COLUMNS)
    store.add([_with(crop, {"camera": f"c{index % 3}"}) for index, crop in enumerate(crops_of(30))])
    client, name = store._client, store._name
    sizes = [int(client.get_partition_stats(name, each)["row_count"]) for each in client.list_partitions(name)]
    store.close()
    assert sum(sizes) == 30 and max(sizes) < 30
    assert all(size % 10 == 0 for size in sizes), "10 crops of each camera lie together; two cameras may share a place"
    assert len(sizes) == 17, "16 by hash, and Milvus' own default one"


def _with(crop: Crop, metadata: dict[str, Value]) -> Crop:
    facts = CropRecord(crop.facts.image_id, 64, 128, 99, 0, crop.facts.sha256, False, metadata)
    return Crop(facts, crop.vector, crop.thumbnail)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Return the list of requests that a server receives."""
    from milvus_lite.adapter.grpc.servicer import MilvusServicer

    seen: list[tuple[str, Any]] = []

    def recorded(verb: str) -> None:
        method = getattr(MilvusServicer, verb)

        def call(self: Any, request: Any, context: Any) -> Any:
            seen.append((verb, request))
            return method(self, request, context)

        monkeypatch.setattr(MilvusServicer, verb, call)

    for verb in ("CreateCollection", "CreateIndex", "Flush", "Search", "Query"):
        recorded(verb)
    return seen


@pytest.fixture
def server(tmp_path: Path, calls: list[tuple[str, Any]]) -> Iterator[str]:  # calls: recorded from its start
    """Return the address of a milvus-lite that runs as a server."""
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, database, port = start_server_in_thread(data_dir=str(tmp_path / "server"), host="127.0.0.1", port=0)
    yield f"milvus://127.0.0.1:{port}/crops"
    server.stop(grace=0)
    database.close()


@pytest.mark.parametrize(
    ("options", "shards", "partitions", "index"),
    [
        ("", 1, 0, {"index_type": "FLAT"}),
        ("shards=4", 4, 0, {"index_type": "FLAT"}),
        ("partition=camera", 1, 16, {"index_type": "FLAT"}),
        ("partition=camera&partitions=64&shards=2", 2, 64, {"index_type": "FLAT"}),
        ("index=ivf_sq8&nlist=1024", 1, 0, {"index_type": "IVF_SQ8", "nlist": 1024}),
        ("index=hnsw&m=24", 1, 0, {"index_type": "HNSW", "M": 24, "efConstruction": 200}),
    ],
)
def test_a_server_receives_the_options_of_the_address(
    server: str,
    calls: list[tuple[str, Any]],
    options: str,
    shards: int,
    partitions: int,
    index: dict[str, str | int],
) -> None:
    """Check the requests themselves: milvus-lite accepts any number of shards and partitions, and ignores it."""
    from pymilvus.grpc_gen.schema_pb2 import CollectionSchema

    open_milvus(f"{server}?{options}", DIM, COLUMNS).close()
    [(_, creation), (_, indexing)] = calls
    assert (creation.shards_num, creation.num_partitions, creation.consistency_level) == (shards, partitions, 0)
    fields = {field.name: field for field in CollectionSchema.FromString(creation.schema).fields}
    assert [name for name, field in fields.items() if field.is_partition_key] == ["PARTITION_camera"] * bool(partitions)
    mapped = {name for name, field in fields.items() for pair in field.type_params if pair.key == "mmap.enabled"}
    assert mapped == {"thumbnail"}
    sent = {pair.key: pair.value for pair in indexing.extra_params}
    assert {"index_type": sent["index_type"], **json.loads(sent["params"])} == index
    assert sent["metric_type"] == "IP"


def test_few_new_crops_are_not_flushed(
    server: str, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server refuses more than one flush of a collection in 10 seconds."""
    monkeypatch.setattr(milvus_store, "MANY_ROWS", 8)
    store = open_milvus(server, DIM, COLUMNS)
    for each in crops_of(20):
        store.add([each])
        store.compact()
    assert [verb for verb, _ in calls].count("Flush") == 2
    assert len(found_by(store, np.ones(DIM, np.float32), 50)) == 20
    store.close()


@pytest.mark.parametrize(
    ("option", "level"),
    [("", 0), ("consistency=session", 1), ("consistency=bounded", 2), ("consistency=eventually", 3)],
)
def test_the_consistency_option_applies_to_searches_only(
    server: str, calls: list[tuple[str, Any]], option: str, level: int
) -> None:
    """Check the consistency level of every request; `default` is the collection's, which is Strong.

    Numbers are those of Milvus' protocol.
    """

    def seen() -> list[tuple[str, int | str]]:
        """Return the level of each request since the last call."""
        levels = [(verb, "default" if each.use_default_consistency else each.consistency_level) for verb, each in calls]
        calls.clear()
        return levels

    store = open_milvus(f"{server}?{option}", DIM, COLUMNS)
    calls.clear()
    [one] = crops_of(1, camera="c1")
    store.add([one])
    store.files(), store.get(["0000"]), store.count(), store.facets(COLUMNS)
    store.histogram(torch.from_numpy(one.vector), [-1.0, 1.0])
    assert {found for _, found in seen()} == {"default"}
    assert store._client.describe_collection(store._name)["consistency_level_name"] == "Strong"
    assert found_by(store, one.vector, 1) == ["0000"]
    assert seen() == [("Search", level), ("Query", level)]
    store.delete(["0000"])
    assert {found for _, found in seen()} == {"default"}
    store.close()
