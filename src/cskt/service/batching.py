"""Threads for many requests: a `Pool` limits what may wait, a `Batcher` takes together what waits.

Both measure how long tasks wait and take, under their name as the stage.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar

from cskt.errors import NoAnswerError
from cskt.service.http_errors import ServiceError, stopping
from cskt.service.monitoring import Metrics

Item = TypeVar("Item")
Result = TypeVar("Result")
P = ParamSpec("P")


class Pool:
    """Threads for one kind of work, so that slow requests of this kind delay no other kind."""

    def __init__(self, name: str, metrics: Metrics, *, threads: int, max_waiting: int) -> None:
        self.name = name
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._max_pending = threads + max_waiting
        self._pending: set[Future[Any]] = set()
        self._seconds = metrics.stage_seconds.labels(name)
        self._wait_seconds = metrics.wait_seconds.labels(name)
        metrics.pending.labels(name).set_function(lambda: len(self._pending))
        metrics.pending_limit.labels(name).set(self._max_pending)
        self._lock = threading.Lock()
        self._stopped = False

    def submit(self, work: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Future[Result]:
        """Call `work` in a thread of the pool, or raise a ServiceError: too many wait, or the service stops."""
        with self._lock:
            self._check(len(self._pending), self._max_pending)
            future = self._executor.submit(self._measured(work), *args, **kwargs)
            self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    async def run(self, work: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Call `work` in a thread of the pool and return its result; see `submit`."""
        return await asyncio.wrap_future(self.submit(work, *args, **kwargs))

    def stop(self) -> None:
        """Cancel what waits and refuse what follows; running work continues."""
        with self._lock:
            self._stopped = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def wait(self, seconds: float | None = None) -> bool:
        """After `stop`: wait for the running work, without a limit if None, and return whether it is finished."""
        return not concurrent.futures.wait(list(self._pending), seconds).not_done

    def _measured(self, work: Callable[P, Result]) -> Callable[P, Result]:
        """Return work that measures how long it has waited, from now on, and how long it takes."""
        arrival = time.perf_counter()

        def measured(*args: P.args, **kwargs: P.kwargs) -> Result:
            self._wait_seconds.observe(time.perf_counter() - arrival)
            with self._seconds.time():
                return work(*args, **kwargs)

        return measured

    def _check(self, num_pending: int, limit: int) -> None:
        if self._stopped:
            raise stopping()
        if num_pending >= limit:
            raise ServiceError(503, "busy", "too many queries are waiting; try again in a second", {"Retry-After": "1"})


class Batcher(Pool, Generic[Item, Result]):
    """One thread that works on a single item when idle, and on up to `max_batch` that arrived meanwhile when busy."""

    def __init__(
        self,
        name: str,
        metrics: Metrics,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        max_batch: int,
        max_waiting: int,
    ) -> None:
        super().__init__(name, metrics, threads=1, max_waiting=max_waiting)
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[Item, Future[Result], float]] = deque()
        """Items with the time of their arrival."""

    async def add(self, item: Item) -> Result:
        """Return the result of one item, or raise what `work` raises for it; a NoAnswerError fails its whole batch."""
        return await asyncio.wrap_future(self.enqueue(item))

    def enqueue(self, item: Item) -> Future[Result]:
        """Return the future result of one item; see `add` and `Pool.submit`."""
        future: Future[Result] = Future()
        with self._lock:
            self._check(len(self._waiting), self._max_waiting)
            self._waiting.append((item, future, time.perf_counter()))
            self._pending.add(future)
            self._executor.submit(self._work_off)  # does nothing if an earlier call took this item along
        future.add_done_callback(self._pending.discard)
        return future

    def stop(self) -> None:
        """See `Pool.stop`."""
        super().stop()
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for _, future, _ in waiting:
            future.cancel()

    def _work_off(self) -> None:
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
        # The future of a client that has left is cancelled and cannot be set running.
        if taken := [entry for entry in taken if entry[1].set_running_or_notify_cancel()]:
            begun = time.perf_counter()
            for _, _, arrival in taken:
                self._wait_seconds.observe(begun - arrival)
            self._resolve([(item, future) for item, future, _ in taken])

    def _resolve(self, batch: Sequence[tuple[Item, Future[Result]]]) -> None:
        try:
            with self._seconds.time():
                results = self._work([item for item, _ in batch])
            assert len(results) == len(batch)
        except Exception as error:  # noqa: BLE001  (raised where the results are awaited)
            if len(batch) == 1 or isinstance(error, NoAnswerError):  # one by one they would all wait as long again
                for _, future in batch:
                    future.set_exception(error)
                return
            for pair in batch:  # one bad item must not fail the others
                self._resolve([pair])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
