"""Tests of `VectorStore` that every store must pass.

To run them on a store of your own: `CSKT_PLUGINS=my_store.py CSKT_TEST_STORE=my-store pytest` with this file.
Vectors of ties have entries of 1/4: their inner products are exact in any arithmetic.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from filter_oracle import COLUMNS, NASTY_NAMES, NASTY_TEXTS, SOME_VALUES, conditions, fulfils
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cskt import plugins
from cskt.errors import CsktError
from cskt.gallery.columns import BUILT_IN, Kind, Value
from cskt.gallery.conditions import Any_, Comparison, Condition, Membership
from cskt.gallery.filters import parse_filter
from cskt.gallery.stores import STORES, StoreBackend, StoreLocation
from cskt.gallery.stores.base import MAX_FACET_VALUES, Crop, CropRecord, Facet, FileState, VectorStore
from cskt.gallery.stores.registry import split_store
from cskt.plugins import environment_plugins, load_plugins
from cskt.types import Hit
from documentation_files import FILES

DIM = 16
Opener: TypeAlias = Callable[[Path, Mapping[str, Kind]], VectorStore]
Open: TypeAlias = Callable[[], VectorStore]


def opener_of(store: str, backend: StoreBackend) -> Opener:
    """Return an opener of `NAME` or `NAME:ADDRESS`, in which FOLDER stands for a new folder."""
    _, address = split_store(store)

    def open_in(folder: Path, columns: Mapping[str, Kind]) -> VectorStore:
        location = StoreLocation(folder / "vectors", address.replace("FOLDER", str(folder)), DIM, columns)
        return backend.open(location, create=True)

    return open_in


def _plugin_store(store: str, folder: Path) -> StoreBackend:
    """Return the backend of docs/extending.md, or of the plug-ins that CSKT_PLUGINS names."""
    if store == SHOWN:
        (folder / "sqlite_store.py").write_text(FILES["sqlite_store.py"], encoding="utf-8")
        load_plugins(folder / "sqlite_store.py")
    else:
        load_plugins(environment_plugins())
    return STORES[split_store(store)[0]]


SHOWN = "sqlite"
TO_TEST = [
    "lance", pytest.param(SHOWN, marks=pytest.mark.slow),
    pytest.param("milvus:FOLDER/crops.db", marks=pytest.mark.milvus),
    *filter(None, [os.environ.get("CSKT_TEST_STORE")]),
]  # fmt: skip


@pytest.fixture(params=TO_TEST, scope="module")
def opener(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    store: str = request.param
    name, _ = split_store(store)
    if name in ("lance", "milvus"):
        pytest.importorskip({"lance": "lancedb", "milvus": "milvus_lite"}[name])
        yield opener_of(store, STORES[name])
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_loaded", {})
        yield opener_of(store, _plugin_store(store, tmp_path_factory.mktemp("plugin")))
        for plugin in plugins.loaded_plugins():
            STORES.forget(plugin)


@pytest.fixture(scope="module")
def shared_store(opener: Opener, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorStore]:
    """Open one store for all tests that need no new one."""
    store = opener(tmp_path_factory.mktemp("store"), COLUMNS)
    yield store
    store.close()


@pytest.fixture
def store(shared_store: VectorStore) -> VectorStore:
    """Empty the shared store and return it."""
    shared_store.delete(list(shared_store.files()))
    return shared_store


@pytest.fixture
def open_store(opener: Opener, tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens the store of one new folder, as often as it is called."""
    opened: list[VectorStore] = []

    def open_once_more() -> VectorStore:
        opened.append(opener(tmp_path, COLUMNS))
        return opened[-1]

    yield open_once_more
    for each in opened:
        each.close()


