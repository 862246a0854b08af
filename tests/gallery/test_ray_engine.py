"""Encoding on a Ray cluster gives the gallery of the local engine, also if workers or the driver are killed.

Ray runs in a program of its own, `ray_program.py`: it starts processes, which this process with its open stores does
not survive. One cluster serves all tests that need not kill their driver.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from test_faults import NUM_CROPS, check_whole, many_crops
from test_shards import archive_of, images_in, parquet_of

from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.gallery.engines.ray import ActorPlan, plan_actors
from cskt.gallery.engines.ray_cluster import connected
from cskt.gallery.gallery import Gallery
from cskt.gallery.indexing.commits import IndexReport
from fault_tries import chance, record, tries, wait_until

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.skipif(sys.platform == "win32", reason="Ray on Windows is in beta")]

PROGRAM = Path(__file__).with_name("ray_program.py")
NUM_KILLED_WORKERS = tries(1, 12)
NUM_KILLED_DRIVERS = tries(1, 6)
LIMIT_SECONDS = 600
"""Generous limit of each wait: Ray takes its time to start and to stop on a busy machine."""
MAX_BATCHES = 15
"""Batches of two crops that a driver takes before it waits for its end; all drivers together do not take all crops."""


class Program:
    """`ray_program.py` as a group of processes."""

    def __init__(self, *words: str | Path) -> None:
        command = [sys.executable, str(PROGRAM), *map(str, words)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        )  # fmt: skip
        self._family: dict[int, psutil.Process] = {}

    def family(self) -> list[psutil.Process]:
        """Return the running processes of the program, also those that were its children at an earlier call."""
        try:
            driver = psutil.Process(self.process.pid)
            self._family |= {one.pid: one for one in [driver, *driver.children(recursive=True)]}
        except psutil.NoSuchProcess:
            pass
        return [one for one in self._family.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]

    def interrupt(self) -> None:
        """Send SIGINT to the process group, as Ctrl-C in a terminal does."""
        self.family()
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL to the driver only."""
        self.family()
        self.process.kill()

    def result(self) -> tuple[int, str, str]:
        """Wait for the end and return exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=LIMIT_SECONDS)
        return self.process.returncode, out, err

    def kill_all(self) -> None:
        """Kill every process of the program."""
        for one in self.family():
            one.kill()
        self.process.communicate()


@contextmanager
def program(*words: str | Path) -> Iterator[Program]:
    """Run `ray_program.py` for the `with` block, and kill its processes afterwards."""
    started = Program(*words)
    try:
        yield started
    finally:
        started.kill_all()


def contents(gallery: Gallery) -> dict[str, tuple[str, np.ndarray]]:
    """Return digest of the file and vector by name."""
    store = gallery._state.store
    files = store.files()
    vectors = store.vectors(list(files))
    return {name: (state.sha256, vectors[name]) for name, state in files.items()}


def assert_same(found: Gallery, expected: Gallery) -> None:
    """Check that two galleries have the same crops, each once, with the same vectors."""
    ours, theirs = contents(found), contents(expected)
    assert ours.keys() == theirs.keys()
    assert found.count() == len(ours)
    for name, (sha256, vector) in ours.items():
        assert sha256 == theirs[name][0], name
        assert np.allclose(vector, theirs[name][1], rtol=0, atol=1e-6), name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, dolls: Path) -> Path:
    """Return a folder of twelve crops, one of them corrupt, and a list; shards of the others; many more crops."""
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
def local(place: Path, encoder: Encoder) -> Iterator[dict[str, Gallery]]:
    """Return galleries that the local engine has filled: of the folder, and of the many crops."""
    galleries = {name: Gallery.create(place / f"local-{name}", encoder) for name in ("crops", "many")}
    for name, gallery in galleries.items():
        gallery.index(place / name)
    yield galleries
    for gallery in galleries.values():
        gallery.close()


@pytest.fixture(scope="module")
def findings(place: Path, tiny_backbone: Path) -> dict[str, Any]:
    """Return the results of `ray_program.py check`."""
    words = ("check", tiny_backbone, place / "crops", place / "many", place / "scratch", str(NUM_KILLED_WORKERS))
    with program(*words) as checking:
        code, out, err = checking.result()
    assert code == 0, err
    return dict(json.loads(line) for line in out.splitlines()) | {"stderr": err}


def report_of(**figures: int) -> dict[str, Any]:
    """Return a report with these figures and zeros."""
    report = dataclasses.asdict(IndexReport(**figures))
    del report["seconds"]
    return report


@pytest.mark.timeout(2 * LIMIT_SECONDS)
@pytest.mark.parametrize("kind", ["folder", "list", "parquet", "tar"])
def test_a_ray_cluster_gives_the_gallery_of_the_local_engine(
    kind: str, findings: dict[str, Any], place: Path, local: dict[str, Gallery], encoder: Encoder
) -> None:
    first, second = findings[kind]
    unreadable = first.pop("unreadable"), second.pop("unreadable")
    first["unreadable"], second["unreadable"] = [], []
    assert first.pop("passed_over") == second.pop("passed_over")
    first["passed_over"], second["passed_over"] = {}, {}
    assert (first, second) == (report_of(added=11), report_of(unchanged=11))
    for listed in unreadable:
        assert [name for name, _ in listed] == ([] if kind in ("parquet", "tar") else ["bad.jpg"])
    with Gallery.open(place / "scratch" / kind, encoder=encoder) as gallery:
        assert_same(gallery, local["crops"])
        if kind in ("parquet", "tar"):
            assert gallery.count("camera >= 3") == 3 + 2
            name, data = next(iter(images_in(place / "crops").items()))
            assert gallery.original(name).read_bytes() == data


@pytest.mark.timeout(2 * LIMIT_SECONDS)
def test_no_crop_is_lost_or_doubled_if_workers_are_killed(
    findings: dict[str, Any], place: Path, local: dict[str, Gallery], encoder: Encoder
) -> None:
    assert findings["kills"] == NUM_KILLED_WORKERS
    assert findings["killed"] == [report_of(added=NUM_CROPS), report_of(unchanged=NUM_CROPS)]
    # A worker that is killed again while it restarts has no batch, and is reported once.
    assert 1 <= findings["stderr"].count(" died; nothing is lost") <= NUM_KILLED_WORKERS
    with Gallery.open(place / "scratch" / "killed", encoder=encoder) as gallery:
        check_whole(gallery, place / "many")
        assert_same(gallery, local["many"])
    test = "tests/gallery/test_ray_engine.py"
    record("Ray worker killed (kill -9) while indexing", tried=NUM_KILLED_WORKERS, test=test)


@pytest.mark.timeout(2 * LIMIT_SECONDS)
def test_a_node_without_the_folder_or_the_model_is_reported_in_one_line(
    findings: dict[str, Any], place: Path, tiny_backbone: Path
) -> None:
    node = socket.gethostname()
    unmounted = place / "scratch" / "unmounted"
    assert findings["no folder"] == f"node {node} does not see {unmounted}; every node needs it at that path"
    assert findings["another model"] == (
        f"node {node} loads another model than the gallery's from {tiny_backbone}; put the same weights there"
    )
    assert findings["too many workers"].startswith("--workers 1000: the cluster has ")


@pytest.mark.timeout((NUM_KILLED_DRIVERS + 1) * LIMIT_SECONDS)
def test_no_crop_is_lost_or_doubled_if_the_driver_is_killed_or_interrupted(
    place: Path, tmp_path: Path, local: dict[str, Gallery], encoder: Encoder, tiny_backbone: Path
) -> None:
    """Each driver waits for its end after a number of batches, of which some are committed when the signal arrives."""
    folder, random = tmp_path / "gallery", chance("ray drivers")
    words = [
        "--images", place / "many", "--model", tiny_backbone, "--engine", "ray", "--precision", "fp32",
        "--batch-size", "2", "--json",
    ]  # fmt: skip
    with Gallery.create(folder, encoder) as gallery:
        for attempt in range(NUM_KILLED_DRIVERS + 1):
            reached, marker = gallery.count(), tmp_path / f"waiting-{attempt}"
            num_batches = str(random.randint(3, MAX_BATCHES))
            with program("index", num_batches, marker, folder, *words) as running:
                wait_until(marker.exists, running.process, LIMIT_SECONDS)
                wait_until(lambda reached=reached: gallery.count() > reached, running.process, LIMIT_SECONDS)
                assert all(
                    connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"
                    for one in running.family()
                    for connection in one.net_connections(kind="tcp")
                    if connection.status == psutil.CONN_LISTEN
                ), "other machines can connect to the cluster"
                if attempt < NUM_KILLED_DRIVERS:
                    running.kill()
                    assert running.result()[0] == -signal.SIGKILL
                else:
                    running.interrupt()
                    code, out, err = running.result()
                    message = (
                        f"cskt index: interrupted; {gallery.count():,} images are in the gallery; run the same command"
                        " to continue"
                    )
                    assert (code, out, err.splitlines()[-1]) == (130, "", message)
                _, remaining = psutil.wait_procs(running.family(), timeout=LIMIT_SECONDS)
            assert not remaining, "processes of Ray outlive their driver"
            assert reached < gallery.count() < NUM_CROPS
            check_whole(gallery, place / "many")
        reached = gallery.count()
        report = gallery.index(place / "many")
        assert (report.added, report.unchanged, report.replaced) == (NUM_CROPS - reached, reached, 0)
        assert_same(gallery, local["many"])
    test = "tests/gallery/test_ray_engine.py"
    record("indexing on Ray: driver killed (kill -9)", tried=NUM_KILLED_DRIVERS, test=test)


def test_the_plan_of_actors_fits_on_the_cluster() -> None:
    small, large = {"CPU": 2.0}, {"CPU": 16.0}
    assert plan_actors([small], None, None) == ActorPlan(1, 2, "cpu")
    assert plan_actors([small], 2, "auto") == ActorPlan(2, 1, "cpu")
    assert plan_actors([small, large], None, "cpu") == ActorPlan(9, 2, "cpu")
    assert plan_actors([small, large, {}], 1, None) == ActorPlan(1, 16, "cpu")
    assert plan_actors([small, {"CPU": 8.0, "GPU": 4.0}], None, None) == ActorPlan(4, 1, "cuda")
    assert plan_actors([{"CPU": 8.0, "GPU": 4.0}], 3, "cpu") == ActorPlan(3, 2, "cpu")
    for nodes, num_workers, device, message in (
        ([small], 3, None, "--workers 3: the cluster has 2 CPUs; give at most 2"),
        ([{"GPU": 1.0, "CPU": 4.0}], 2, None, "the cluster has 1 GPUs; --device cpu uses its CPUs; give at most 1"),
        ([{"node:here": 1.0}], None, None, "the cluster has no CPUs for workers; see `ray start --num-cpus`"),
        ([small], None, "cuda", "--device cuda: Ray gives every worker one of the cluster's 0 GPUs; use auto"),
    ):
        with pytest.raises(CsktError) as caught:
            plan_actors(nodes, num_workers, device)
        assert message in str(caught.value)


def test_an_address_without_a_cluster_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    with pytest.raises(CsktError, match=f"no Ray cluster at 127.0.0.1:{port}: Connection refused; see `ray start`"):
        connected(f"127.0.0.1:{port}").__enter__()
    for address in ("ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:100000", ":6379"):
        with pytest.raises(CsktError, match="expected auto, or HOST:PORT as `ray start` names it"):
            connected(address).__enter__()
