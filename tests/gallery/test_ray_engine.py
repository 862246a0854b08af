"""Encoding on a Ray cluster: the local engine's gallery, and nothing lost or doubled, whoever is killed.

Ray runs in programs of their own, `ray_program.py`, with a time limit: it starts processes, which does not go with what
other tests have started in this one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_faults import NUM_CROPS, check_whole, many_crops
from test_shards import archive_of, images_in, parquet_of

from cskt.embed import Encoder, ModelSource
from cskt.gallery.engines.ray import ActorPlan, plan_actors
from cskt.gallery.engines.ray_cluster import connected
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing.commits import IndexReport
from fault_tries import chance, record, tries

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ray on Windows is in beta")

PROGRAM = Path(__file__).with_name("ray_program.py")
NUM_KILLED_WORKERS = tries(1, 12)
NUM_KILLED_DRIVERS = tries(1, 6)
START_SECONDS = 90
"""Until Ray and its workers have started, on a slow machine."""
END_SECONDS = 300
"""Limit of a wait for a program that was interrupted; Ray takes its time to stop on a busy machine."""
LEAVE_SECONDS = 90
"""Until the last of Ray's processes has noticed that its cluster is gone; they look now and then."""


class Program:
    """`ray_program.py` as a group of processes."""

    def __init__(self, *words: str | Path) -> None:
        command = [sys.executable, str(PROGRAM), *map(str, words)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        self._family: dict[int, psutil.Process] = {}

    def family(self) -> list[psutil.Process]:
        """The program and every process below it, those included that were seen before and are left."""
        try:
            driver = psutil.Process(self._process.pid)
            self._family |= {one.pid: one for one in [driver, *driver.children(recursive=True)]}
        except psutil.NoSuchProcess:
            pass
        return [one for one in self._family.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def interrupt(self) -> None:
        """Press Ctrl-C: all processes of the terminal's group hear it."""
        self.family()
        os.killpg(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of the driver alone."""
        self.family()
        self._process.kill()

    def ended(self, seconds: float) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self._process.communicate(timeout=seconds)
        return self._process.returncode, out, err

    def kill_all(self) -> None:
        """Whatever is left of it."""
        for one in self.family():
            one.kill()
        self._process.communicate()


@contextmanager
def program(*words: str | Path) -> Iterator[Program]:
    """`ray_program.py` for the `with` block, and nothing of it afterwards."""
    started = Program(*words)
    try:
        yield started
    finally:
        started.kill_all()


def contents(gallery: Gallery) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> digest of the file, vector."""
    store = gallery._state.store
    files = store.files()
    vectors = store.vectors(list(files))
    return {name: (state.sha256, vectors[name]) for name, state in files.items()}


def assert_same(found: Gallery, expected: Gallery) -> None:
    """The same crops, each once, with the same vectors."""
    ours, theirs = contents(found), contents(expected)
    assert ours.keys() == theirs.keys()
    assert found.count() == len(ours)
    for name, (sha256, vector) in ours.items():
        assert sha256 == theirs[name][0], name
        assert np.allclose(vector, theirs[name][1], rtol=0, atol=1e-6), name


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> ModelSource:
    return ModelSource(str(tiny_backbone), precision="fp32")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, dolls: Path) -> Path:
    """Twelve crops, one of them damaged, in a folder with a list; the good ones in shards; many more in a folder."""
    place = tmp_path_factory.mktemp("ray")
    (place / "crops").mkdir()
    for number, image in enumerate(sorted(dolls.rglob("*.jpg"))[:11]):
        shutil.copyfile(image, place / "crops" / f"{number:02}.jpg")
    images = images_in(place / "crops")
    (place / "scratch").mkdir()
    for number in range(2):
        part = dict(list(images.items())[6 * number : 6 * number + 6])
        parquet_of(part, place / "scratch" / f"{number}.parquet")
        archive_of(part, place / "scratch" / f"{number}.tar")
    (place / "crops" / "bad.jpg").write_bytes(b"no image")
    (place / "crops" / "names.txt").write_text("\n".join([*images, "bad.jpg"]), encoding="utf-8")
    many_crops(place / "many", dolls)
    return place


@pytest.fixture(scope="module")
def local(place: Path, encoder: Encoder, model: ModelSource) -> Iterator[dict[str, Gallery]]:
    """Galleries of the local engine: of the folder, and of the many crops."""
    galleries = {name: Gallery.create(place / f"local-{name}", encoder, store="lance") for name in ("crops", "many")}
    for name, gallery in galleries.items():
        gallery.index(place / name)
    yield galleries
    for gallery in galleries.values():
        gallery.close()


@pytest.fixture(scope="module")
def findings(place: Path, tiny_backbone: Path) -> dict[str, Any]:
    """What `ray_program.py check` says."""
    words = ("check", tiny_backbone, place / "crops", place / "many", place / "scratch", str(NUM_KILLED_WORKERS))
    with program(*words) as checking:
        code, out, err = checking.ended(START_SECONDS + 60 + 15 * NUM_KILLED_WORKERS)
    assert code == 0, err
    return dict(json.loads(line) for line in out.splitlines()) | {"stderr": err}


def nothing_but(**figures: int) -> dict[str, Any]:
    """A report with these figures."""
    report = dataclasses.asdict(IndexReport(**figures))
    del report["seconds"]
    return report


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["folder", "list", "parquet", "tar"])
def test_the_gallery_is_that_of_the_local_engine(
    kind: str, findings: dict[str, Any], place: Path, local: dict[str, Gallery], encoder: Encoder
) -> None:
    first, second = findings[kind]
    unreadable = first.pop("unreadable"), second.pop("unreadable")
    first["unreadable"], second["unreadable"] = [], []
    assert first.pop("passed_over") == second.pop("passed_over")
    first["passed_over"], second["passed_over"] = {}, {}
    assert (first, second) == (nothing_but(added=11), nothing_but(unchanged=11))
    for listed in unreadable:
        assert [name for name, _ in listed] == ([] if kind in ("parquet", "tar") else ["bad.jpg"])
    with Gallery.open(place / "scratch" / kind, encoder=encoder) as gallery:
        assert_same(gallery, local["crops"])
        if kind in ("parquet", "tar"):
            assert gallery.count("camera >= 3") == 3 + 2
            name, data = next(iter(images_in(place / "crops").items()))
            assert gallery.original(name).read_bytes() == data


@pytest.mark.timeout(400)
def test_killed_workers_lose_and_double_nothing(
    findings: dict[str, Any], place: Path, local: dict[str, Gallery], encoder: Encoder
) -> None:
    assert findings["kills"] == NUM_KILLED_WORKERS
    assert findings["killed"] == [nothing_but(added=NUM_CROPS), nothing_but(unchanged=NUM_CROPS)]
    # One that is killed again while it starts anew had nothing to lose, and is told of once.
    assert 1 <= findings["stderr"].count(" died; nothing is lost") <= NUM_KILLED_WORKERS
    with Gallery.open(place / "scratch" / "killed", encoder=encoder) as gallery:
        check_whole(gallery, place / "many")
        assert_same(gallery, local["many"])
    test = "tests/gallery/test_ray_engine.py"
    record("Ray worker killed (kill -9) while indexing", tried=NUM_KILLED_WORKERS, test=test)


@pytest.mark.timeout(400)
def test_what_a_node_lacks_is_one_line(findings: dict[str, Any], place: Path, tiny_backbone: Path) -> None:
    node = socket.gethostname()
    unmounted = place / "scratch" / "unmounted"
    assert findings["no folder"] == f"node {node} does not see {unmounted}; every node needs it at that path"
    assert findings["another model"] == (
        f"node {node} loads another model than the gallery's from {tiny_backbone}; put the same weights there"
    )
    assert findings["too many workers"].startswith("--workers 1000: the cluster has ")


def index_words(gallery: Path, place: Path, backbone: Path) -> list[str | Path]:
    """Return the words of an indexing of 120 batches, of which the program takes a few."""
    return [
        "index", gallery, "--images", place / "many", "--model", backbone, "--engine", "ray", "--precision", "fp32",
        "--batch-size", "2", "--json",
    ]  # fmt: skip


def wait_for_crops(running: Program, folder: Path, encoder: Encoder, more_than: int) -> None:
    """Until a gallery holds more crops than that."""
    until = time.monotonic() + START_SECONDS
    while running.is_running and time.monotonic() < until:
        if (folder / "gallery.json").is_file():
            with Gallery.open(folder, encoder=encoder) as gallery:
                if gallery.count() > more_than:
                    return
        time.sleep(0.05)
    pytest.fail(f"nothing was stored: {running.ended(1)}")


@pytest.mark.timeout(60 + END_SECONDS + 3 * START_SECONDS * (NUM_KILLED_DRIVERS + 1))
def test_a_killed_and_an_interrupted_driver_lose_and_double_nothing(
    place: Path, tmp_path: Path, local: dict[str, Gallery], encoder: Encoder, tiny_backbone: Path
) -> None:
    folder, random, reached = tmp_path / "gallery", chance("ray drivers"), 0
    words = index_words(folder, place, tiny_backbone)
    left: list[psutil.Process] = []
    for _ in range(NUM_KILLED_DRIVERS):
        running = Program(*words)
        try:
            wait_for_crops(running, folder, encoder, more_than=reached)
            assert all(
                connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"
                for one in running.family()
                for connection in one.net_connections(kind="tcp")
                if connection.status == psutil.CONN_LISTEN
            ), "others can speak to the cluster"
            time.sleep(random.uniform(0, 0.5 / NUM_KILLED_DRIVERS))
            running.kill()
            assert running.ended(10)[0] == -signal.SIGKILL
        finally:
            left += running.family()
            running._process.kill()
        with Gallery.open(folder, encoder=encoder) as gallery:
            before, reached = reached, gallery.count()
            assert before < reached < NUM_CROPS
            check_whole(gallery, place / "many")

    with program(*words) as running:
        wait_for_crops(running, folder, encoder, more_than=reached)
        running.interrupt()
        code, out, err = running.ended(END_SECONDS)
        left += running.family()
        with Gallery.open(folder, encoder=encoder) as gallery:
            before, reached = reached, gallery.count()
            assert before < reached < NUM_CROPS
            told = f"cskt index: interrupted; {reached:,} images are in the gallery; run the same command to go on"
            assert (code, out, err.splitlines()[-1]) == (130, "", told)
            report = gallery.index(place / "many")
            assert (report.added, report.unchanged, report.replaced) == (NUM_CROPS - reached, reached, 0)
            assert_same(gallery, local["many"])
    psutil.wait_procs(left, timeout=LEAVE_SECONDS)
    assert [one for one in left if one.is_running()] == []
    test = "tests/gallery/test_ray_engine.py"
    record("indexing on Ray: driver killed (kill -9)", tried=NUM_KILLED_DRIVERS, test=test)


def test_actors_find_their_places() -> None:
    small, large = {"CPU": 2.0}, {"CPU": 16.0}
    assert plan_actors([small], None, None) == ActorPlan(1, 2, "cpu")
    assert plan_actors([small], 2, "auto") == ActorPlan(2, 1, "cpu")
    assert plan_actors([small, large], None, "cpu") == ActorPlan(9, 2, "cpu")
    assert plan_actors([small, large, {}], 1, None) == ActorPlan(1, 16, "cpu")
    assert plan_actors([small, {"CPU": 8.0, "GPU": 4.0}], None, None) == ActorPlan(4, 1, "cuda")
    assert plan_actors([{"CPU": 8.0, "GPU": 4.0}], 3, "cpu") == ActorPlan(3, 2, "cpu")
    for nodes, num_workers, device, told in (
        ([small], 3, None, "--workers 3: the cluster has 2 CPUs; give at most 2"),
        ([{"GPU": 1.0, "CPU": 4.0}], 2, None, "the cluster has 1 GPUs; --device cpu uses its CPUs; give at most 1"),
        ([{"node:here": 1.0}], None, None, "the cluster has no CPUs for workers; see `ray start --num-cpus`"),
        ([small], None, "cuda", "--device cuda: Ray gives every worker one of the cluster's 0 GPUs; use auto"),
    ):
        with pytest.raises(ValueError) as caught:
            plan_actors(nodes, num_workers, device)
        assert told in str(caught.value)


def test_no_cluster_at_an_address_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    with pytest.raises(ValueError, match=f"no Ray cluster at 127.0.0.1:{port}: Connection refused; see `ray start`"):
        connected(f"127.0.0.1:{port}").__enter__()
    for address in ("ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:100000", ":6379"):
        with pytest.raises(ValueError, match="expected auto, or HOST:PORT as `ray start` names it"):
            connected(address).__enter__()
