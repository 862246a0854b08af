"""Threads that do not keep the process alive.

The interpreter waits at its end for every thread of `concurrent.futures.ThreadPoolExecutor`, however long a call into a
database or a model takes. A service must end after its grace period, so its threads are daemons.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

Result = TypeVar("Result")
P = ParamSpec("P")


class DaemonExecutor(Executor):
    """As ThreadPoolExecutor, with daemon threads and an end that can be waited for with a limit.

    Args:
        name: prefix of the threads' names.
        num_threads: started one by one as calls are submitted.
    """

    def __init__(self, name: str, num_threads: int) -> None:
        self._name = name
        self._num_threads = num_threads
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._futures: set[Future[Any]] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Future[Result]:
        """Call `fn` in one of the threads.

        Raises:
            RuntimeError: after `shutdown`.
        """
        future: Future[Result] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    result = fn(*args, **kwargs)
                except BaseException as error:  # noqa: BLE001  (it belongs to whoever waits for the future)
                    future.set_exception(error)
                else:
                    future.set_result(result)

        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name}: no new calls after the shutdown")
            self._futures.add(future)
            if len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        future.add_done_callback(self._futures.discard)
        self._calls.put(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; see `concurrent.futures.Executor.shutdown`."""
        with self._lock:
            self._closed = True
            if cancel_futures:
                for future in list(self._futures):
                    future.cancel()  # one that runs goes on
            for _ in self._threads:
                self._calls.put(None)  # behind the calls that are waiting
        if wait:
            self.join()

    def join(self, seconds: float | None = None) -> bool:
        """Wait for the end of the threads, after `shutdown`.

        Args:
            seconds: to wait at most; without a limit if None.

        Returns:
            Whether all have ended.
        """
        end = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # or what it holds, a picture for example, stays until the next one comes
