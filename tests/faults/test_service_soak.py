"""Soak test: right answers, without growth of memory, descriptors, threads or times."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
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
from service_process import TOKEN, Served, Usage

from fault_tries import LONG, chance, record, tries

pytest.importorskip("fastapi")

pytestmark = pytest.mark.slow

TEST = "tests/faults/test_service_soak.py"
SECONDS = tries(60, 600)
RATE = 25
"""Requests per second, at most."""
MOST_WAITING = 16
"""Requests without an answer, so that a machine which does other things is not asked for more than it can do."""
LEAST_SHARE = 0.2
"""Least share of the possible requests that must have been answered, in the long form."""
MOST_GROWTH_BYTES = 16 * 2**20
"""Growth of memory from the second third to the last; a few KiB a request are noticed in the long form."""
MOST_GROWTH = {"descriptors": 3, "threads": 12}
"""LanceDB keeps as many threads as a moment has once needed, for ten seconds after the last use of each."""
SLOWER = 3.0
"""Largest ratio of the last third's p99 to the second's, in the long form, on a machine of constant speed."""
WORK = bytes(8 * 2**20)
"""Hashed now and then, to see how fast the machine is for us."""
LEAST_P99_SECONDS = 0.1
"""Below, it is the machine that is measured."""
SEARCHES = frozenset({"text", "page", "filter", "groups", "histogram", "not that", "like", "picture"})

T = TypeVar("T")


class Answered(NamedTuple):
    """A request that has been answered."""

    seconds: float
    """From question to answer."""
    kind: str


class Sample(NamedTuple):
    """Resources of the service, and the time for work of a fixed size."""

    usage: Usage
    work_seconds: float


@pytest.fixture
def gallery(tmp_path: Path, filled_gallery: Path) -> Path:
    return shutil.copytree(filled_gallery, tmp_path / "gallery")


async def soak(service: Served, requests: Iterator[Asked]) -> tuple[list[Answered], list[Sample]]:
    """Send requests at a steady rate, if the answers are as fast, and check every answer."""
    answered: list[Answered] = []
    samples: list[Sample] = []
    waiting, begun = asyncio.Semaphore(MOST_WAITING), time.monotonic()

    async def ask(client: httpx2.AsyncClient, asked: Asked) -> None:
        sent = time.monotonic()
        answer = await client.request(**asked.request)
        answered.append(Answered(time.monotonic() - sent, asked.kind))
        waiting.release()
        assert answer.status_code == asked.status, (asked, answer.text)
        asked.check(answer)

    async def sample() -> None:
        while time.monotonic() < begun + SECONDS:
            usage, at = service.usage(), time.monotonic()
            await asyncio.to_thread(hashlib.sha256, WORK)
            samples.append(Sample(usage, time.monotonic() - at))
            await asyncio.sleep(1)

    async with (
        httpx2.AsyncClient(base_url=service.address, timeout=300, trust_env=False) as client,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(sample())
        while time.monotonic() < begun + SECONDS:
            await asyncio.sleep(1 / RATE)
            await waiting.acquire()
            tasks.create_task(ask(client, next(requests)))
    return answered, samples


def p99(answered: Sequence[Answered]) -> float:
    """Seconds within which all searches but one in a hundred were answered."""
    return statistics.quantiles([one.seconds for one in answered if one.kind in SEARCHES], n=100)[-1]


def work_seconds(samples: Sequence[Sample]) -> float:
    """Return the average time of the same work."""
    return statistics.fmean(sample.work_seconds for sample in samples)


def third(items: Sequence[T], number: int) -> Sequence[T]:
    """The first, second or last (0, 1, 2)."""
    return items[len(items) * number // 3 : len(items) * (number + 1) // 3]


@pytest.mark.timeout(SECONDS + 600)
def test_mixed_requests_for_minutes(gallery: Path, tmp_path: Path) -> None:
    """Valid and invalid requests of every kind; afterwards client text is in the audit log alone."""
    token = tmp_path / "token"
    token.write_text(TOKEN, encoding="utf-8")
    token.chmod(0o600)
    with Served(gallery, "--port", "0", "--token-file", token, "--rate", "1000") as service:
        answered, samples = asyncio.run(soak(service, mixed_requests(gallery, chance("soak"))))
        figures, command = service.metrics(), " ".join(psutil.Process(service.process.pid).cmdline())
        assert service.stop() == 0
    late, last = third(samples, 1), third(samples, 2)
    print(Counter(one.kind for one in answered))
    for name in Usage._fields:
        print(name, [getattr(s.usage, name) >> (20 if name == "rss" else 0) for s in samples])

    assert answered
    if LONG:  # the short form passes beside other programs
        slower = max(1.0, work_seconds(last) / work_seconds(late))
        p99s = [p99(third(answered, number)) for number in range(3)]
        assert len(answered) >= LEAST_SHARE * SECONDS * RATE
        assert p99s[2] <= SLOWER * slower * max(p99s[1], LEAST_P99_SECONDS), (p99s, slower)
    assert not re.findall(r'cskt_requests_total\{code="5.*route="(?!/healthz)', figures)
    rss = [statistics.median(sample.usage.rss for sample in part) for part in (late, last)]  # past one large request
    assert rss[1] - rss[0] <= MOST_GROWTH_BYTES, rss
    for name, most in MOST_GROWTH.items():  # the fewest: those of a moment's many requests go with them
        fewest = [min(getattr(sample.usage, name) for sample in part) for part in (late, last)]
        assert fewest[1] - fewest[0] <= most, (name, fewest)

    notes = (gallery / "audit.jsonl").read_text(encoding="ascii")
    complaints = service.errors.read_text(encoding="utf-8")
    assert complaints.splitlines()[3:] == [f"requests are logged in {gallery / 'audit.jsonl'}"]
    said = json.dumps(SENTENCES[0])[1:-1]
    assert said in notes
    assert said not in figures + complaints + command
    assert TOKEN not in notes + figures + complaints + command
    record("requests, right and wrong, for ten minutes", tried=len(answered), test=TEST)
