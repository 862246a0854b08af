"""Work done in threads ahead of its use, in order.

Reading, hashing, decoding and resizing leave Python's lock, so threads are as fast as processes here, start at once on
every system, and pass errors on unchanged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

NUM_GROUPS_AHEAD = 2
"""Groups worked on while the current one is in use."""
ITEMS_PER_TASK = 8
"""Items that a thread takes at a time; one by one, handing over costs as much as decoding an image."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_ahead(
    work: Callable[[Item], Result], groups: Iterable[Sequence[Item]], num_workers: int
) -> Iterator[list[Result]]:
    """The results of every group in turn, while threads work on the groups after it.

    Args:
        num_workers: threads; 0 works in the calling thread, when asked for a group.

    Raises:
        Whatever `work` raises, at the group that it belongs to. No thread outlives the iterator.
    """

    def task(items: Sequence[Item]) -> list[Result]:
        return [work(item) for item in items]

    if num_workers == 0:
        yield from map(task, groups)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="ahead")
    pending: deque[list[Future[list[Result]]]] = deque()

    def finish_oldest() -> list[Result]:
        return [result for task in pending.popleft() for result in task.result()]

    try:
        for group in groups:
            starts = range(0, len(group), ITEMS_PER_TASK)
            pending.append([pool.submit(task, group[start : start + ITEMS_PER_TASK]) for start in starts])
            if len(pending) > NUM_GROUPS_AHEAD:
                yield finish_oldest()
        while pending:
            yield finish_oldest()
    finally:  # also when the caller stops early or an item fails
        pool.shutdown(cancel_futures=True)
