"""Commands to type next, as they run from the working folder, also in an environment that is not active."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def command_line(*words: str | Path) -> str:
    """Return a `cskt` command, quoted for a shell.

    Args:
        words: what follows `cskt`, one argument each.
    """
    return shlex.join([*_program(), *map(str, words)])


def _program() -> list[str]:
    if shutil.which("cskt"):
        return ["cskt"]
    python, here = Path(sys.executable), Path.cwd()
    return [str(python.relative_to(here) if python.is_relative_to(here) else python), "-m", "cskt"]
