"""The service is stopped and killed while clients search and write, and then started again."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from attacked_service import PATIENCE_SECONDS, SEARCH, SETTINGS, ask, honest, metrics
from raw_clients import Answer, BrokenOffError, Raw, head, post
from service_process import Served, crop_files

from fault_tries import chance, record, tries

pytest.importorskip("fastapi")

pytestmark = pytest.mark.slow

TEST = "tests/faults/test_service_restarts.py"
STOP_SECONDS = 20
NUM_READERS, NUM_WRITERS, NUM_LONG = 3, 2, 8
OURS = "camera = 'c0'"
"""Filter for the crops that no test changes; those written here have no camera."""


class Writer:
    """Adds and deletes crops of its own, one request after the other, and records acknowledged changes.

    Args:
        name: of its crops.
        pictures: of them, in turns.
    """

    def __init__(self, name: str, pictures: list[bytes]) -> None:
        self._name, self._pictures, self._number = name, pictures, 0
        self.acknowledged: dict[str, str | None] = {}
        """The digest of each crop's picture, none where it was deleted."""
        self.in_doubt: set[str] = set()
        """Crops whose last request was not answered."""

    def next(self) -> tuple[str, str | None, bytes]:
        """Crop, digest of its picture or none, and the request that makes it so; every third deletes an earlier one."""
        self._number += 1
        there = [name for name, digest in self.acknowledged.items() if digest is not None]
        if self._number % 3 == 0 and there:
            return there[0], None, head(f"DELETE /api/crops?id={there[0]}")
        name, picture = f"{self._name}/{self._number}", self._pictures[self._number % len(self._pictures)]
        crop = {"image_id": name, "image": base64.b64encode(picture).decode()}
        return name, hashlib.sha256(picture).hexdigest(), post("/api/crops", {"crops": [crop]})

    def check(self, service: Served) -> None:
        """Everything acknowledged is as it was acknowledged."""
        for name, digest in self.acknowledged.items():
            if name in self.in_doubt:
                continue
            answer = ask(service, head(f"GET /api/crop?id={name}"))
            assert answer.status == (404 if digest is None else 200), (name, answer)
            assert digest is None or json.loads(answer.body)["sha256"] == digest, name


class Clients:
    """Readers and writers that send requests until the service is gone; the results are counted."""

    def __init__(self, service: Served, writers: list[Writer], *, to_be_killed: bool) -> None:
        self._service = service
        self._silent = (ConnectionError, TimeoutError, *([BrokenOffError] if to_be_killed else []))
        self.ended: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(NUM_READERS + len(writers))
        self._running = [self._threads.submit(self._read) for _ in range(NUM_READERS)]
        self._running += [self._threads.submit(self._write, writer) for writer in writers]

    def wait_for_answers(self, number: int) -> None:
        """Wait until so many requests have been answered."""
        deadline = time.monotonic() + 10 * PATIENCE_SECONDS
        while self.ended["200"] < number:
            assert time.monotonic() < deadline, self.ended
            time.sleep(0.02)

    def join(self) -> None:
        """Wait until all have found the service gone."""
        self._threads.shutdown()
        for running in self._running:
            running.result()

    def _ask(self, client: Raw, request: bytes) -> Answer | None:
        """An answer, or none where there was not a byte of one; half an answer is an error, but after kill -9."""
        try:
            if client.send(request):
                return client.answer()
        except self._silent:
            pass
        return None

    def _note(self, answer: Answer | None) -> bool:
        """Count an answer and return whether to continue."""
        kind = "gone" if answer is None else str(answer.status)
        with self._lock:
            self.ended[kind] += 1
        return kind == "200"

    def _read(self) -> None:
        try:
            while True:
                with Raw(self._service) as client:  # ten requests to a connection
                    for _ in range(10):
                        if not self._note(self._ask(client, post("/api/search", SEARCH | {"where": OURS}))):
                            return
        except ConnectionError:
            self._note(None)

    def _write(self, writer: Writer) -> None:
        try:
            with Raw(self._service) as client:
                while True:
                    name, digest, request = writer.next()
                    writer.in_doubt.add(name)
                    answer = self._ask(client, request)
                    if not self._note(answer):
                        return
                    writer.in_doubt.discard(name)
                    writer.acknowledged[name] = digest
        except ConnectionError:
            self._note(None)


def accept_long_requests(service: Served, name: str) -> tuple[ThreadPoolExecutor, list[Future[Answer]]]:
    """Heat maps that have all begun, the last of which will take its time."""
    threads = ThreadPoolExecutor(NUM_LONG)
    request = post("/api/explain", {"text": "a man with a red bag", "image_id": name})
    asked = [threads.submit(ask, service, request) for _ in range(NUM_LONG)]
    while sum(done.done() for done in asked) + in_flight(service) - 1 < NUM_LONG:
        time.sleep(0.005)
    return threads, asked


def in_flight(service: Served) -> int:
    """Requests being answered, that for the figures included."""
    (line,) = [line for line in metrics(service).splitlines() if line.startswith("cskt_requests_in_flight ")]
    return int(float(line.split()[1]))


@pytest.mark.timeout(tries(240, 1200))
def test_stopped_and_killed_under_load(filled_gallery: Path, tmp_path: Path) -> None:
    """Stopped, it answers what it has accepted and exits 0; killed or stopped, every acknowledged write is there."""
    gallery, moments = shutil.copytree(filled_gallery, tmp_path / "gallery"), chance("restarts")
    pictures = [path.read_bytes() for path in crop_files(gallery, "handed").values()]
    settings = SETTINGS | {"stop_seconds": STOP_SECONDS, "port": 0}
    writers: list[Writer] = []
    found, num_written = None, 0
    endings = [signal.SIGTERM, signal.SIGKILL] * tries(1, 10)
    for number, ending in enumerate([*endings, None]):
        with Served(gallery, settings=settings) as service:
            settings["port"] = service.port  # from now on the same
            for writer in writers:
                writer.check(service)
            found = found or honest(service)
            answer = json.loads(ask(service, post("/api/search", SEARCH | {"where": OURS})).body)
            assert answer["hits"] and all(hit["metadata"]["camera"] == "c0" for hit in answer["hits"])
            if ending is None:
                break
            new = [Writer(f"w{number}-{which}", pictures) for which in range(NUM_WRITERS)]
            clients = Clients(service, new, to_be_killed=ending == signal.SIGKILL)
            clients.wait_for_answers(25 + moments.randrange(50))
            if ending == signal.SIGTERM:
                threads, accepted = accept_long_requests(service, answer["hits"][0]["image_id"])
                assert service.stop() == 0
                assert [done.result().status for done in accepted] == [200] * NUM_LONG
                threads.shutdown()
            else:
                assert service.stop(ending) == -ending
            clients.join()
            assert set(clients.ended) <= {"200", "503", "gone"}, clients.ended
            assert service.errors.read_text(encoding="utf-8") == ""
            writers += new
            num_written += sum(len(writer.acknowledged) for writer in new)
            noted = (gallery / "audit.jsonl").read_text(encoding="ascii")
            assert all(f'"{name}"' in noted for writer in new for name in writer.acknowledged)
    assert num_written > len(endings)
    for ending, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGKILL, "kill -9")):
        record(f"the service gets {name} while clients read and write", tried=endings.count(ending), test=TEST)
    record("crops acknowledged before the service ended", tried=num_written, test=TEST)
