"""Messages to users: the nearest known word, commands to type, missing extras, deprecated names."""

from __future__ import annotations

import difflib
import importlib.util
import os
import shlex
import sys
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cskt.errors import CsktError

_PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"
_warned = set[str]()


def nearest(word: str, known: Collection[str]) -> str:
    """Return a clause that names the known word most like `word`, or lists the known words if none is like it."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"


def command_text(*words: str | Path, program: Sequence[str] = ("cskt",)) -> str:
    """Return a `cskt` command for a message, quoted for a shell, with the plug-ins of the present command.

    `cskt.cli.parsing.command_line` finds the program.
    """
    from cskt.plugins import environment_plugins  # noqa: PLC0415  (imports this module)

    plugins = [word for source in environment_plugins() for word in ("--plugin", from_here(source))]
    return shlex.join([*program, *map(str, words), *plugins])


def from_here(path: str) -> str:
    """Return a path relative to the working directory if it is below it; other text stays as it is."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def one_line(text: object) -> str:
    """Return a text, or the message of an error, on one line."""
    return " ".join(str(text).split())


def described(value: object) -> str:
    """Return shape and type of a tensor, or the type of any other value: what code of a plug-in returned."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"shape {list(value.shape)} of {value.dtype}"
    return type(value).__name__


def require(extra: str, *modules: str) -> None:
    """Check that the modules of an extra of pyproject.toml are installed, without importing them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise CsktError(f"{', '.join(missing)} not installed; type: pip install 'cskt[{extra}]'")


def warn_deprecated(old: str, new: str) -> None:
    """Warn, once per process, that an old name or form such as "Gallery.cut_off" is replaced by another.

    The warning names the line that called this package: Python shows a DeprecationWarning only where its line is in the
    program itself.
    """
    if old not in _warned:
        _warned.add(old)
        level, frame = 2, sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            level, frame = level + 1, frame.f_back
        warnings.warn(
            f"{old} is deprecated and will be removed in cskt 1.0; use {new}", DeprecationWarning, stacklevel=level
        )


def renamed(old: str, new: str) -> Any:
    """Return a property with a deprecated name (with its class: "Gallery.cut_off") of an attribute."""

    def value(owner: object) -> Any:
        warn_deprecated(old, f"{old.partition('.')[0]}.{new}")
        return getattr(owner, new)

    return property(value)
