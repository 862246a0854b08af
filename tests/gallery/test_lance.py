"""LanceDB store: several processes with one table, new versions, many ties, old versions, the index for many crops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from test_store_conformance import assert_same_hits, coarse, crop, names, queries_of, vector_of

from cskt.errors import CsktError
from cskt.gallery.conditions import Comparison
from cskt.gallery.stores.base import Crop
from cskt.gallery.stores.exact_search import Matrix

pytest.importorskip("lancedb")
from cskt.gallery.stores.lance import lance_store, versions
from cskt.gallery.stores.lance.lance_store import LanceStore, open_lance

DIM = 16
WRITER = """
import sys
from pathlib import Path
sys.path += sys.argv[2:]
from test_store_conformance import crop
from cskt.gallery.stores.lance.lance_store import open_lance
store = open_lance(Path(sys.argv[1]), 16, {})
for number in range(10_000):
    store.add([crop(f"{kind}/{number}", number) for kind in ("even", "odd")])
    print(number, flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LanceStore]:
    store = open_lance(tmp_path, DIM, {"frame": "number"})
    yield store
    store.close()


def some_crops(count: int, start: int = 0) -> list[Crop]:
    return [crop(f"{seed:04}", seed, {"frame": seed}) for seed in range(start, start + count)]


def test_another_width_is_refused(store: LanceStore, tmp_path: Path) -> None:
    with pytest.raises(CsktError, match="vectors of 16 numbers, the model gives 32; type: cskt reindex"):
        open_lance(tmp_path, 32, {})


