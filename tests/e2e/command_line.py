"""Commands as a user types them: most in this process, which saves three seconds each, some in a new one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cskt
from cskt.cli.main import main
from cskt.cli.released_programs import test_main as run_test_py
from cskt.cli.released_programs import train_main as run_train_py

REPOSITORY = Path(__file__).parents[2]
PROGRAMS: dict[tuple[str, ...], Callable[[list[str]], int]] = {
    ("cskt",): main, ("python", "train.py"): run_train_py, ("python", "test.py"): run_test_py,
}  # fmt: skip


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return the JSON on stdout of a command that succeeded."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def refusal(self) -> str:
        """Return the reason of a refusal, after checking that it is one line on stderr with exit code 2."""
        lines = self.err.splitlines()
        assert self.code == 2, self
        assert self.out == ""
        assert len(lines) == 1, self.err
        program, _, reason = lines[0].partition(": ")
        assert program.split()[0] in ("cskt", "train.py", "test.py")
        assert reason and len(re.sub(r"/\S+", "/...", reason)) < 500  # paths of this machine aside
        return reason

    def bug(self) -> str:
        """Return the last line of the traceback of a bug, after checking its report."""
        lines = self.err.splitlines()
        assert self.code == 70, self
        assert "Traceback (most recent call last):" in lines
        assert "please report this" in lines[-1] and cskt.__version__ in lines[-1] and "the command: " in lines[-1]
        return lines[-2]


def words_of(command: str) -> list[str]:
    """Split a command as a shell does; `PYTHON -m cskt`, printed if `cskt` is not on PATH, becomes `cskt`."""
    words = shlex.split(command)
    return words[2:] if words[1:3] == ["-m", "cskt"] else words


def typed(command: str) -> Outcome:
    """Run a command in this process. Log lines go to pytest's `caplog` instead of stderr."""
    words = words_of(command)
    program = next(name for name in PROGRAMS if tuple(words[: len(name)]) == name)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = PROGRAMS[program](words[len(program) :])
        except SystemExit as end:  # how argparse ends
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def done(command: str) -> str:
    """Run a command that must succeed in this process, and return its stdout."""
    outcome = typed(command)
    assert outcome.code == 0, outcome.err
    return outcome.out


def in_new_process(command: str, folder: Path) -> Outcome:
    """Run a command in `folder` as a shell would; `cskt` as `python -m cskt`, train.py and test.py by their paths."""
    words = words_of(command)
    words = ["-m", *words] if words[0] == "cskt" else [str(REPOSITORY / words[1]), *words[2:]]
    finished = subprocess.run(
        [sys.executable, *words],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    return Outcome(finished.returncode, finished.stdout, finished.stderr)


def contents(folder: Path) -> dict[Path, str]:
    """Return the digest of every file below a folder."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
