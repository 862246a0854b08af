"""Helpers of the tests that attack the service: short limits, and an honest client."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from raw_clients import Answer, Raw, head, post
from service_process import TOKEN, Served

from fault_tries import tries

CONNECTIONS = 120
IDLE_SECONDS, HEAD_SECONDS, BODY_SECONDS, ANSWER_SECONDS = 3, 2.0, 3.0, 3.0
LATE_SECONDS = tries(300, 15)
"""Delay of a deadline that a busy machine may cause."""
PATIENCE_SECONDS = tries(300, 5)
"""Longest time for the answer to an honest client."""
SETTINGS = {
    "token": TOKEN, "allow_hosts": ["search.example"],  # so that reading needs the token too
    "connections": CONNECTIONS, "idle_seconds": IDLE_SECONDS, "head_seconds": HEAD_SECONDS,
    "body_seconds": BODY_SECONDS, "answer_seconds": ANSWER_SECONDS, "rate": 1e6,
    "image_bytes": 2**20, "other_bytes": 2**18,
}  # fmt: skip
SERVER_ERRORS = r'cskt_requests_total\{code="5.*route="(?!/healthz).*'
"""In the figures; `/healthz` says 503 while the service loads."""
SEARCH = {"text": "a man in a red coat", "k": 5}


def ask(service: Served, request: bytes) -> Answer:
    """The answer to a request on a connection of its own."""
    with Raw(service) as client:
        client.send(request)
        return client.answer()


def honest(service: Served) -> list[tuple[str, float]]:
    """Return the hits of an honest search, which must be answered in time."""
    begun = time.monotonic()
    answer = ask(service, post("/api/search", SEARCH))
    assert answer.status == 200 and time.monotonic() - begun < PATIENCE_SECONDS, answer
    return [(hit["image_id"], round(hit["score"], 1)) for hit in json.loads(answer.body)["hits"]]


def metrics(service: Served) -> str:
    """Figures for Prometheus."""
    return ask(service, head("GET /metrics")).body.decode()


@contextmanager
def unhurt(service: Served) -> Iterator[None]:
    """After the block, the service has logged nothing and gives the same answer as before."""
    before = honest(service)
    yield
    assert honest(service) == before
    assert not re.findall(SERVER_ERRORS, metrics(service))
    assert service.errors.read_text(encoding="utf-8") == ""
