"""Crops that are replaced on Milvus while the process is killed or the connection breaks are old or new, but whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filter_oracle import fulfils

from cskt.gallery.conditions import Comparison, Missing, Pattern
from fault_tries import chance, record, tries, wait_until

pytest.importorskip("milvus_lite")

import replacing_process
from pymilvus import MilvusException
from replacing_process import COLUMNS, DIM, NUM_CROPS, crops_of

from cskt.gallery.stores.milvus.milvus_store import MilvusStore, open_milvus

pytestmark = pytest.mark.milvus

NUM_KILLS = tries(2, 20)


def rounds_of(store: MilvusStore) -> set[int]:
    """Return the rounds of the stored crops, and check that all are whole and as their round wrote them."""
    rounds = {name: state.modified_ns for name, state in store.files().items()}
    written = {round_: {crop.facts.image_id: crop for crop in crops_of(round_)} for round_ in set(rounds.values())}
    wanted = {name: written[round_][name] for name, round_ in rounds.items()}
    names = list(wanted)
    assert len(names) == NUM_CROPS
    assert store.get(names) == {name: crop.facts for name, crop in wanted.items()}
    assert store.thumbnails(names) == {name: crop.thumbnail for name, crop in wanted.items()}
    for name, vector in store.vectors(names).items():
        np.testing.assert_array_equal(vector, wanted[name].vector)
    for condition in (
        Missing("camera"), Missing("camera", negated=True), Missing("round"), Pattern("camera", ("c", "")),
        Comparison("camera", "=", "c1"), Comparison("camera", "!=", "c1"), Comparison("round", ">", 0),
    ):  # fmt: skip
        fulfilling = sum(fulfils(condition, crop.facts.metadata) for crop in wanted.values())
        assert store.count(condition) == fulfilling, condition
    return set(written)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * NUM_KILLS)
@pytest.mark.parametrize("options", ["", "?partition=camera"])
def test_crops_are_whole_after_a_kill_while_they_are_replaced(tmp_path: Path, options: str) -> None:
    """A request is written as a whole, or with partitions, each crop."""
    random, url, log = chance("replacing"), f"milvus:{tmp_path}/crops.db{options}", tmp_path / "log"
    program = Path(replacing_process.__file__)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    reached = 0
    for _ in range(NUM_KILLS):
        log.write_text("", encoding="ascii")
        command = [sys.executable, str(program), url, str(reached + 1), str(log)]
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        num_rounds = random.randint(1, 5)  # acknowledged when the kill strikes, while the next is written
        wait_until(lambda wanted=num_rounds: log.read_text(encoding="ascii").count("\n") >= wanted, process)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        acknowledged = int(log.read_text(encoding="ascii").splitlines()[-1])
        store = open_milvus(url, DIM, COLUMNS)
        rounds = rounds_of(store)
        store.close()
        assert rounds <= {acknowledged, acknowledged + 1}
        assert options or len(rounds) == 1
        reached = max(rounds)
    fault, test = "replacing crops on Milvus killed (kill -9)", "tests/gallery/test_milvus_faults.py"
    record(fault, tried=NUM_KILLS, test=test)


def test_crops_are_whole_if_the_connection_breaks_while_they_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_milvus(f"milvus:{tmp_path}/crops.db", DIM, COLUMNS)

    def broken(*_: object, **__: object) -> None:
        raise MilvusException(message="the connection is gone")

    for verb in ("upsert", "query", "insert", "delete", "flush"):
        store.add(list(crops_of(1)))
        with monkeypatch.context() as patch:
            patch.setattr(store._client, verb, broken)
            if verb in ("upsert", "query"):
                with pytest.raises(ValueError, match=r"crops\.db: the connection is gone"):
                    store.add(list(crops_of(2)))
            else:  # replacing crops does not use these
                store.add(list(crops_of(2)))
        assert rounds_of(store) == {1 if verb in ("upsert", "query") else 2}
    store.close()
