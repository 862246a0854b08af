"""The service ends after the grace period whatever its threads do, and at once on a second signal."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from doll_service import name_of
from stuck_program import TOKEN

from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.service.batching import Pool
from cskt.service.http_errors import ServiceError
from cskt.service.monitoring import Metrics
from cskt.service.settings import ServiceSettings
from cskt.service.worker import GalleryWorker

PROGRAM = Path(__file__).with_name("stuck_program.py")
PATIENCE = 120
"""Seconds for a process to end: not a figure of speed, but the end of a test that would never end."""
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")


class Stuck:
    """A service in a process of its own, some calls of which never return."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self._lines = process.stdout
        self.address = self._lines.readline().strip()
        assert self.address.startswith("http://"), process.communicate()
        self.answers: list[tuple[int, str]] = []
        self._clients: list[threading.Thread] = []

    def ask(self, path: str, body: Any) -> None:
        """Post in a thread of its own, and note status and error code of the answer, if one comes."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)

        def post() -> None:
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                    self.answers.append((answer.status, ""))
            except urllib.error.HTTPError as error:
                with error:
                    self.answers.append((error.code, json.loads(error.read())["error"]["code"]))
            except OSError:
                pass  # the process has ended

        client = threading.Thread(target=post)
        client.start()
        self._clients.append(client)

    def wait_until_stuck(self, count: int) -> None:
        """Wait until so many calls block."""
        for _ in range(count):
            assert self._lines.readline() == "stuck\n"

    def _wait_until_refused(self) -> None:
        """Wait until no connection is accepted any more: the service has seen that it is to stop."""
        host, port = self.address.removeprefix("http://").strip("/").split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), PATIENCE).close()
            except ConnectionRefusedError:
                return
            threading.Event().wait(0.02)

    def stop(self, *signals: signal.Signals) -> tuple[int, str]:
        """Exit code and stderr after these signals."""
        for position, number in enumerate(signals):
            if position:
                self._wait_until_refused()  # or the system might deliver both as one
            self.process.send_signal(number)
        _, err = self.process.communicate(timeout=PATIENCE)
        for client in self._clients:
            client.join(PATIENCE)
        return self.process.returncode, err


@contextmanager
def stuck_service(gallery: Path, stop_seconds: int, *calls: str) -> Iterator[Stuck]:
    command = [sys.executable, str(PROGRAM), str(gallery), str(stop_seconds), *calls]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    try:
        yield Stuck(process)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_service_with_blocked_threads_ends_and_keeps_acknowledged_changes(
    own_gallery: Gallery, encoder: Encoder, crops: Path
) -> None:
    """Searches, heat maps, originals and deletions all block; what was added before stays."""
    own_gallery.add([crops / name_of(9)], ["added/before"])
    blocked = ("search_vectors", "explain", "remove")
    with stuck_service(own_gallery.folder, 1, *blocked) as service:
        picture = base64.b64encode((crops / name_of(8)).read_bytes()).decode()
        service.wait_until_stuck(1)  # the first search of the service itself
        service.ask("api/explain", {"text": "a man", "image_id": name_of(0)})
        service.wait_until_stuck(1)
        service.ask("api/search", {"text": "a man", "where": "camera = 'c1'"})
        service.wait_until_stuck(1)
        service.ask("api/crops", {"crops": [{"image_id": "live/1", "image": picture}]})
        while not service.answers:
            threading.Event().wait(0.01)
        assert service.answers == [(200, "")], "an addition that has been acknowledged"
        code, err = service.stop(signal.SIGTERM)
    assert code == 0
    assert sorted(service.answers) == [(200, ""), (503, "stopping"), (503, "stopping")]
    assert "Traceback" not in err and "not stopped within 6 s" in err
    with Gallery.open(own_gallery.folder, encoder=encoder) as opened:
        assert opened.crop("live/1") and opened.crop("added/before") and opened.count() == 6


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_service_at_once(own_gallery: Gallery, second: signal.Signals) -> None:
    with stuck_service(own_gallery.folder, 100_000, "encode") as service:
        service.wait_until_stuck(1)
        service.ask("api/search", {"text": "a man"})
        assert service.stop(signal.SIGTERM, second)[0] == 0


def test_a_pool_finishes_what_runs_and_cancels_what_waits() -> None:
    pool, release = Pool("test", Metrics(), threads=2, max_waiting=2), threading.Event()
    begun = threading.Barrier(3)

    def block() -> bool:
        begun.wait(PATIENCE)
        return release.wait(PATIENCE)

    blocked = [pool.submit(block) for _ in range(2)]
    begun.wait(PATIENCE)
    waiting = pool.submit(print)
    pool.stop()
    assert waiting.cancelled() and not pool.wait(0.0)
    with pytest.raises(ServiceError, match="being stopped"):
        pool.submit(print)
    release.set()
    assert pool.wait() and [future.result(300) for future in blocked] == [True, True]


def test_a_service_that_is_stopped_while_it_loads_logs_nothing(
    own_gallery: Gallery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, loaded = threading.Event(), threading.Event()
    encode = own_gallery.encode

    def slow(queries: Any) -> Any:
        loading.set()
        assert loaded.wait(PATIENCE)
        return encode(queries)

    monkeypatch.setattr(own_gallery, "encode", slow)
    worker = GalleryWorker(own_gallery, ServiceSettings(), Metrics())
    worker.warm_up()
    assert loading.wait(PATIENCE)
    assert not worker.close(0.0)
    caplog.clear()
    loaded.set()
    assert worker.close() and not worker.ready.done()
    assert caplog.text == ""


def test_a_worker_logs_which_threads_still_work(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    worker, release, begun = GalleryWorker(gallery, ServiceSettings(), Metrics()), threading.Event(), threading.Event()

    def block(*_: Any) -> None:
        begun.set()
        release.wait()

    future = worker.writing.submit(block)
    assert begun.wait(PATIENCE)
    assert not worker.close(0.0) and not worker.finished
    assert [record.getMessage() for record in caplog.records] == [
        "not finished when the service stopped: threads write"
    ]
    release.set()
    future.result(PATIENCE)
    assert worker.close() and worker.finished
