"""Milvus store: addresses, collections, its filter language, scores and ties, batches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filter_oracle import COLUMNS, NASTY_NAMES, conditions, fulfils, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cskt.errors import CorruptRowError, CsktError, StoreError
from cskt.gallery.columns import BUILT_IN, Value
from cskt.gallery.conditions import Comparison, Condition, Membership, Missing, Pattern
from cskt.gallery.filters import parse_filter
from cskt.gallery.stores.base import Crop, CropRecord
from cskt.gallery.stores.milvus import milvus_store
from cskt.gallery.stores.milvus.collection import to_row
from cskt.gallery.stores.milvus.expressions import compiled
from cskt.gallery.stores.milvus.milvus_store import MilvusStore, drop_milvus, open_milvus

pytest.importorskip("milvus_lite")
pytestmark = pytest.mark.milvus
DIM = 8


def crop(
    image_id: str, metadata: Mapping[str, Value] | None = None, *, seed: int = 0, thumbnail: bytes = b"jpeg"
) -> Crop:
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    facts = CropRecord(image_id, 64, 128, 4321, 1769817600123456789 + seed, f"{seed:064x}", False, metadata or {})
    return Crop(facts, vector / np.linalg.norm(vector), thumbnail)


def query(seed: int = 99) -> torch.Tensor:
    return torch.from_numpy(crop("", seed=seed).vector)[None]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"milvus:{tmp_path_factory.mktemp('milvus')}/crops.db"


@pytest.fixture(scope="module")
def shared_store(url: str) -> Iterator[MilvusStore]:
    """Open one store for all tests."""
    made = open_milvus(url, DIM, COLUMNS)
    yield made
    made.close()


@pytest.fixture
def store(shared_store: MilvusStore) -> MilvusStore:
    """Empty the shared store and return it."""
    shared_store.delete(list(shared_store.files()))
    return shared_store


@pytest.mark.parametrize(
    "url",
    ["milvus:", "milvus:crops", "milvus:crops.sqlite", "milvus://", "milvus://host", "milvus://host:19530",
     "milvus://host:19530/", "milvus://host/crops", "milvus://host:19530/cr-ops", "milvus://host:19530/a/b",
     "milvus://user:secret@host:19530/crops", "http://host:19530/crops", "crops.db"],
)  # fmt: skip
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(CsktError, match="expected milvus:FILE.db or milvus://HOST:PORT/COLLECTION"):
        open_milvus(url, DIM, {})


def test_a_file_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CsktError, match="no folder"):
        open_milvus(f"milvus:{tmp_path}/missing/crops.db", DIM, {})


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "crops.db").write_bytes(b"SQLite format 3\x00")
    with pytest.raises(CsktError, match="no database of milvus-lite") as refusal:
        open_milvus(f"milvus:{tmp_path}/crops.db", DIM, {})
    assert "\n" not in str(refusal.value)


def test_a_server_without_an_answer_is_reported_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CsktError, match="milvus://127.0.0.1:9/crops: ") as refusal:
        open_milvus("milvus://127.0.0.1:9/crops", DIM, {})
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr() == ("", "")


def test_a_collection_of_other_vectors_is_refused(store: MilvusStore, url: str) -> None:
    with pytest.raises(CsktError, match=f"vectors of {DIM} numbers, the model makes 16"):
        open_milvus(url, 16, {})


def test_a_collection_of_another_program_is_refused(tmp_path: Path) -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(str(tmp_path / "crops.db"))
    client.create_collection("crops", dimension=DIM)
    with pytest.raises(CsktError, match="holds no gallery"):
        open_milvus(f"milvus:{tmp_path}/crops.db", DIM, {})
    client.close()


def test_one_of_two_generations_can_be_dropped(tmp_path: Path) -> None:
    url = f"milvus:{tmp_path}/crops.db"
    old, new = open_milvus(url, DIM, {}, "old"), open_milvus(url, 2 * DIM, {}, "new")
    old.add([crop("a")])
    assert (old.count(), new.count()) == (1, 0)
    old.close()
    drop_milvus(url, "old")
    drop_milvus(url, "never made")
    new.close()
    again = open_milvus(url, DIM, {}, "old")
    assert again.count() == 0
    again.close()


def test_the_last_store_of_a_file_releases_it(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    url = f"milvus:{tmp_path}/crops.db"
    first, second = open_milvus(url, DIM, COLUMNS), open_milvus(url, DIM, COLUMNS)
    first.add([crop("a")])
    first.close()
    first.close()
    assert second.count() == 1
    second.close()
    with (tmp_path / "crops.db" / "LOCK").open("r+") as lock:  # as another process that opens it
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(CsktError, match="another process has it open"):
            open_milvus(url, DIM, COLUMNS)


def test_a_server_stores_several_galleries_for_several_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    server, database, port = start_server_in_thread(data_dir=str(tmp_path / "server"), host="127.0.0.1", port=0)
    writer, reader, other = (
        open_milvus(f"milvus://127.0.0.1:{port}/{name}", DIM, COLUMNS) for name in ("crops", "crops", "others")
    )
    writer.add([crop("a", {"camera": "c1"}), crop("b")])
    assert [hit.image_id for hit in reader.search(query(), 5, Comparison("camera", "=", "c1"))[0]] == ["a"]
    assert other.count() == 0
    for store in (writer, reader):
        store.close()
    server.stop(grace=0)
    database.close()
    monkeypatch.setattr(milvus_store, "READ_SECONDS", 1.0)
    for question in (other.count, other.files, lambda: other.get(["a"]), lambda: other.search(query(), 5)):
        with pytest.raises(StoreError, match=f"milvus://127.0.0.1:{port}/others: ") as refusal:
            question()
        assert "\n" not in str(refusal.value)
    other.close()
    with pytest.raises(CsktError, match=f"milvus://127.0.0.1:{port}/crops: "):
        open_milvus(f"milvus://127.0.0.1:{port}/crops", DIM, COLUMNS)


def test_facts_are_read_back_unchanged(store: MilvusStore) -> None:
    metadata: dict[str, Value] = {
        "camera": 'it\'s "c1"\n',
        "frame": 2**53,
        "night": False,
        "time": "2026-01-31T12:00:00",
    }
    given_crop = crop("a/'\".jpg", metadata, seed=11, thumbnail=bytes(range(256)))
    store.add([given_crop, crop("b", {"frame": 2.5})])
    facts = store.get(["a/'\".jpg", "missing", "b"])
    assert facts["a/'\".jpg"] == given_crop.facts
    assert facts["b"].metadata == {"frame": 2.5}
    assert type(facts["a/'\".jpg"].metadata["frame"]) is int
    assert set(facts) == {"a/'\".jpg", "b"}
    assert store.thumbnails(["a/'\".jpg"])["a/'\".jpg"] == bytes(range(256))
    np.testing.assert_array_equal(store.vectors(["a/'\".jpg"])["a/'\".jpg"], given_crop.vector)
    assert store.files()["a/'\".jpg"].modified_ns == 1769817600123456800


def test_replacing_a_crop_on_a_server_needs_no_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No nulls replace missing values: versions of the server differ in whether such a key exists."""
    store = open_milvus(f"milvus:{tmp_path}/crops.db", DIM, COLUMNS)
    store.add([crop("a", {"camera": "c1"})])
    server = open_milvus(f"milvus:{tmp_path}/crops.db", DIM, COLUMNS)
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(server._client, "get_server_version", lambda **_: "v2.6.4")
    monkeypatch.setattr(server._client, "query", lambda *_, **__: pytest.fail("the stored crops were queried"))
    monkeypatch.setattr(server._client, "upsert", lambda _, rows, **__: written.extend(rows))
    server.add([crop("a")])
    [row] = written
    assert "camera" not in row and not any(value is None for value in row.values())
    server.close()
    store.close()


