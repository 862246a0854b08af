"""Malicious, slow and lost clients: they are disconnected in time and delay no other client."""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from attacked_service import (
    ANSWER_SECONDS,
    BODY_SECONDS,
    CONNECTIONS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    LATE_SECONDS,
    SEARCH,
    SETTINGS,
    ask,
    honest,
    metrics,
    unhurt,
)
from raw_clients import JSON, Raw, head, post
from service_process import Served, Usage, metadata_of

from fault_tries import chance, record, tries

pytest.importorskip("fastapi")

pytestmark = pytest.mark.slow

TEST = "tests/faults/test_service_attacks.py"
MOST_FILES = 128
STOP_SECONDS = 2


@pytest.fixture(autouse=True)
def _unhurt(attacked: Served) -> Iterator[None]:
    with unhurt(attacked):
        yield


class Slow(NamedTuple):
    """A slow client: what it sends first and every 0.1 s, and the seconds after which it is disconnected."""

    begins: bytes
    drips: bytes
    seconds: float
    """After which it is sent away."""


SLOW = {
    "says nothing": Slow(b"", b"", HEAD_SECONDS),
    "drips a head": Slow(b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"a", HEAD_SECONDS),
    "drips headers": Slow(b"GET /healthz HTTP/1.1\r\n", b"X: y\r\n", HEAD_SECONDS),
    "drips a body": Slow(head("POST /api/search", JSON, "Content-Length: 9999\r\n"), b" ", BODY_SECONDS),
    "drips chunks": Slow(
        head("POST /api/search", JSON, "Transfer-Encoding: chunked\r\n"), b"1\r\n \r\n", BODY_SECONDS
    ),
    "drips a refused body": Slow(head("POST /api/nothing", "Content-Length: 9999\r\n"), b" ", HEAD_SECONDS),
    "asks once and stays": Slow(head("GET /healthz"), b"", IDLE_SECONDS),
    "takes no answer": Slow(500 * head("GET /page/style.css"), b"", ANSWER_SECONDS),
}  # fmt: skip


def test_slow_clients(attacked: Served) -> None:
    """Many of each kind at once; each is disconnected within its limit, and other clients get answers meanwhile."""
    before = attacked.usage().descriptors - 1  # one may belong to a client that has just gone
    each, closed_after, answered = tries(10, 14), dict[str, float](), 0
    with ExitStack() as held:
        clients = [
            (kind, held.enter_context(Raw(attacked, receive_bytes=4096 if kind == "takes no answer" else None)))
            for kind in SLOW
            for _ in range(each)
        ]
        begun = time.monotonic()
        for kind, client in clients:
            assert client.send(SLOW[kind].begins)
        most = 0
        waiting = [pair for pair in clients if pair[0] != "takes no answer"]  # which sees only what it takes
        while waiting or attacked.usage().descriptors > before + 2:
            seconds = time.monotonic() - begun
            assert seconds < max(slow.seconds for slow in SLOW.values()) + LATE_SECONDS, [kind for kind, _ in waiting]
            for kind, client in list(waiting):
                if client.is_closed():
                    waiting.remove((kind, client))
                    closed_after[kind] = seconds
                else:
                    client.send(SLOW[kind].drips)
            honest(attacked)
            answered += 1
            most = max(most, attacked.usage().descriptors)
            time.sleep(0.1)
    assert answered and most > before + len(clients) // 2
    for kind, seconds in closed_after.items():
        assert SLOW[kind].seconds - 0.5 < seconds < SLOW[kind].seconds + LATE_SECONDS, (kind, seconds)
    record("slow clients (slow loris) hold a connection beyond its limit", tried=len(clients), test=TEST)


def test_more_connections_than_are_held(attacked: Served) -> None:
    """The connection whose client the service has waited for longest is closed; a new one is accepted."""
    before, crowd = attacked.usage().descriptors, tries(3, 8) * CONNECTIONS
    with ExitStack() as held:
        clients = []
        for number in range(crowd):
            clients.append(held.enter_context(Raw(attacked)))
            if number % CONNECTIONS == CONNECTIONS - 1:
                honest(attacked)
                assert attacked.usage().descriptors <= before + CONNECTIONS + 1
        assert all(client.is_closed() for client in clients[:CONNECTIONS])
    record("more idle connections than are held keep others out", tried=crowd, test=TEST)


