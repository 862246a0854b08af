"""A run folder claimed by another thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cskt.training.run_folder import claimed


@contextmanager
def claimed_elsewhere(folder: Path) -> Iterator[bool]:
    """Claim a folder in another thread; yield whether that succeeded."""
    answers: list[bool] = []
    asked, over = threading.Event(), threading.Event()

    def hold() -> None:
        with claimed(folder) as mine:
            answers.append(mine)
            asked.set()
            over.wait()

    worker = threading.Thread(target=hold)
    worker.start()
    try:
        assert asked.wait(300)
        yield answers[0]
    finally:
        over.set()
        worker.join()
