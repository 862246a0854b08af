"""Queries that arrive while the model is busy are encoded together; a slow or wrong one delays no other."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
import torch
from doll_service import name_of

from cskt.errors import NoAnswerError
from cskt.gallery.gallery import Gallery
from cskt.gallery.options import SearchOptions
from cskt.gallery.query import Query
from cskt.service.batching import Batcher, Pool
from cskt.service.http_errors import ServiceError
from cskt.service.monitoring import Metrics
from cskt.service.settings import ServiceSettings
from cskt.service.worker import GalleryWorker

PATIENCE_SECONDS = 300
"""Limit of a wait that ends at once unless something is broken."""


class Slow:
    """A gallery whose model starts when `encoding` is set, and whose slow work ends when an event is set."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self.batches: list[int] = []
        self.searches: list[int] = []
        self.held = False
        self.encoding = threading.Event()
        self.encoding.set()
        self.filtering = threading.Event()
        self.explaining = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gallery, name)

    def encode(self, queries: Sequence[Query]) -> torch.Tensor:
        self.batches.append(len(queries))
        assert self.encoding.wait(PATIENCE_SECONDS)
        return self._gallery.encode(queries)

    def search_vectors(self, vectors: torch.Tensor, options: SearchOptions) -> Any:
        if options.where is not None or options.group_by is not None or options.k + options.offset > 1000:
            self.held = True
            assert self.filtering.wait(PATIENCE_SECONDS)
        self.searches.append(len(vectors))
        return self._gallery.search_vectors(vectors, options)

    def explain(self, image_id: str, text: str) -> None:
        assert self.explaining.wait(PATIENCE_SECONDS)


def close(pool: Pool) -> bool:
    """Stop a pool and wait for its running work."""
    pool.stop()
    return pool.wait()


def run(gallery: Slow, asked: Coroutine[Any, Any, Any] | Any, **settings: Any) -> Any:
    """Run `asked(worker)` to its end, then close the worker."""

    async def main() -> Any:
        worker = GalleryWorker(gallery, ServiceSettings(**settings), Metrics())  # type: ignore[arg-type]
        try:
            return await asked(worker)
        finally:
            gallery.filtering.set()
            gallery.explaining.set()
            worker.close()

    return asyncio.run(main())


def test_waiting_queries_are_encoded_together_and_get_their_own_answers(gallery: Gallery) -> None:
    slow = Slow(gallery)
    texts = [f"a man with {number} red bags" for number in range(20)]

    async def ask(worker: GalleryWorker) -> Any:
        first = asyncio.create_task(worker.search(Query(text=texts[0]), SearchOptions(k=3), histogram=False))
        while not slow.batches:  # the first is being encoded
            await asyncio.sleep(0)
        rest = [
            asyncio.create_task(worker.search(Query(text=text), SearchOptions(k=3 + n % 2), histogram=False))
            for n, text in enumerate(texts[1:], start=1)
        ]
        await asyncio.sleep(0)  # each of them runs up to where it waits for its vector
        slow.encoding.set()
        return await asyncio.gather(first, *rest)

    slow.encoding.clear()
    answers = run(slow, ask)
    assert slow.batches == [1, 19]
    assert sum(slow.searches) == 20
    for number, (text, (hits, histogram)) in enumerate(zip(texts, answers, strict=True)):
        expected = gallery.search(text, 3 + number % 2)
        assert [hit.image_id for hit in hits] == [hit.image_id for hit in expected]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        assert histogram is None


def test_the_size_of_a_batch_is_limited(gallery: Gallery) -> None:
    slow = Slow(gallery)

    async def ask(worker: GalleryWorker) -> Any:
        return await asyncio.gather(
            *(worker.search(Query(text=f"a man {n}"), SearchOptions(k=5), histogram=False) for n in range(13))
        )

    run(slow, ask, queries_together=4)
    assert sum(slow.batches) == 13 and max(slow.batches) == 4


def test_one_bad_query_of_a_batch_fails_alone(gallery: Gallery) -> None:
    queries = [Query(text="a man"), Query(like="nobody"), Query(like=name_of(1)), Query(text="a woman")]

    async def ask(worker: GalleryWorker) -> Any:
        return await asyncio.gather(
            *(worker.search(query, SearchOptions(k=5), histogram=False) for query in queries), return_exceptions=True
        )

    good, bad, like, other = run(Slow(gallery), ask)
    assert isinstance(bad, ValueError) and "nobody" in str(bad)
    assert [len(hits) for hits, _ in (good, like, other)] == [5, 5, 5]
    assert like[0][0].image_id == name_of(1)