@pytest.fixture(scope="module")
def few_files(filled_gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with few file descriptors, and with limits for slow clients that are longer than a stop may take."""
    gallery = shutil.copytree(filled_gallery, tmp_path_factory.mktemp("few-files") / "gallery")
    long = {"idle_seconds": 60, "head_seconds": 60, "body_seconds": 60, "answer_seconds": 60}
    settings = SETTINGS | long | {"stop_seconds": STOP_SECONDS}
    with Served(gallery, settings=settings, descriptors=MOST_FILES) as service:
        yield service


def test_no_more_connections_than_files(few_files: Served) -> None:
    """The gallery's files come before a crowd of connections."""
    before, crowd = few_files.usage().descriptors, tries(400, 2000)
    with ExitStack() as held:
        for number in range(crowd):
            held.enter_context(Raw(few_files))
            if number % 100 == 99:
                honest(few_files)
        assert few_files.usage().descriptors <= before + MOST_FILES // 2 + 1
    record("more connections than the system allows files", tried=crowd, test=TEST)


def test_stopping_does_not_wait_for_slow_clients(few_files: Served) -> None:
    """Slow clients delay a stop no longer than the service's own work may."""
    with ExitStack() as held:
        for slow in SLOW.values():
            client = held.enter_context(Raw(few_files, receive_bytes=4096))
            client.send(slow.begins)
        honest(few_files)
        begun = time.monotonic()
        assert few_files.stop() == 0
        assert time.monotonic() - begun < STOP_SECONDS + LATE_SECONDS
    logged = few_files.errors.read_text(encoding="utf-8")
    assert logged.startswith(f"connections are limited to {MOST_FILES // 2} instead of {CONNECTIONS}:")
    assert logged.count("\n") == 1, logged
    record("the service is stopped while clients dawdle", tried=len(SLOW), test=TEST)


def disconnect(service: Served, request: bytes, chance: random.Random) -> None:
    """Disconnect before a request has been sent or its answer has been taken."""
    client = Raw(service)
    client.send(request[: chance.randrange(len(request) + 1)] if chance.random() < 0.6 else request)
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0, 0.05))
    if chance.random() < 0.3:
        client.socket.settimeout(0.05)
        with suppress(TimeoutError):
            client.socket.recv(chance.randrange(1, 2000))
    if chance.random() < 0.8:
        client.reset()
    else:
        client.__exit__(None, None, None)


def test_dropped_connections(attacked: Served, filled_gallery: Path) -> None:
    """Clients that disconnect at any moment leave no descriptor, thread or request in flight."""
    moments, count = chance("dropped connections"), crops(attacked)
    crop = sorted((filled_gallery / "handed").iterdir())[0]
    picture = base64.b64encode(crop.read_bytes()).decode()
    written = {"image_id": crop.name, "image": picture, "metadata": metadata_of(crop.name)}
    requests = [
        post("/api/search", SEARCH), post("/api/search", {"image": picture, "histogram": True}),
        post("/api/explain", {"text": "a hat", "image_id": crop.name}), head(f"GET /api/image?id={crop.name}"),
        post("/api/crops", {"crops": [written]}), 20 * head("GET /openapi.json"),
        post("/api/marks/export", {"format": "csv", "marks": []}), head("GET /"), head("GET /metrics"),
    ]  # fmt: skip
    number = tries(120, 3000)
    for _ in range(60):  # pools start their threads, and stores open their files, when they are first needed
        disconnect(attacked, moments.choice(requests), moments)
    before = usage_when_idle(attacked)
    for _ in range(number):
        disconnect(attacked, moments.choice(requests), moments)
    after = usage_when_idle(attacked)
    assert after.descriptors <= before.descriptors + 2 and after.threads <= before.threads + 8, (before, after)
    assert after.rss <= before.rss + 32 * 2**20, (before, after)
    assert crops(attacked) == count
    record("a connection is lost in the middle of request or answer", tried=number, test=TEST)


def usage_when_idle(service: Served) -> Usage:
    """Return the resources in use once no request is in flight but the one for the metrics."""
    deadline = time.monotonic() + LATE_SECONDS
    while not re.search(r"cskt_requests_in_flight 1\.0", metrics(service)):
        assert time.monotonic() < deadline, "requests of clients that have gone are still being answered"
        time.sleep(0.05)
    return service.usage()


def crops(service: Served) -> int:
    """Return the number of crops."""
    count: int = json.loads(ask(service, head("GET /api/gallery")).body)["count"]
    return count