def vector_of(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def coarse(seed: int) -> np.ndarray:
    """Return a unit vector; products of two such vectors are multiples of 1/8, so that many are equal."""
    return np.random.default_rng(seed).choice(np.float32([-0.25, 0.25]), DIM)


def crop(
    image_id: str, seed: int = 0, metadata: Mapping[str, Value] | None = None, vector: np.ndarray | None = None
) -> Crop:
    """Return a crop of which every fact depends on the seed."""
    facts = CropRecord(
        image_id=image_id,
        width=64 + seed,
        height=128 + seed,
        num_bytes=4000 + seed,
        modified_ns=1769817600123456789 + seed,
        sha256=f"{seed:064x}",
        kept=seed % 2 == 1,
        metadata=metadata or {},
    )
    return Crop(facts, vector_of(seed) if vector is None else vector, b"\xff\xd8jpeg\x00" + str(seed).encode())


def expected(crops: list[Crop], query: np.ndarray, k: int) -> list[tuple[str, float]]:
    """Return the result of a naive search: all scores, sorted."""
    scored = [(-float(np.float32(each.vector.astype(np.float64) @ query)), each.facts.image_id) for each in crops]
    return [(image_id, -score) for score, image_id in sorted(scored)[:k]]


def names(hits: list[Hit]) -> list[str]:
    return [hit.image_id for hit in hits]


def assert_same_hits(store: VectorStore, crops: list[Crop], queries: np.ndarray, k: int) -> None:
    answers = store.search(torch.from_numpy(queries), k)
    assert store.search_once(torch.from_numpy(queries[0]), k) == answers[0]
    for found, query in zip(answers, queries, strict=True):
        wanted = expected(crops, query, k)
        assert names(found) == [image_id for image_id, _ in wanted]
        assert [hit.rank for hit in found] == list(range(1, len(found) + 1))
        np.testing.assert_allclose([each.score for each in found], [score for _, score in wanted], atol=2e-7)


def queries_of(*seeds: int) -> Tensor:
    return torch.from_numpy(np.stack([vector_of(seed) for seed in seeds]))


def test_an_empty_store(store: VectorStore) -> None:
    assert store.count() == 0
    assert store.search(queries_of(1, 2), 5) == [[], []]
    assert store.search(queries_of(1), 5, Comparison("camera", "=", "c1")) == [[]]
    assert store.search_once(queries_of(1)[0], 5) == []
    assert store.get(["a"]) == {} and store.vectors(["a"]) == {} and store.files() == {}
    assert store.thumbnails(["a"]) == {}
    assert store.delete(["a"]) == 0
    assert store.histogram(queries_of(1)[0], [-1.0, 0.0, 1.0]) == [0, 0]
    assert store.facets(COLUMNS) == {name: Facet(kind) for name, kind in COLUMNS.items()}
    store.add([])
    store.delete([])
    store.compact()
    assert store.count() == 0


def test_added_crops_are_read_back_unchanged(store: VectorStore) -> None:
    metadata: dict[str, Value] = {"camera": "c1", "frame": 3, "night": False, "time": "2026-01-31T12:00:00"}
    added = [crop("cam1/a.jpg", 5, metadata), crop("cam1/b.jpg", 6, {"frame": -0.25}), crop("c", 7)]
    store.add(added)
    assert store.get(["c", "cam1/b.jpg", "not there", "cam1/a.jpg"]) == {
        each.facts.image_id: each.facts for each in added
    }
    whole = store.get(["cam1/a.jpg"])["cam1/a.jpg"].metadata
    assert type(whole["frame"]) is int and type(whole["night"]) is bool
    vectors = store.vectors(["cam1/a.jpg", "not there", "c"])
    assert vectors.keys() == {"cam1/a.jpg", "c"}
    assert vectors["c"].dtype == np.float32
    np.testing.assert_array_equal(vectors["c"], added[2].vector)
    assert store.thumbnails(["cam1/b.jpg"])["cam1/b.jpg"] == added[1].thumbnail
    assert store.files() == {
        each.facts.image_id: FileState(each.facts.num_bytes, each.facts.modified_ns, each.facts.sha256, each.facts.kept)
        for each in added
    }
    [[found]] = store.search(torch.from_numpy(added[0].vector)[None], 1)
    assert found == added[0].facts.hit(found.score, rank=1)
    assert found.metadata == {**metadata, "width": 69, "height": 133}
    assert found.score == pytest.approx(1, abs=1e-6)


def test_a_crop_replaces_one_of_the_same_name(store: VectorStore) -> None:
    store.add([crop("a", 1, {"camera": "old"}), crop("b", 2)])
    assert names(store.search(queries_of(1), 1)[0]) == ["a"]
    store.add([crop("a", 3, {"note": "new"})])
    assert store.count() == 2
    assert store.get(["a"])["a"] == crop("a", 3, {"note": "new"}).facts
    assert store.thumbnails(["a"])["a"] == crop("a", 3).thumbnail
    assert store.count(Comparison("camera", "=", "old")) == 0
    assert_same_hits(store, [crop("a", 3), crop("b", 2)], queries_of(1, 2, 3).numpy(), 2)


def test_the_last_of_two_crops_with_one_name_is_stored(store: VectorStore) -> None:
    store.add([crop("a", 1), crop("b", 2), crop("a", 3), crop("a", 4)])
    assert store.count() == 2
    assert store.get(["a"])["a"] == crop("a", 4).facts
    assert_same_hits(store, [crop("a", 4), crop("b", 2)], queries_of(1, 4).numpy(), 5)


def test_an_invalid_crop_is_refused_and_nothing_is_added(store: VectorStore) -> None:
    broken = vector_of(1)
    broken[3] = np.nan
    for refused, reason in [
        (crop("x", vector=broken), f"x: the vector must be {DIM} finite numbers"),
        (crop("x", vector=vector_of(1)[:8]), f"x: the vector must be {DIM} finite numbers, found 8"),
        (crop("x", 1, {"unknown": "c1"}), "x: the gallery has no column 'unknown'"),
    ]:
        with pytest.raises(CsktError, match=reason):
            store.add([crop("fine", 1), refused])
    assert store.count() == 0


def test_deleted_crops_are_not_found(store: VectorStore) -> None:
    crops = [crop(f"{seed}.jpg", seed) for seed in range(20)]
    store.add(crops)
    assert store.search(queries_of(0), 20)[0][0].image_id == "0.jpg"
    assert store.delete(["0.jpg", "7.jpg", "not there", "7.jpg"]) == 2
    assert store.count() == 18
    assert store.get(["0.jpg", "1.jpg"]).keys() == {"1.jpg"}
    assert store.thumbnails(["7.jpg"]) == {}
    left = [each for each in crops if each.facts.image_id not in ("0.jpg", "7.jpg")]
    assert_same_hits(store, left, queries_of(0, 7, 99).numpy(), 50)
    store.add([crop("0.jpg", 0)])
    assert store.search(queries_of(0), 1)[0][0].image_id == "0.jpg"


@pytest.mark.parametrize("k", [1, 10, 400, 2000])
def test_the_best_are_found_in_order(store: VectorStore, k: int) -> None:
    crops = [crop(f"{seed:04}.jpg", seed) for seed in range(400)]
    store.add(crops)
    assert_same_hits(store, crops, queries_of(5000, 5001, 5002).numpy(), k)


def test_ties_are_in_the_order_of_names(store: VectorStore) -> None:
    """Names that sort otherwise as numbers, without regard to case, or by another rule than the code point."""
    names = [f"{seed}.jpg" for seed in range(120)] + ["B", "a", "A", "é", "ä", "z", "日", "𝒳", "\ufeff"]
    names = [names[place] for place in np.random.default_rng(0).permutation(len(names))]
    crops = [crop(name, seed, vector=coarse(seed % 6)) for seed, name in enumerate(names)]
    store.add(crops)
    for k in (1, 3, 25, 129):
        assert_same_hits(store, crops, np.stack([coarse(3), coarse(50)]), k)


def test_negative_scores(store: VectorStore) -> None:
    crops = [crop(f"{seed}", seed, vector=-np.abs(vector_of(seed))) for seed in range(30)]
    store.add(crops)
    assert_same_hits(store, crops, np.abs(queries_of(1, 2).numpy()), 10)


def test_many_queries_at_once(store: VectorStore) -> None:
    crops = [crop(f"{seed:03}", seed) for seed in range(150)]
    store.add(crops)
    assert_same_hits(store, crops, queries_of(*range(1000, 1300)).numpy(), 3)


def test_two_thousand_crops_in_one_call(store: VectorStore) -> None:
    crops = [crop(f"{seed:05}", seed, {"frame": seed}) for seed in range(2000)]
    store.add(crops)
    assert store.count() == 2000
    assert_same_hits(store, crops, queries_of(9999).numpy(), 10)
    names = [each.facts.image_id for each in crops]
    assert len(store.get(names)) == len(store.vectors(names)) == len(store.files()) == 2000
    assert store.delete(names[:1500]) == 1500
    assert_same_hits(store, crops[1500:], queries_of(9999).numpy(), 10)


def test_texts_of_any_characters(store: VectorStore) -> None:
    crops = [crop(f"{seed:03}", seed, {"note": text}) for seed, text in enumerate(NASTY_TEXTS)]
    store.add(crops)
    assert store.get([each.facts.image_id for each in crops]) == {each.facts.image_id: each.facts for each in crops}
    for each in crops:
        assert store.count(Comparison("note", "=", each.facts.metadata["note"])) == 1


def test_names_of_any_characters(store: VectorStore) -> None:
    texts = [*NASTY_NAMES, "x" * 400, 'cam 1/it\'s "here".jpg', "..a/b..", "a'); --"]
    crops = [crop(text, seed, {"note": text}) for seed, text in enumerate(dict.fromkeys(texts))]
    store.add(crops)
    assert store.get([each.facts.image_id for each in crops]) == {each.facts.image_id: each.facts for each in crops}
    for each in crops:
        name = each.facts.image_id
        assert store.thumbnails([name])[name] == each.thumbnail
        assert list(store.vectors([name])) == [name]
        assert store.count(Comparison("image_id", "=", name)) == store.count(Comparison("note", "=", name)) == 1
    assert store.delete([each.facts.image_id for each in crops[::2]]) == len(crops[::2])
    assert store.files().keys() == {each.facts.image_id for each in crops[1::2]}


@pytest.fixture(scope="module")
def of_every_kind(opener: Opener, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VectorStore, list[Crop]]]:
    """Return a store of crops with random values, some of them missing."""
    rng = random.Random(0)
    rows = [
        {column: rng.choice(SOME_VALUES[kind]) for column, kind in COLUMNS.items() if rng.random() < 0.8}
        for _ in range(150)
    ]
    crops = [crop(f"{place:03}", place, row) for place, row in enumerate(rows)]
    store = opener(tmp_path_factory.mktemp("kinds"), COLUMNS)
    store.add(crops)
    yield store, crops
    store.close()