@pytest.mark.parametrize("name", ["a b", "a#b?c=d", "100%20", "ü日", "it's"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    store = open_lance(tmp_path / name, DIM, {})
    store.add([crop("a", 1)])
    assert open_lance(tmp_path / name, DIM, {}).count() == 1
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_a_partly_made_table_is_completed(tmp_path: Path) -> None:
    (tmp_path / "crops.lance" / "data").mkdir(parents=True)
    (tmp_path / "crops.lance" / "_versions").mkdir()
    store = open_lance(tmp_path, DIM, {})
    store.add([crop("a", 1)])
    assert store.count() == 1


def test_only_new_rows_are_read_after_a_change(store: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = some_crops(100)
    store.add(crops)
    store.search(queries_of(1), 1)
    read: list[int] = []
    extended = Matrix.extended

    def counted(self: Matrix, keys: np.ndarray, vectors: np.ndarray) -> Matrix:
        read.append(len(keys))
        return extended(self, keys, vectors)

    monkeypatch.setattr(Matrix, "extended", counted)
    store.search(queries_of(2), 1)
    store.delete(["0000", "0099"])
    store.search(queries_of(2), 1)
    assert sum(read) == 0
    replaced = [crop("0003", 1003), *some_crops(4, 200)]
    store.add(replaced)
    assert_same_hits(store, [*crops[1:3], *crops[4:99], *replaced], queries_of(3, 1003, 200).numpy(), 200)
    assert sum(read) == 5


@pytest.mark.slow
def test_a_reader_sees_every_acknowledged_write_of_a_killed_process(tmp_path: Path) -> None:
    """After the kill every acknowledged addition is present as a whole."""
    reader = open_lance(tmp_path, DIM, {})
    command = [sys.executable, "-c", WRITER, str(tmp_path), *map(str, Path(__file__).parents[:2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for number in range(5):
            assert int(writer.stdout.readline()) == number
            [found] = reader.search(queries_of(number), 2)
            assert names(found) == [f"even/{number}", f"odd/{number}"]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = 5 + len(writer.stdout.readlines())
    for each in (reader, open_lance(tmp_path, DIM, {})):
        there = each.files()
        assert there.keys() >= {f"{kind}/{number}" for number in range(acknowledged) for kind in ("even", "odd")}
        assert {name.split("/")[1] for name in there if "even" in name} == {
            name.split("/")[1] for name in there if "odd" in name
        }
        each.add([crop("after", 5000)])
        assert names(each.search(queries_of(5000), 1)[0]) == ["after"]


def test_two_writers_lose_and_double_no_crop(tmp_path: Path) -> None:
    """Each writer has its own connection, as two processes have; half of the names are equal."""
    stores = [open_lance(tmp_path, DIM, {"frame": "number"}) for _ in range(2)]
    problems: list[Exception] = []

    def write(writer: int) -> None:
        try:
            for number in range(10):
                name = f"{number}" if number % 2 else f"{writer}/{number}"
                stores[writer].add([crop(name, 100 * writer + number, {"frame": writer})])
                stores[writer].delete([f"{writer}/{number - 2}"])
        except Exception as error:  # noqa: BLE001  the test's own thread reports it
            problems.append(error)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    expected = {"1", "3", "5", "7", "9", "0/8", "1/8"}
    for each in stores:
        assert each.files().keys() == expected
        assert each.count() == len(each.search(queries_of(1), 100)[0]) == len(expected)


def test_a_read_only_folder_is_searched(store: LanceStore, tmp_path: Path) -> None:
    store.add(some_crops(20))
    (tmp_path / "write.lock").unlink(missing_ok=True)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        reader = open_lance(tmp_path, DIM, {"frame": "number"})
        assert_same_hits(reader, some_crops(20), queries_of(3).numpy(), 5)
        assert not (tmp_path / "write.lock").exists()
    finally:
        for path in [tmp_path, *tmp_path.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_more_ties_than_are_read_at_once(store: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of candidates are read in pieces, only as far as they can be among the best."""
    monkeypatch.setattr(versions, "MAX_FETCHED", 32)
    shuffled = np.random.default_rng(0).permutation(300)
    crops = [crop(f"{number:03}", number, vector=coarse(number % 2)) for number in shuffled.tolist()]
    store.add([*crops, *some_crops(100, 1000)])
    assert_same_hits(store, [*crops, *some_crops(100, 1000)], np.stack([coarse(0), coarse(1), coarse(2)]), 7)
    read: list[int] = []
    take = versions.Version.take

    def counted(self: versions.Version, ids: np.ndarray) -> object:
        read.append(len(ids))
        return take(self, ids)

    monkeypatch.setattr(versions.Version, "take", counted)
    [found] = store.search(torch.from_numpy(coarse(0))[None], 7)
    assert names(found) == [f"{number:03}" for number in range(0, 14, 2)]
    assert max(read) <= 32 and 150 <= sum(read) < 400


def test_compaction_retains_the_version_of_a_running_search(store: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_store, "MANY_FRAGMENTS", 3)
    for each in some_crops(6):
        store.add([each])
    pinned = store._at(store._latest())  # as a search holds it while it runs
    store.compact()
    assert len(pinned.matching_ids()) == 6
    assert set(pinned.matching_ids().tolist()).isdisjoint(store._at(store._latest()).matching_ids().tolist()), (
        "nothing was moved"
    )
    assert_same_hits(store, some_crops(6), queries_of(2).numpy(), 10)
    assert len(pinned.take(pinned.matching_ids())) == 6


def test_compaction_deletes_versions_after_their_retention(
    store: LanceStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lance_store, "MANY_FRAGMENTS", 3)
    monkeypatch.setattr(lance_store, "RETENTION", timedelta(seconds=-10))  # as if an hour had passed
    monkeypatch.setattr(lance_store, "TOLERANCE", timedelta(0))
    for each in some_crops(6):
        store.add([each])
    store.compact()
    store.compact()
    assert len(list((tmp_path / "crops.lance" / "_versions").glob("*.manifest"))) < 6
    assert_same_hits(store, some_crops(6), queries_of(2).numpy(), 10)


def test_age_counts_from_when_a_version_was_replaced() -> None:
    hours = [9.0, 5.0, 0.5, 0.1]  # since each version was made; the second was still current half an hour ago
    versions = [{"timestamp": datetime.now() - timedelta(hours=each)} for each in hours]
    age = lance_store._age_of_outdated(versions)
    assert timedelta(hours=5) < age < timedelta(hours=9)
    assert lance_store._age_of_outdated(versions[:1]) > timedelta(hours=9)


def test_crops_are_found_by_indexed_names(store: LanceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_store, "INDEXED_FROM", 50)
    store.add(some_crops(60))
    store.compact()
    assert [index.columns for index in store._writer.list_indices()] == [["image_id"]]
    store.add([crop("0007", 1007, {"frame": -1}), *some_crops(10, 100)])
    store.delete(["0009", "0101"])
    assert store.count() == 68
    assert store.get(["0007", "0008", "0009", "0100", "0101"]).keys() == {"0007", "0008", "0100"}
    assert store.get(["0007"])["0007"].metadata == {"frame": -1}
    assert store.count(Comparison("image_id", "=", "0100")) == 1


def test_a_search_above_the_matrix_limit_uses_the_index(tmp_path: Path) -> None:
    store = open_lance(tmp_path, DIM, {"frame": "number"}, matrix_limit=100)
    crops = some_crops(100)
    store.add(crops)
    crops += some_crops(500, 100)
    store.add(crops[100:])
    assert_same_hits(store, crops, queries_of(9000, 9001).numpy(), 10)  # no index yet: all are looked at
    store.compact()
    assert ["vector"] in [index.columns for index in store._writer.list_indices()]
    crops += some_crops(5, 700)
    store.add(crops[-5:])
    scores = np.stack([each.vector for each in crops]) @ vector_of(9000)
    [found] = store.search(queries_of(9000), 20)
    best = {crops[place].facts.image_id for place in np.argsort(-scores)[:20]}
    assert len(best & set(names(found))) >= 16
    for each in found:
        assert each.score == pytest.approx(
            float(scores[[crop.facts.image_id for crop in crops].index(each.image_id)]), abs=1e-6
        )
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert names(store.search(queries_of(702), 1)[0]) == ["0702"]
    [few] = store.search(queries_of(9000), 20, Comparison("frame", "<", 7))
    assert sorted(names(few)) == [f"{number:04}" for number in range(7)]
    assert sum(store.histogram(queries_of(1)[0], [-1.0, 0.0, 1.0], Comparison("frame", "<", 50))) == 50
    assert store._loaded is None, "the vectors are in memory"
