"""Progress bars on stderr, at a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cskt.utils.console import console

COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=30),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}", markup=False),
)


class Advance(Protocol):
    """Advances a bar, with an optional note behind it."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


@contextmanager
def bar(description: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Advance]:
    """Show a progress bar with counts and time left, unless `shown` is false; the value advances it.

    `done` steps of the total are already done, for work that is resumed.
    """
    with Progress(*COLUMNS, console=console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            progress.update(task, advance=steps, note=note)

        yield advance


@contextmanager
def counting_bar(description: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar for work that calls the value with `(done, total)`.

    With the unit of the counts, the rate since the first report is shown (`123 images/s`).
    """
    with Progress(*COLUMNS, console=console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(description, total=None, note="")
        first: tuple[float, int] | None = None

        def report(done: int, total: int) -> None:
            nonlocal first
            now = time.monotonic()
            first = first or (now, done)
            seconds, steps = now - first[0], done - first[1]
            note = f"{steps / seconds:,.0f} {unit}/s" if unit and seconds > 0 else ""
            progress.update(task, completed=done, total=total, note=note)

        yield report