@settings(max_examples=60, deadline=None)
@given(condition=conditions())
@example(condition=Any_((Membership("camera", ("c1",), negated=True), Membership("camera", ("C1",), negated=True))))
def test_conditions_select_the_crops_that_fulfil_them(
    of_every_kind: tuple[VectorStore, list[Crop]], condition: Condition
) -> None:
    store, crops = of_every_kind
    fulfilling = [each for each in crops if fulfils(condition, each.facts.metadata)]
    assert store.count(condition) == len(fulfilling)
    [found] = store.search(queries_of(777), 3, condition)
    assert names(found) == [image_id for image_id, _ in expected(fulfilling, vector_of(777), 3)]
    assert sum(store.histogram(queries_of(777)[0], [-1.0, 0.0, 1.0], condition)) == len(fulfilling)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 70), condition=conditions())
def test_a_single_search_finds_what_other_searches_find(
    shared_store: VectorStore, seed: int, k: int, condition: Condition
) -> None:
    """Crops with ties and missing values are added, replaced and deleted between the searches."""
    rng, store = random.Random(seed), shared_store
    store.delete(list(store.files()))
    for _ in range(2):
        crops = []
        for _ in range(rng.randrange(40)):
            number = rng.randrange(60)
            row = {column: rng.choice(SOME_VALUES[kind]) for column, kind in COLUMNS.items() if rng.random() < 0.8}
            crops.append(crop(f"{number}", number, row, coarse(rng.randrange(12))))
        store.add(crops)
        store.delete([f"{rng.randrange(60)}" for _ in range(10)])
        query = torch.from_numpy(coarse(rng.randrange(12)))
        for where in (None, condition):
            assert store.search_once(query, k, where) == store.search(query[None], k, where)[0]