@pytest.mark.parametrize(
    "what",
    [{"where": "camera = 'c1'"}, {"group_by": "track"}, {"offset": 996}, {"k": 1001}],
    ids=lambda what: next(iter(what)),
)
def test_slow_requests_do_not_delay_others(gallery: Gallery, what: dict[str, Any]) -> None:
    slow = Slow(gallery)

    async def ask(worker: GalleryWorker) -> Any:
        held = [
            asyncio.create_task(worker.search(Query(text="a man"), SearchOptions(**{"k": 5, **what}), histogram=False))
            for _ in range(3)
        ]
        held.append(asyncio.create_task(worker.explaining.run(slow.explain, name_of(0), "a man")))  # type: ignore[arg-type]
        while not slow.held:
            await asyncio.sleep(0)
        other = worker.search(Query(text="a woman"), SearchOptions(k=5, offset=2), histogram=False)
        hits, _ = await asyncio.wait_for(other, PATIENCE_SECONDS)
        facts = await asyncio.wait_for(worker.reading.run(gallery.crop, name_of(3)), PATIENCE_SECONDS)
        assert not any(task.done() for task in held)
        slow.filtering.set()
        slow.explaining.set()
        filtered = await asyncio.gather(*held[:3])
        await held[3]
        return hits, facts, filtered

    hits, facts, filtered = run(slow, ask)
    assert len(hits) == 5 and facts.image_id == name_of(3)
    expected = gallery.search("a man", **{"k": 5, **what})
    for found, _ in filtered:
        assert [hit.image_id for hit in found] == [hit.image_id for hit in expected]


def test_requests_beyond_the_limit_are_refused_and_the_others_answered() -> None:
    release = threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        assert release.wait(PATIENCE_SECONDS)
        return [2 * item for item in items]

    metrics = Metrics()
    batcher = Batcher("test", metrics, work, max_batch=2, max_waiting=3)
    first = batcher.enqueue(0)
    while not first.running():
        time.sleep(0.001)
    rest = [batcher.enqueue(number) for number in (1, 2, 3)]
    assert _metric(metrics, "pending") == 4 == _metric(metrics, "pending_limit")
    with pytest.raises(ServiceError) as caught:
        batcher.enqueue(4)
    assert caught.value.status_code == 503 and caught.value.headers == {"Retry-After": "1"}
    release.set()
    assert [future.result(PATIENCE_SECONDS) for future in (first, *rest)] == [0, 2, 4, 6]
    close(batcher)
    assert _metric(metrics, "wait_seconds_count") == 4 and _metric(metrics, "stage_seconds_count") == 3, "three batches"


def _metric(metrics: Metrics, name: str) -> float:
    """Return the value for the stage `test`."""
    found = re.search(rf'^cskt_{name}{{stage="test"}} (\S+)$', metrics.text().decode(), re.MULTILINE)
    assert found
    return float(found[1])


def test_the_query_of_a_client_that_has_left_is_not_encoded() -> None:
    release, seen = threading.Event(), []

    def work(items: Sequence[str]) -> list[str]:
        seen.extend(items)
        release.wait(PATIENCE_SECONDS)
        return list(items)

    batcher = Batcher("test", Metrics(), work, max_batch=8, max_waiting=8)
    first = batcher.enqueue("first")
    while not first.running():
        time.sleep(0.001)
    left, stays = batcher.enqueue("left"), batcher.enqueue("stays")
    assert left.cancel()
    release.set()
    assert stays.result(PATIENCE_SECONDS) == "stays"
    close(batcher)
    assert seen == ["first", "stays"]


def test_a_store_that_gives_no_answer_is_asked_once_per_batch() -> None:
    """One by one they would all wait as long again."""
    release, calls, refusal = threading.Event(), [], NoAnswerError("gone")

    def work(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        release.wait(PATIENCE_SECONDS)
        raise refusal

    batcher = Batcher("test", Metrics(), work, max_batch=8, max_waiting=8)
    futures = [batcher.enqueue(0)]
    while not calls:
        time.sleep(0.001)
    futures += [batcher.enqueue(number) for number in range(1, 6)]
    release.set()
    assert [future.exception(PATIENCE_SECONDS) for future in futures] == [refusal] * 6
    assert calls == [1, 5]
    close(batcher)


def test_closing_finishes_running_work_and_cancels_waiting_work() -> None:
    release, seen = threading.Event(), []

    def work(items: Sequence[str]) -> list[str]:
        seen.extend(items)
        release.wait(PATIENCE_SECONDS)
        return list(items)

    batcher = Batcher("test", Metrics(), work, max_batch=1, max_waiting=8)
    begun, waiting = batcher.enqueue("begun"), batcher.enqueue("waiting")
    while not begun.running():
        time.sleep(0.001)
    closing = threading.Thread(target=close, args=(batcher,))
    closing.start()
    while not waiting.cancelled():
        time.sleep(0.001)
    with pytest.raises(ServiceError, match="being stopped"):
        batcher.enqueue("late")
    release.set()
    closing.join(PATIENCE_SECONDS)
    assert begun.result(PATIENCE_SECONDS) == "begun" and seen == ["begun"]


def test_a_pool_limits_what_waits() -> None:
    async def main() -> None:
        release = threading.Event()
        pool = Pool("test", Metrics(), threads=1, max_waiting=1)
        tasks = [asyncio.create_task(pool.run(release.wait, PATIENCE_SECONDS)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ServiceError, match="too many"):
            await tasks[2]
        release.set()
        assert await asyncio.gather(*tasks[:2]) == [True, True]
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 / 0)
        assert await pool.run(lambda: "still there") == "still there"
        close(pool)
        with pytest.raises(ServiceError, match="being stopped"):
            await pool.run(lambda: None)

    asyncio.run(main())
