"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cskt.errors import FileSystemError
from cskt.utils.messages import one_line

_TEMPORARY = re.compile(r"\..+\.[0-9]+\.[0-9]+\.tmp")


def is_temporary(name: str) -> bool:
    """Return whether this is the name of an unfinished file, which `write_atomically` has left if it was killed."""
    return _TEMPORARY.fullmatch(name) is not None


def write_atomically(path: Path, write: Callable[[Path], object], *, keep_permissions: bool = False) -> None:
    """Let `write` fill a temporary file beside `path`, and rename it to `path` once it is complete on disk.

    Args:
        path: the file; its folder is created if it is missing.
        write: called with the temporary file; an OSError that it raises is a refusal of the file system.
        keep_permissions: give the new file the mode of the older one, and its owner and group if this process may. By
            default it has those of every file that this process creates.

    Raises:
        FileSystemError: the disk is full, the folder is read-only, ...; an older file at `path` is then unchanged.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"
    with write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            write(temporary)
            temporary.chmod(mode)  # safetensors leaves a file that only its owner can read
            if keep_permissions and path.exists():
                _copy_permissions(path, temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            if temporary.exists():
                temporary.unlink()


def _copy_permissions(source: Path, target: Path) -> None:
    """Give a file the mode of another one, and its owner and group where this process may do so."""
    wanted, present = source.stat(), target.stat()
    if (wanted.st_uid, wanted.st_gid) != (present.st_uid, present.st_gid):
        with suppress(PermissionError):
            os.chown(target, wanted.st_uid, wanted.st_gid)
    target.chmod(stat.S_IMODE(wanted.st_mode))


def files_below(place: Path) -> Iterator[Path]:
    """Yield a file, or the files below a folder; links to folders are not followed."""
    if place.is_file():
        yield place
    for folder, _, names in os.walk(place):
        yield from (Path(folder, name) for name in sorted(names))


def bytes_below(place: Path) -> int:
    """Return the size of a file, or of the files below a folder, without those that vanish meanwhile."""
    total = 0
    for path in files_below(place):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


@contextmanager
def write_errors(place: Path) -> Iterator[None]:
    """Turn the refusal of a write to a file or folder into a FileSystemError that names it."""
    try:
        yield
    except (OSError, UnicodeEncodeError) as error:
        reason = f"cannot be written: {one_line(getattr(error, 'strerror', None) or error)}"
        raise FileSystemError(f"{place}: {reason}; free disk space, or choose another folder") from error