def test_columns_of_any_script_and_patterns_with_every_letter(open_store: Open) -> None:
    store = open_store()
    store.add_columns({"カメラ": "text", "номер_1": "number", "कैमरा": "text"})
    values = ["100%", "100 %", "a_b", "axb", "50% off", "é", "e\u0301", "\\%", "%"]
    rows: list[dict[str, Value]] = [{"カメラ": text, "номер_1": number} for number, text in enumerate(values)]
    store.add([crop(f"{number}.jpg", number, row) for number, row in enumerate(rows)])
    assert store.get(["3.jpg"])["3.jpg"].metadata == {"カメラ": "axb", "номер_1": 3}
    known: dict[str, Kind] = {"カメラ": "text", "номер_1": "number", "कैमरा": "text"}
    for where, expected_names in {
        "カメラ LIKE '%!%' ESCAPE '!'": "0178",
        "カメラ LIKE '%!%%' ESCAPE '!'": "01478",
        "カメラ LIKE 'a!_b' ESCAPE '!'": "2",
        "カメラ NOT LIKE '%!%%' ESCAPE '!'": "2356",
        "カメラ LIKE '\\\\!%' ESCAPE '!'": "",
        "カメラ LIKE '\\!%' ESCAPE '!'": "7",
        "カメラ = 'é'": "56",
        "カメラ != 'e\u0301' AND номер_1 > 3": "478",
        "カメラ LIKE 'é%'": "56",
        "Номер_1 IN (1, 2, 3)": "123",
        "कैमरा IS NULL": "012345678",
    }.items():
        found = [name for name, row in zip("012345678", rows, strict=True) if fulfils(parse_filter(where, known), row)]
        assert "".join(found) == expected_names, where
        assert store.count(parse_filter(where, known)) == len(expected_names), where
        hits = store.search(torch.from_numpy(vector_of(0)[None]), 20, parse_filter(where, known))[0]
        assert sorted(names(hits)) == [f"{number}.jpg" for number in expected_names], where


