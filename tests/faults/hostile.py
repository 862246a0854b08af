"""Rules for readers of foreign files: accept them, or refuse them in one line, within a time limit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from processes import ENVIRONMENT

from cskt.errors import CsktError

SECONDS = 20.0
"""Most processor time of one case; other programs on the machine do not count."""
LONGEST = 1500
"""Characters of a message, which must not repeat a large input."""


class Measured(NamedTuple):
    """Result of reading something in a separate process."""

    reason: str
    """Error message; empty if the input was accepted."""
    more_bytes: int
    """Growth of the peak memory of the process."""
    seconds: float
    """Processor time."""


class TooSlowError(BaseException):
    """Passes by every handler of errors."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Break off what takes more processor time; where there are alarms, even within a library."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"not done after {seconds} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def taken_or_refused(read: Callable[[], object], seconds: float = SECONDS) -> str:
    """Return the error message of one line, or an empty string if the input was accepted; check both."""
    started = time.process_time()
    try:
        with limited(seconds):
            read()
    except ValueError as error:
        message = str(error)
        is_ours = type(error) is CsktError or type(error).__module__.startswith("cskt.")
        assert is_ours, f"{type(error).__name__}: {message[:300]}"
        assert message.strip() and "\n" not in message.strip(), message[:300]
        assert len(message) <= LONGEST, f"{len(message)} characters: {message[:300]}"
        message.encode()  # it can be printed
        return message
    assert time.process_time() - started < seconds
    return ""


MEASURE = """
import json, resource, sys, time
from pathlib import Path
{preparation}
def most_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
def read(number):
{cases}
for number in range({count}):
    before, started, reason = most_bytes(), time.process_time(), ""
    try:
        read(number)
    except ValueError as error:
        reason = str(error)
    print(json.dumps([reason, most_bytes() - before, time.process_time() - started]))
"""


def in_a_process(preparation: str, readings: Sequence[str], seconds: float = 500) -> list[Measured]:
    """Read inputs in a separate process and measure its memory; anything but a CsktError fails the test."""
    cases = "\n".join(f"    if number == {number}: {reading}" for number, reading in enumerate(readings))
    program = MEASURE.format(preparation=preparation, cases=cases, count=len(readings))
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=seconds
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return [Measured(*json.loads(line)) for line in ended.stdout.splitlines()]


COMMANDS = """
import json, sys
from cskt.cli.main import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print("--- code", code, file=sys.stderr, flush=True)
"""


def run_commands(commands: Sequence[Sequence[str | Path]]) -> list[str]:
    """The one line with which each command ends that was given something bad; all in a process of their own."""
    words = json.dumps([list(map(str, command)) for command in commands])
    ended = subprocess.run(
        [sys.executable, "-c", COMMANDS, words], check=False, capture_output=True, text=True, env=ENVIRONMENT,
        timeout=240,
    )  # fmt: skip
    assert ended.returncode == 0 and not ended.stdout, ended.stderr[-2000:]
    lines = ended.stderr.splitlines()
    assert len(lines) == 2 * len(commands), ended.stderr
    for command, line, code in zip(commands, lines[::2], lines[1::2], strict=True):
        assert line.startswith(f"cskt {command[0]}: ") and code == "--- code 2", ended.stderr
    return lines[::2]
