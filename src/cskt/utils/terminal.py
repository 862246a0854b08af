"""Text from sources that are not trusted, for a terminal: it cannot move the cursor, hide text or reorder a line.

`printable` escapes one text. `standard_streams` replaces stdout and stderr by streams that escape all that is written
to them, whichever command writes it. Colours and progress bars are written beneath these streams; see `console`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from cskt.errors import from_os_error

_VISIBLE_FORMAT = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
"""Characters of category Cf that are drawn: signs that enclose the digits behind them."""
_JOINERS = "\u200c\u200d"
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u3164\uffa0")
"""Letters and marks that draw nothing."""
_SELECTORS = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Choose a variant of the character before them; they draw nothing themselves."""


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text that is safe to print on one line: `a\x1b[2J` has the escape character as four letters.

    Escaped are control characters (line breaks and tabs too), bidirectional controls, characters that draw nothing,
    line and paragraph separators, lone surrogates and noncharacters. Letters of every script and emoji are kept, with
    the joiners and variation selectors that belong to them, and the control characters of `keep`.
    """
    if text.isascii() and text.isprintable():
        return text
    shown = []
    previous = ""
    for position, character in enumerate(text):
        following = text[position + 1 : position + 2]
        is_kept = character in keep or character.isalnum() or _is_shown(character, previous, following)
        is_kept = is_kept and character not in _BLANK
        shown.append(character if is_kept else character.encode("unicode_escape").decode())
        previous = character
    return "".join(shown)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return JSON in ASCII without any control character: DEL is escaped too, which `json.dumps` leaves.

    What is no value of JSON, such as a path, is written as its text.
    """
    return json.dumps(value, indent=indent, default=str).replace("\x7f", "\\u007f")


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Replace stdout and stderr by streams that escape control characters and what the encoding lacks.

    A stream that is closed is opened on the null device first.
    """
    _open_closed_streams()
    before = sys.stdout, sys.stderr
    ours = EscapingStream(before[0], "stdout"), EscapingStream(before[1], "stderr", is_optional=True)
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def discard(stream: TextIO) -> None:
    """Send what a stream still holds, and all that follows, to the null device: its reader or its disk is gone."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class LineFormatter(logging.Formatter):
    """Formats a record of the package as one escaped line; tracebacks and other packages' lines stay lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """Return the message, escaped."""
        line = super().formatMessage(record)
        return printable(line) if record.name.partition(".")[0] == "cskt" else printable(line, keep="\n\t")

    def format(self, record: logging.LogRecord) -> str:
        """Return the message and, behind it, the traceback."""
        return printable(super().format(record), keep="\n\t")


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the present `sys.stderr`: a progress bar replaces it, so that lines appear above the bar."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self.stream = sys.stderr
        super().emit(record)


class EscapingStream:
    """A text stream that escapes what is written to it.

    Text that cannot be written is dropped if the stream is optional; otherwise a FileSystemError that names the stream
    or a BrokenPipeError is raised.
    """

    def __init__(self, stream: TextIO, name: str, *, is_optional: bool = False) -> None:
        self.beneath = _Stream(stream, name, is_optional)
        """The same stream without escaping."""

    def write(self, text: str) -> int:
        """Write text, escaped but for line feeds, tabs, and a carriage return in front, as progress bars have it."""
        start = "\r" if text.startswith("\r") else ""
        self.beneath.write(start + printable(text[len(start) :], keep="\n\t"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)


class _Stream:
    """A text stream whose errors name it, and which escapes the characters that its encoding lacks."""

    def __init__(self, stream: TextIO, name: str, is_optional: bool) -> None:
        self._stream = stream
        self._name = name
        self._is_optional = is_optional
        if getattr(stream, "errors", "") in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> None:
        with self._failing():
            self._stream.write(text)

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_optional:
                if isinstance(error, BrokenPipeError):
                    raise
                raise from_os_error(error, self._name) from error
            discard(self._stream)


def _is_shown(character: str, previous: str, following: str) -> bool:
    """Return whether a character that is no letter or digit may be printed between these two."""
    if character in _JOINERS:
        return _can_join(previous) and _can_join(following)
    if _SELECTORS.match(character):
        return bool(previous) and not previous.isspace() and _is_shown_alone(previous)
    return _is_shown_alone(character)


def _can_join(neighbour: str) -> bool:
    is_selector = bool(_SELECTORS.match(neighbour))
    return bool(neighbour) and not neighbour.isascii() and (is_selector or _is_shown_alone(neighbour))


def _is_shown_alone(character: str) -> bool:
    category = unicodedata.category(character)
    if category == "Cf":
        return character in _VISIBLE_FORMAT
    code = ord(character)
    is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF or 0xE0000 <= code <= 0xE0FFF
    return category not in ("Cc", "Cs", "Zl", "Zp") and not is_noncharacter and not _SELECTORS.match(character)


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that the program was started without.

    Python sets such a stream to None, and the next file that is opened would get its descriptor.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  for the life of the process
