"""Paths from names that are not trusted."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cskt.errors import CsktError, FileSystemError, file_system_errors

RESERVED = frozenset('/\\:*?"<>|')
"""Characters that a file name cannot hold, on one system or another."""
MAX_NAME_BYTES = 200
"""Bytes; file systems take 255, of which others are added here."""


def inside(folder: Path, *parts: str | Path, follow_links: bool = True) -> Path:
    """Join a name to a folder and check that the result is below the folder once all links are resolved.

    Every path built from a manifest, a store, an archive, a config or a request goes through this function.

    Args:
        folder: may itself be a link, or be reached by one.
        parts: what is joined to it, as with `Path.joinpath`; nothing of the path has to exist.
        follow_links: false for files that this program makes, none of which is a link.

    Returns:
        The resolved path, so that what is opened is what was checked; without links, the joined one, which is the same.
    """
    joined = folder.joinpath(*parts)
    try:
        root, path = folder.resolve(), joined.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL, half a surrogate pair
        raise CsktError(f"{_shown(joined)}: not a path that can be opened: {error}; rename it") from None
    if path == root or not path.is_relative_to(root):
        raise CsktError(f"{_shown(joined)}: leads outside {folder}; only files below that folder are used")
    if follow_links:
        return path
    if path != Path(os.path.normpath(root.joinpath(*parts))):
        raise CsktError(f"{_shown(joined)}: a link, or below one; put the file or folder itself there")
    return joined


def expanded(path: Path | str) -> Path:
    """Return a checked path with the home folder in place of a leading `~` or `~user`."""
    try:
        whole = Path(path).expanduser()
    except RuntimeError:
        raise CsktError(f"{_shown(Path(path))}: the home folder is not known; set HOME") from None
    check_path(whole)
    return whole


def check_path(path: Path) -> None:
    """Check that the operating system can look for a path, which need not exist.

    Raises:
        FileSystemError: a part of it is too long, a folder above it may not be entered, links form a circle, or it
            contains NUL.
    """
    check_characters(path)
    with file_system_errors(path), suppress(FileNotFoundError, NotADirectoryError):
        path.stat()


def check_characters(path: Path) -> None:
    """Refuse a path that contains NUL, for which Python has a plain ValueError."""
    if "\0" in str(path):
        raise FileSystemError(f"{_shown(path)}: a path cannot contain a null character; name another")


def file_name(text: str) -> str:
    """Return text as one part of a file name; characters that mean something in a path or a shell become `_`.

    The name has at most 200 bytes and no dot in front; it is `_` for an empty text.
    """
    safe = "".join("_" if letter in RESERVED or not letter.isprintable() else letter for letter in text)
    safe = safe.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    return f"_{safe[1:]}" if not safe or safe.startswith(".") else safe


def _shown(path: Path) -> str:
    """Return a path on one line, cut to 300 characters."""
    text = str(path)
    return (text if text.isprintable() else repr(text))[:300]
