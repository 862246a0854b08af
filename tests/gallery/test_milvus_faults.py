"""Crops that are replaced on Milvus while the process is killed or the connection breaks: the old or the new, whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import replacing_process
from pymilvus import MilvusException
from replacing_process import COLUMNS, DIM, NUM_CROPS, crops_of

from cskt.gallery.conditions import Comparison, Missing, Pattern
from cskt.gallery.milvus import MilvusStore, open_milvus
from fault_tries import chance, record, tries

pytest.importorskip("milvus_lite")

NUM_KILLS = tries(3, 20)


def round_of(store: MilvusStore) -> int:
    """The round that all crops are of, when each is whole and as its round wrote it."""
    files = store.files()
    assert len(files) == NUM_CROPS
    [round_] = {state.modified_ns for state in files.values()}
    wanted = {crop.facts.image_id: crop for crop in crops_of(round_)}
    names = list(wanted)
    assert store.get(names) == {name: crop.facts for name, crop in wanted.items()}
    assert store.thumbnails(names) == {name: crop.thumbnail for name, crop in wanted.items()}
    for name, vector in store.vectors(names).items():
        np.testing.assert_array_equal(vector, wanted[name].vector)
    has_values = NUM_CROPS if round_ % 2 else 0
    for condition in (
        Missing("camera", negated=True), Missing("round", negated=True), Pattern("camera", ("c", "")),
        Comparison("camera", "=", f"c{round_}"), Comparison("round", "=", round_), Comparison("round", "!=", 0),
    ):  # fmt: skip
        assert store.count(condition) == has_values, condition
    return round_


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
@pytest.mark.timeout(60 + 30 * NUM_KILLS)
def test_killed_at_any_moment_while_crops_are_replaced(tmp_path: Path) -> None:
    random, url, log = chance("replacing"), f"milvus:{tmp_path}/crops.db", tmp_path / "log"
    program = Path(replacing_process.__file__)
    reached = 0
    for _ in range(NUM_KILLS):
        log.write_text("", encoding="ascii")
        process = subprocess.Popen(
            [sys.executable, str(program), url, str(reached + 1), str(log)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        while not log.stat().st_size:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        acknowledged = int(log.read_text(encoding="ascii").splitlines()[-1])
        store = open_milvus(url, DIM, COLUMNS)
        reached = round_of(store)
        store.close()
        assert acknowledged <= reached <= acknowledged + 1
    record("replacing crops on Milvus killed (kill -9)", tried=NUM_KILLS, test="tests/gallery/test_milvus_faults.py")


def test_a_connection_that_breaks_while_crops_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever request fails, the crops that were there still are."""
    store = open_milvus(f"milvus:{tmp_path}/crops.db", DIM, COLUMNS)
    store.add(list(crops_of(1)))
    num_requests = 0
    for verb in ("upsert", "insert", "delete", "query", "flush"):

        def broken(*_: object, **__: object) -> None:
            nonlocal num_requests
            num_requests += 1
            raise MilvusException(message="the connection is gone")

        with monkeypatch.context() as patch:
            patch.setattr(store._client, verb, broken)
            if verb in ("upsert", "query"):
                with pytest.raises(ValueError, match=r"crops\.db: "):
                    store.add(list(crops_of(2)))
            else:
                store.add(list(crops_of(1)))
        assert round_of(store) == 1
    assert num_requests == 2
    store.add(list(crops_of(2)))
    assert round_of(store) == 2
    store.close()
