"""Rich consoles and progress bars; text from sources that are not trusted is escaped and shown without markup."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from cskt.utils.terminal import EscapingStream, printable

MIN_COLUMNS = 40
"""Columns that a table needs at least; a narrower terminal breaks its lines."""
COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(bar_width=30),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}", markup=False),
)
"""Parts of a progress bar."""
Advance = Callable[..., None]
"""Advances a bar by a number of steps (1), with an optional `note` behind it."""


def console(*, stderr: bool = False) -> Console:
    """Make a console on stdout or stderr: no markup, no emoji codes, no highlighting, all text escaped."""
    made = _Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if made.width < MIN_COLUMNS:  # noqa: PLR1730  a wider one follows when its window is resized
        made.width = MIN_COLUMNS
    return made


def literal(text: str) -> Text:
    """Return text for a cell or a title of a table, escaped before the widths of the columns are measured."""
    return Text(printable(text))


def write_rendered(text: str) -> None:
    """Write text to stdout that a console has rendered and escaped, with its colours."""
    console().file.write(text)


@contextmanager
def bar(description: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Advance]:
    """Show a progress bar on stderr, at a terminal only; `done` steps are already done, for work that is resumed."""
    with Progress(*COLUMNS, console=console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            progress.update(task, advance=steps, note=note)

        yield advance


@contextmanager
def counting_bar(description: str, unit: str = "") -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar, at a terminal only, for work that calls the value with `(done, total)`, None if unknown.

    With the unit of the counts, the rate since the first report is shown (`123 images/s`).
    """
    with Progress(*COLUMNS, console=console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(description, total=None, note="")
        first: tuple[float, int] | None = None

        def report(done: int, total: int | None) -> None:
            nonlocal first
            now = time.monotonic()
            first = first or (now, done)
            seconds, steps = now - first[0], done - first[1]
            note = f"{steps / seconds:,.0f} {unit}/s" if unit and seconds > 0 else ""
            progress.update(task, completed=done, total=total, note=note)

        yield report


class _Console(Console):
    """Escapes the text of every segment; colours and cursor movements of its own go beneath the escaping streams."""

    @property
    def file(self) -> IO[str]:
        """The stream beneath stdout or stderr."""
        file: object = super().file
        return cast(IO[str], file.beneath if isinstance(file, EscapingStream) else file)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, keep="\n"), segment.style)
