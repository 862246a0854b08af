"""The `cskt` command: verbs, one module each, loaded only when called.

Results go to stdout, progress and warnings to stderr. Bad input ends with one line and exit code 2.
"""

from __future__ import annotations

import errno
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

COMMANDS = {
    "demo": ("cskt.app.demo", "see CSKT learn and answer sentences, on generated pedestrians, in minutes"),
    "data make": ("cskt.app.data_make", "draw a data set of pedestrians with captions"),
    "data check": ("cskt.app.data_check", "check a data set: counts, images, captions"),
    "train": ("cskt.app.train", "train a recipe"),
    "evaluate": ("cskt.app.evaluate", "retrieval metrics of a run, a released folder or plain CLIP on any split"),
    "query": ("cskt.app.query", "answer sentences with the best crops of a split"),
    "export": ("cskt.app.export", "write a run as one self-contained file, or as a backbone"),
}
"""Command -> (module with `main(argv) -> exit code`, one line on what it does)."""

REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "make room on the disk",
    errno.EACCES: "choose a place that you may read and write",
    errno.EROFS: "choose a place that you may write",
}
"""What helps against an error of the operating system."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 done with findings, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        from cskt import __version__  # noqa: PLC0415  (keeps --help quick)

        print(f"cskt {__version__}")
        return 0
    command = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if command is None:
        return _unknown(words)
    module = importlib.import_module(COMMANDS[command][0])
    return guarded(module.main, words[len(command.split()) :], f"cskt {command}")


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str], program: str) -> int:
    """Call `run` and turn what a user can mend into one line on stderr and exit code 2."""
    logging.basicConfig(handlers=[_StderrHandler()], format="%(message)s", level=logging.INFO)
    for chatty in ("httpx", "huggingface_hub", "fontTools", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return run(argv)
    except ValueError as error:
        reason = " ".join(str(error).split())
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or error}; {REMEDIES.get(error.errno, 'choose another place')}"
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    print(f"{program}: {reason}", file=sys.stderr)
    return 2


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that moment: a progress bar puts itself there, so that lines appear above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: cskt COMMAND ...   (cskt COMMAND --help explains it)", "", *lines])


def _unknown(words: Sequence[str]) -> int:
    from cskt.config import nearest  # noqa: PLC0415  (keeps --help quick)

    asked = " ".join(words[:2]) if words[0] == "data" else words[0]
    print(f"cskt: unknown command '{asked}': {nearest(asked, list(COMMANDS))}", file=sys.stderr)
    return 2