def test_thousands_of_values_in_a_list(store: VectorStore) -> None:
    store.add([crop(f"{number}.jpg", number, {"frame": number, "camera": f"c{number}"}) for number in range(30)])
    numbers = ", ".join(str(number) for number in range(20, 5020))
    texts = ", ".join(f"'c{number}'" for number in range(20, 2020))
    assert store.count(parse_filter(f"frame IN ({numbers})", COLUMNS)) == 10
    assert store.count(parse_filter(f"camera NOT IN ({texts})", COLUMNS)) == 20
    assert store.count(parse_filter(f"camera IN ({texts})", COLUMNS)) == 10
    chain = " OR ".join(f"frame = {number}" for number in range(20, 221))
    assert store.count(parse_filter(chain, COLUMNS)) == 10


def test_built_in_columns_are_filtered_by(store: VectorStore) -> None:
    store.add([crop(f"cam{seed % 3}/{seed}.jpg", seed) for seed in range(30)])
    for text, matching in [
        ("image_id LIKE 'cam1/%'", 10),
        ("width < 70 AND height >= 130", 4),
        ("width = 70.5", 0),
        ("num_bytes BETWEEN 4003 AND 4005.5", 3),
        (f"sha256 IN ('{7:064x}', '{8:064x}', 'x')", 2),
        ("width > 1e300", 0),
        ("width IS NULL", 0),
        ("width IS NOT NULL", 30),
    ]:
        condition = parse_filter(text, {**BUILT_IN, **COLUMNS})
        assert store.count(condition) == matching, text
        assert len(store.search(queries_of(1), 30, condition)[0]) == matching, text


def test_filters_that_few_or_most_crops_fulfil(store: VectorStore) -> None:
    crops = [crop(f"{seed:04}", seed, {"frame": seed}) for seed in range(600)]
    store.add(crops)
    for operator, fulfilling in (("<", crops[:4]), (">=", crops[4:])):
        condition = Comparison("frame", operator, 4)
        [found] = store.search(queries_of(4444), 10, condition)
        assert names(found) == [image_id for image_id, _ in expected(fulfilling, vector_of(4444), 10)]


def test_a_filter_is_evaluated_again_after_a_change(store: VectorStore) -> None:
    night = Comparison("night", "=", True)
    store.add([crop("a", 1, {"night": True}), crop("b", 2, {"night": False})])
    assert names(store.search(queries_of(1), 9, night)[0]) == ["a"]
    store.add([crop("a", 1, {"night": False}), crop("b", 2, {"night": True}), crop("c", 3, {"night": True})])
    assert {hit.image_id for hit in store.search(queries_of(1), 9, night)[0]} == {"b", "c"}


def test_a_histogram_counts_every_crop_once(store: VectorStore) -> None:
    crops = [crop(f"{seed:03}", seed, {"frame": seed}, vector=coarse(seed)) for seed in range(200)]
    store.add(crops)
    query, edges = coarse(1000), [-0.375, -0.25, 0.0, 0.25, 0.375]
    scores = np.stack([each.vector for each in crops]) @ query  # multiples of 1/8, some of them edges, some beyond
    assert {-0.25, 0.0, 0.25} <= set(scores) and scores.max() > 0.375 and scores.min() < -0.375
    wanted = [
        int((scores < -0.25).sum()),
        int(((scores >= -0.25) & (scores < 0)).sum()),
        int(((scores >= 0) & (scores < 0.25)).sum()),
        int((scores >= 0.25).sum()),
    ]
    assert store.histogram(torch.from_numpy(query), edges) == wanted
    assert sum(store.histogram(torch.from_numpy(query), edges, Comparison("frame", "<", 50))) == 50


