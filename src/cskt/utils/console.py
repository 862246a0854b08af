"""Rich consoles that show text from sources that are not trusted: without markup, escaped, in colour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cskt.utils.terminal import EscapingStream, printable

NARROWEST = 40
"""Columns that a table needs at least; a narrower terminal breaks its lines."""


def console(*, stderr: bool = False) -> Console:
    """Make a console on stdout or stderr: no markup, no emoji codes, no highlighting, all text escaped."""
    made = _Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if made.width < NARROWEST:  # noqa: PLR1730  a wider one follows when its window is resized
        made.width = NARROWEST
    return made


def literal(text: str) -> Text:
    """Return text for a cell or a title of a table, escaped before the widths of the columns are measured."""
    return Text(printable(text))


def write_rendered(text: str) -> None:
    """Write text to stdout that a console has rendered and escaped, with its colours."""
    console().file.write(text)


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