@pytest.mark.parametrize(
    ("too_long", "what"),
    [
        (crop("é" * 2049), "its name"),
        (crop("a", {"camera": "x" * 65536}), "camera"),
        (crop("a", thumbnail=bytes(50_000)), "the thumbnail"),
    ],
)
def test_a_text_too_long_for_milvus_is_refused_before_writing(store: MilvusStore, too_long: Crop, what: str) -> None:
    with pytest.raises(CsktError, match=f"{what} has more than"):
        store.add([crop("first"), too_long])
    assert store.count() == 0


@given(st.lists(values(), min_size=1, max_size=5), st.lists(conditions(), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_filters_select_the_crops_that_fulfil_them(
    shared_store: MilvusStore, metadata: list[dict[str, Value]], asked: list[Condition]
) -> None:
    shared_store.delete(list(shared_store.files()))
    shared_store.add([crop(f"{number}.jpg", known) for number, known in enumerate(metadata)])
    for condition in asked:
        found = {hit.image_id for hit in shared_store.search(query(), 10, condition)[0]}
        assert found == {f"{number}.jpg" for number, known in enumerate(metadata) if fulfils(condition, known)}
        assert shared_store.count(condition) == len(found)


@pytest.mark.parametrize(
    "condition",
    [
        Comparison("camera", "!=", "c1"),
        Membership("camera", ("c1", "c2"), negated=True),
        Pattern("camera", ("c", ""), negated=True),
    ],
)
def test_a_negated_condition_requires_the_key(condition: Condition) -> None:
    """Milvus' versions differ in whether `!=` holds where there is no key; milvus-lite alone would not need it."""
    assert compiled(condition).startswith('exists $meta["camera"] and ')


def test_nasty_names_are_found_by_name_and_by_pattern(store: MilvusStore) -> None:
    store.add([crop(text) for text in NASTY_NAMES])
    assert list(store.files()) == sorted(NASTY_NAMES)
    for text in NASTY_NAMES:
        assert store.count(Comparison("image_id", "=", text)) == 1
        assert store.count(Membership("image_id", (text,), negated=True)) == len(NASTY_NAMES) - 1
        for parts in [(text,), (text, ""), ("", text), (text[:1], text[1:])]:
            pattern = Pattern("image_id", parts)
            expected = sum(fulfils(pattern, {"image_id": other}) for other in NASTY_NAMES)
            assert store.count(pattern) == expected, (text, parts)
    assert store.delete(NASTY_NAMES) == len(NASTY_NAMES)


def test_no_crop_lacks_a_built_in_column(store: MilvusStore) -> None:
    store.add([crop("a"), crop("b")])
    for column in BUILT_IN:
        assert store.count(Missing(column)) == 0
        assert store.count(Missing(column, negated=True)) == 2
    for text, count in [
        ("width = 64", 2),
        ("height > 128.5", 0),
        ("num_bytes in (1, 4321)", 2),
        ("sha256 like '%0'", 2),
    ]:
        assert store.count(parse_filter(text, BUILT_IN)) == count


def test_many_ties_are_in_the_order_of_names(store: MilvusStore) -> None:
    twins = [f"{number:03}" for number in np.random.default_rng(0).permutation(300)]
    store.add([crop(name, seed=1) for name in twins] + [crop("best", seed=2)])
    found = store.search(query(2), 5)[0]
    assert [hit.image_id for hit in found] == ["best", "000", "001", "002", "003"]
    assert len({hit.score for hit in found[1:]}) == 1


@pytest.mark.parametrize("most_hits", [16_384, 40])
def test_search_ranks_as_float_vectors_do(store: MilvusStore, monkeypatch: pytest.MonkeyPatch, most_hits: int) -> None:
    """Also with more hits than Milvus returns, and if every operation takes several requests."""
    monkeypatch.setattr(milvus_store, "MAX_HITS", most_hits)
    monkeypatch.setattr(milvus_store, "PAGE_ROWS", 37)
    monkeypatch.setattr(milvus_store, "NAMED_ROWS", 11)
    monkeypatch.setattr(milvus_store, "MESSAGE_BYTES", 1_000_000)
    crops = [crop(f"{number:03}", seed=number) for number in range(200)]
    store.add(crops)
    queries = torch.cat([query(1000), query(1001), -2 * query(1002)])
    for k in (1, 30, 500):
        for query_D, found in zip(queries.numpy(), store.search(queries, k), strict=True):
            scores = {each.facts.image_id: float(each.vector @ query_D) for each in crops}
            assert [hit.image_id for hit in found] == sorted(scores, key=lambda name: -scores[name])[:k]
            np.testing.assert_allclose(
                [hit.score for hit in found], sorted(scores.values(), reverse=True)[:k], atol=1e-6
            )


def test_compacting_changes_no_answer_and_a_reopened_file_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_store, "MANY_ROWS", 1)
    url = f"milvus:{tmp_path}/crops.db"
    store = open_milvus(url, DIM, COLUMNS)
    store.add([crop(f"{number:03}", {"frame": number}, seed=number) for number in range(50)])
    where = parse_filter("frame >= 10", COLUMNS)
    before = store.search(query(), 20, where), store.files()
    store.compact()
    assert (store.search(query(), 20, where), store.files()) == before
    store.add([crop("new", seed=99)])
    store.close()
    store = open_milvus(url, DIM, COLUMNS)
    assert store.search(query(), 20, where) == before[0]
    assert store.count() == 51
    store.close()
    shutil.copytree(tmp_path / "crops.db", tmp_path / "backup.db")  # of a file that nobody has open
    copy = open_milvus(f"milvus:{tmp_path}/backup.db", DIM, COLUMNS)
    assert copy.search(query(), 20, where) == before[0]
    copy.close()


def test_a_closed_store_raises_one_line(store: MilvusStore, url: str) -> None:
    closed = open_milvus(url, DIM, COLUMNS)
    closed.close()
    with pytest.raises(CsktError, match="crops.db: ") as refusal:
        closed.count()
    assert "\n" not in str(refusal.value)


def test_a_histogram_counts_every_crop_once(store: MilvusStore) -> None:
    crops = [crop(f"{number:02}", {"frame": number}, seed=number) for number in range(40)]
    store.add(crops)
    direction = query()[0]
    scores = [float(each.vector @ direction.numpy()) for each in crops]
    edges = [-0.5, 0.0, 0.25, max(scores)]
    expected = [sum(score < 0 for score in scores), sum(0 <= score < 0.25 for score in scores)]
    assert store.histogram(direction, edges) == [*expected, 40 - sum(expected)]
    assert sum(store.histogram(direction, edges, parse_filter("frame < 7", COLUMNS))) == 7


def test_facets_count_values(store: MilvusStore) -> None:
    store.add(
        [
            crop(f"{number:02}", {"camera": f"c{number % 3}", "note": f"n{number}", "frame": number / 2, "night": True})
            for number in range(52)
        ]
    )
    facets = store.facets(COLUMNS)
    assert facets["camera"].values == (("c0", 18), ("c1", 17), ("c2", 17))
    assert facets["note"].values == ()  # more than can be chosen from
    assert (facets["frame"].minimum, facets["frame"].maximum) == (0, 25.5)
    assert facets["night"].values == ((True, 52),)
    assert (facets["time"].minimum, facets["time"].maximum) == (None, None)


STRANGE: list[dict[str, Any]] = [
    {"image_id": "/etc/passwd"}, {"image_id": "../a.jpg"}, {"image_id": "a\x1b[31m"}, {"sha256": "/etc/passwd"},
    {"sha256": "A" * 64}, {"sha256": ""}, {"num_bytes": -1.0}, {"num_bytes": 0.5}, {"width": -3.0},
    {"camera": 5.0}, {"frame": "five"}, {"night": "yes"}, {"camera": ["a"]}, {"note": {"a": 1}},
    {"vector": np.full(DIM, 3e38, np.float32)},
]  # fmt: skip


def test_corrupt_rows_are_refused_and_can_be_deleted(store: MilvusStore) -> None:
    store.add([crop("a", {"camera": "c1"}, seed=1)])
    for strange in STRANGE:
        row = {**to_row(crop("bad.jpg", seed=2), COLUMNS, None), **strange}
        store._client.upsert(store._name, [row])
        ways = [lambda: store.search(query(), 10), lambda: store.get([row["image_id"]])]  # noqa: B023
        if not strange.keys() & {"width", "vector", *COLUMNS}:
            ways.append(store.files)
        if "vector" in strange:
            ways = [lambda: store.search(query(), 10), lambda: store.vectors(["bad.jpg"])]
        if strange.keys() & COLUMNS.keys():
            ways.append(lambda: store.facets(COLUMNS))
        for do in ways:
            with pytest.raises(CorruptRowError) as caught:
                do()
            message = str(caught.value)
            assert "--prune" in message and "crops.db" in message and message.isprintable(), strange
        assert store.delete_corrupt() == 1, strange
        assert set(store.files()) == {"a"} and store.delete_corrupt() == 0
    row = {**to_row(crop("bad.jpg"), COLUMNS, None), "thumbnail": "<script>"}
    store._client.upsert(store._name, [row])
    with pytest.raises(CorruptRowError, match="'bad.jpg': its thumbnail is not base64"):
        store.thumbnails(["bad.jpg"])


def test_a_missing_collection_is_made_only_with_create(url: str, tmp_path: Path) -> None:
    missing = f"milvus:{tmp_path}/none.db"
    with pytest.raises(StoreError, match="no such file; restore it"):
        open_milvus(missing, DIM, {}, create=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="has no collection 'crops_other'; restore it"):
        open_milvus(url, DIM, {}, "other", create=False)
