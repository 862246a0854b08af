"""Notices that the files of a run were deleted, moved or replaced while it trains.

A file that is open stays writable after its name is gone, and saving makes a missing folder anew: without this check a
training would go on to its end and leave a folder that cannot be resumed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from cskt.errors import CsktError


class RunFiles:
    """The files that a training has written, by name.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._expected: dict[Path, IO[bytes] | None] = {}

    def expect(self, path: Path, *, hold: bool = False) -> None:
        """From now on a file must be there.

        Args:
            path: an existing file in the folder.
            hold: keep it open for reading, and also require that it is not replaced by another of its name. While a
                file is open its inode number cannot be given to another, on any file system.

        Raises:
            OSError: it cannot be opened.
        """
        if path not in self._expected:
            self._expected[path] = path.open("rb") if hold else None

    def check(self) -> None:
        """Check that every expected file is there.

        Raises:
            CsktError: one is not; names the folder and the file, and what to do.
        """
        for path, held in self._expected.items():
            if not _is_there(path, held):
                name = path.relative_to(self._folder).as_posix()
                what = f"'{name}' was deleted or replaced" if self._folder.is_dir() else "deleted or moved"
                raise CsktError(
                    f"{self._folder}: {what} during training, which ends here; put it back and continue with"
                    f" 'cskt train --resume {self._folder}', or start a new run"
                )

    def close(self) -> None:
        """Close what is held open."""
        for held in self._expected.values():
            if held is not None:
                with suppress(OSError):
                    held.close()
        self._expected.clear()


def _is_there(path: Path, held: IO[bytes] | None) -> bool:
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # a network that does not answer is not a deletion; the next write says what is wrong
        return True
    return held is None or os.path.samestat(state, os.fstat(held.fileno()))
