"""Threads that serve many requests: a `Batcher` takes what waits together, a `Pool` bounds what may wait."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, ParamSpec, TypeVar

from cskt.errors import NoAnswerError
from cskt.service.errors import busy, stopping
from cskt.service.threads import DaemonExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")
P = ParamSpec("P")


class Batcher(Generic[Item, Result]):
    """One thread that works on single items where it is idle, and on all that gathered meanwhile where it is not.

    Args:
        name: of the thread.
        work: items -> as many results.
        most_together: most items of one call of `work`.
        most_waiting: items that may wait.
    """

    def __init__(
        self, name: str, work: Callable[[Sequence[Item]], Sequence[Result]], *, most_together: int, most_waiting: int
    ) -> None:
        self._work = work
        self._most_together = most_together
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = DaemonExecutor(name, 1)

    async def run(self, item: Item) -> Result:
        """The result of one item.

        Raises:
            ServiceError: 503, too many wait or the service stops.
            NoAnswerError: for all that were worked on together.
            Exception: what `work` raises for this item alone.
        """
        return await asyncio.wrap_future(self.submit(item))

    def submit(self, item: Item) -> Future[Result]:
        """As `run`, for callers without an event loop."""
        with self._lock:
            if self._closed:
                raise stopping()
            if len(self._waiting) >= self._most_waiting:
                raise busy()
            future: Future[Result] = Future()
            self._waiting.append((item, future))
            self._thread.submit(self._work_off)  # finds nothing to do if an earlier call took this item along
        return future

    def stop(self) -> None:
        """Take no more, and cancel what waits; what has begun goes on."""
        with self._lock:
            self._closed = True
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()
        self._thread.shutdown(wait=False)

    def close(self, seconds: float | None = None) -> bool:
        """`stop`, and wait until what has begun is finished; see `DaemonExecutor.join`."""
        self.stop()
        return self._thread.join(seconds)

    def _work_off(self) -> None:
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(self._most_together, len(self._waiting)))]
        # a future that cannot be set running belongs to a client that has left
        asked = [(item, future) for item, future in taken if future.set_running_or_notify_cancel()]
        if asked:
            self._answer(asked)

    def _answer(self, asked: Sequence[tuple[Item, Future[Result]]]) -> None:
        try:
            results = self._work([item for item, _ in asked])
            assert len(results) == len(asked)
        except Exception as error:  # noqa: BLE001  (it belongs to those who wait)
            if len(asked) == 1 or isinstance(error, NoAnswerError):  # each for itself would wait as long again
                for _, future in asked:
                    future.set_exception(error)
                return
            for pair in asked:  # one bad item must not fail the rest
                self._answer([pair])
            return
        for (_, future), result in zip(asked, results, strict=True):
            future.set_result(result)


class Pool:
    """A few threads for one kind of work, so that its slow requests hold up nobody else's.

    Args:
        name: of the threads.
        threads: how many.
        most_waiting: requests that may wait for a thread.
    """

    def __init__(self, name: str, *, threads: int, most_waiting: int) -> None:
        self._threads = DaemonExecutor(name, threads)
        self._most = threads + most_waiting
        self._running = 0
        self._closed = False

    async def run(self, work: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Call `work` in a thread of the pool.

        Raises:
            ServiceError: 503, too many wait or the service stops.
            Exception: what `work` raises.
        """
        if self._closed:
            raise stopping()
        if self._running >= self._most:
            raise busy()
        self._running += 1  # only the event loop's thread comes here
        try:
            call = functools.partial(work, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        finally:
            self._running -= 1

    def stop(self) -> None:
        """Take no more, and cancel what waits; what has begun goes on."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def close(self, seconds: float | None = None) -> bool:
        """`stop`, and wait until what has begun is finished; see `DaemonExecutor.join`."""
        self.stop()
        return self._threads.join(seconds)
