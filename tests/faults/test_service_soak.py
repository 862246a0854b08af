"""The service for as long as one likes: right answers, and neither memory, descriptors, threads nor times grow."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import httpx2
import psutil
import pytest
from service_load import SENTENCES, Asked, mixed_requests
from service_process import TOKEN, Served, Usage, make_gallery

from fault_tries import chance, record, tries

pytest.importorskip("fastapi")

TEST = "tests/faults/test_service_soak.py"
SECONDS = tries(60, 600)
RATE = 25
"""Requests per second."""
MOST_GROWTH_BYTES = 16 * 2**20
"""Of memory, from the second third to the last."""
SLOWER = 3.0
"""How many times the p99 of the second third that of the last may be, on a machine that does other things."""
LEAST_P99_SECONDS = 0.1
"""Below, it is the machine that is measured."""
SEARCHES = frozenset({"text", "page", "filter", "groups", "histogram", "not that", "like", "picture"})

T = TypeVar("T")


class Answered(NamedTuple):
    """A request that has been answered."""

    at: float
    """Seconds since the begin."""
    seconds: float
    """From the moment at which it was to be sent."""
    kind: str


class Sample(NamedTuple):
    """What the service took."""

    at: float
    usage: Usage


@pytest.fixture
def gallery(tmp_path: Path, tiny_backbone: Path, dolls: Path) -> Path:
    return make_gallery(tmp_path / "gallery", tiny_backbone, dolls)


async def soak(service: Served, requests: Iterator[Asked]) -> tuple[list[Answered], list[Sample]]:
    """Ask at a steady rate, whatever the answers take; every one is checked."""
    answered: list[Answered] = []
    samples: list[Sample] = []
    begun = time.monotonic()

    async def ask(client: httpx2.AsyncClient, asked: Asked, due: float) -> None:
        answer = await client.request(**asked.request)
        answered.append(Answered(due, time.monotonic() - begun - due, asked.kind))
        assert answer.status_code == asked.status, (asked, answer.text)
        asked.check(answer)

    async with (
        httpx2.AsyncClient(base_url=service.address, timeout=30, trust_env=False) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(SECONDS * RATE):
            due = number / RATE
            await asyncio.sleep(max(0.0, begun + due - time.monotonic()))
            tasks.create_task(ask(client, next(requests), due))
            if number % RATE == 0:
                samples.append(Sample(due, service.usage()))
    return answered, samples


def p99(answered: Sequence[Answered]) -> float:
    """Seconds within which all searches but one in a hundred were answered."""
    return statistics.quantiles([one.seconds for one in answered if one.kind in SEARCHES], n=100)[-1]


def middle(samples: Sequence[Sample], name: str) -> float:
    """The median of what was taken, which one large request does not move."""
    return statistics.median(getattr(sample.usage, name) for sample in samples)


def third(items: Sequence[T], number: int) -> Sequence[T]:
    """The first, second or last (0, 1, 2)."""
    return items[len(items) * number // 3 : len(items) * (number + 1) // 3]


@pytest.mark.timeout(SECONDS + 120)
def test_a_long_day(gallery: Path, tmp_path: Path) -> None:
    """All that clients do, right and wrong; then what was said is where it may be, and nowhere else."""
    token = tmp_path / "token"
    token.write_text(TOKEN, encoding="utf-8")
    token.chmod(0o600)
    with Served(gallery, "--port", "0", "--token-file", token, "--rate", "1000") as service:
        answered, samples = asyncio.run(soak(service, mixed_requests(gallery, chance("soak"))))
        figures, command = service.metrics(), " ".join(psutil.Process(service.process.pid).cmdline())
        assert service.stop() == 0
    late, last = third(samples, 1), third(samples, 2)
    print(Counter(one.kind for one in answered), p99(third(answered, 1)), p99(third(answered, 2)))
    for name in Usage._fields:
        print(name, [getattr(s.usage, name) >> (20 if name == "rss" else 0) for s in samples])

    assert not re.findall(r'code="5..".*route="(?!/healthz)', figures)
    growth = {name: middle(last, name) - middle(late, name) for name in Usage._fields}
    assert growth["rss"] <= MOST_GROWTH_BYTES, growth
    assert growth["descriptors"] <= 2 and growth["threads"] <= 2, growth
    assert p99(third(answered, 2)) <= SLOWER * max(p99(third(answered, 1)), LEAST_P99_SECONDS)

    notes = (gallery / "audit.jsonl").read_text(encoding="ascii")
    complaints = service.errors.read_text(encoding="utf-8")
    assert complaints.splitlines() == [f"who asks what is noted in {gallery / 'audit.jsonl'}"]
    said = json.dumps(SENTENCES[0])[1:-1]
    assert said in notes
    assert said not in figures + complaints + command
    assert TOKEN not in notes + figures + complaints + command
    record("ten minutes of requests, right and wrong", tried=len(answered), lost=0, test=TEST)