def test_facets_contain_values_and_ranges(store: VectorStore) -> None:
    many = MAX_FACET_VALUES + 1
    rows: list[dict[str, Value]] = [
        {
            "camera": f"c{seed % 7}",
            "note": f"note {seed}",
            "frame": seed - 3.5,
            "time": f"2026-01-{seed % 9 + 1:02}T00:00:00",
        }
        for seed in range(many)
    ]
    for seed in range(1, many, 2):
        rows[seed]["night"] = seed % 4 == 0
    store.add([crop(f"{seed}", seed, row) for seed, row in enumerate(rows)])
    facets = store.facets(COLUMNS)
    assert facets["camera"].values == (("c0", 8), ("c1", 8), *((f"c{place}", 7) for place in range(2, 7)))
    assert facets["note"] == Facet("text")
    assert facets["frame"] == Facet("number", minimum=-3.5, maximum=many - 4.5)
    assert facets["time"] == Facet("time", minimum="2026-01-01T00:00:00", maximum="2026-01-09T00:00:00")
    assert facets["night"] == Facet("boolean", values=((False, 25),))
    store.delete(["0"])
    assert len(store.facets({"note": "text"})["note"].values) == MAX_FACET_VALUES


def test_columns_can_be_added_later(open_store: Open) -> None:
    store = open_store()
    store.add([crop("a", 1, {"camera": "c1"})])
    store.add_columns({"camera": "text", "order": "number", "select": "text"})  # words of SQL are names like others
    store.add([crop("b", 2, {"order": 7, "select": "x"})])
    assert store.get(["a", "b"]) == {
        "a": crop("a", 1, {"camera": "c1"}).facts,
        "b": crop("b", 2, {"order": 7, "select": "x"}).facts,
    }
    assert names(store.search(queries_of(1), 5, Comparison("order", ">", 6))[0]) == ["b"]
    assert store.facets({"order": "number"})["order"] == Facet("number", minimum=7, maximum=7)


def test_a_store_opened_again_holds_what_was_added(open_store: Open) -> None:
    crops = [crop(f"{seed}", seed, {"frame": seed}) for seed in range(20)]
    store = open_store()
    store.add(crops)
    store.delete(["3"])
    store.close()
    again = open_store()
    assert again.count() == 19
    assert_same_hits(again, [each for each in crops if each.facts.image_id != "3"], queries_of(3, 99).numpy(), 30)


def test_compaction_changes_no_answer(store: VectorStore) -> None:
    crops = [crop(f"{seed:02}", seed, {"frame": seed}) for seed in range(30)]
    for each in crops:
        store.add([each])
    store.delete(["07"])
    store.search(queries_of(1), 3)
    store.compact()
    left = [each for each in crops if each.facts.image_id != "07"]
    assert_same_hits(store, left, queries_of(1, 7).numpy(), 40)
    assert store.get(["08", "07"]) == {"08": crops[8].facts}
    assert store.count(Comparison("frame", "<", 10)) == 9


def test_a_search_sees_whole_additions_of_a_concurrent_writer(store: VectorStore) -> None:
    """Each addition has one crop of either kind, so that a reader would notice a partial one."""
    store.add([crop("even/start", 1, vector=coarse(1)), crop("odd/start", 1, vector=coarse(1))])
    problems: list[object] = []
    done = threading.Event()

    def read() -> None:
        last = 0
        while not done.is_set():
            try:
                [found] = store.search(torch.from_numpy(coarse(1))[None], 1000)
            except Exception as error:  # noqa: BLE001  the test's own thread reports it
                problems.append(error)
                return
            kinds = [each.image_id.split("/")[0] for each in found]
            if kinds.count("even") != kinds.count("odd") or len(kinds) < last:
                problems.append(kinds)
            last = len(kinds)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(15):
        store.add([crop(f"{kind}/{number}", number, vector=coarse(1)) for kind in ("even", "odd")])
        assert store.count() == 2 * number + 4
    done.set()
    for reader in readers:
        reader.join()
    assert not problems
