"""Patterns of `--ignore`: files and folders of a source that are not indexed.

The rules are those of .gitignore, without `!` and `\\`:

- A pattern without a slash matches a file or folder of that name anywhere: `*.png`, `thumbnails`.
- A pattern with a slash matches the path from the indexed folder: `cam3/*.jpg`, `/old`.
- A slash at the end matches folders only: `old/`.
- `*` and `?` are any characters but a slash, `[abc]` is one of several, `**` is any number of folders.
- The content of a folder that matches is ignored with it. Case matters.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from cskt.errors import CsktError

MAX_PATTERNS = 100
MAX_LENGTH = 512
"""Characters of a pattern."""


class _Pattern:
    def __init__(self, pattern: str) -> None:
        self.parts = pattern.strip("/").split("/")
        self.is_anchored = "/" in pattern.rstrip("/")  # else it matches the last name of a path
        self.is_folder = pattern.endswith("/")
        if not pattern.isprintable() or len(pattern) > MAX_LENGTH:
            raise CsktError(f"--ignore {pattern[:80]!r}: expected 1 to {MAX_LENGTH} characters that can be printed")
        if pattern.startswith("!") or "\\" in pattern:
            raise CsktError(f"--ignore {pattern}: '!' and '\\' have no meaning here; separate folders by '/'")
        if any(part in ("", ".", "..") for part in self.parts):
            raise CsktError(f"--ignore {pattern}: not a path below the indexed folder; give one such as cam3/*.png")

    def matches(self, path: Sequence[str], *, is_folder: bool) -> bool:
        if self.is_folder and not is_folder:
            return False
        return _match(path if self.is_anchored else path[-1:], self.parts)


class IgnorePatterns:
    """Patterns that are applied to paths within an indexed folder; see the module."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._patterns = [_Pattern(pattern) for pattern in patterns]
        if len(self._patterns) > MAX_PATTERNS:
            raise CsktError(f"--ignore: {len(self._patterns)} patterns; give at most {MAX_PATTERNS}")

    def match(self, path: str, *, is_folder: bool = False) -> bool:
        """Return whether a path relative to the indexed folder matches; the folders above it are not checked."""
        parts = path.split("/")
        return any(pattern.matches(parts, is_folder=is_folder) for pattern in self._patterns)

    def match_file(self, path: str) -> bool:
        """Return whether a file, or a folder above it, matches."""
        if not self._patterns:
            return False
        parts = path.split("/")
        above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return any(self.match(folder, is_folder=True) for folder in above) or self.match(path)


def _match(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the names of a path match the parts of a pattern, one by one; `**` takes any number.

    The loop remembers the last `**` only, so that no pattern takes more than len(path) * len(pattern) steps.
    """
    place = at = 0
    retry: tuple[int, int] | None = None
    while place < len(path):
        if at < len(pattern) and pattern[at] == "**":
            retry = (place, at + 1)
            at += 1
        elif at < len(pattern) and fnmatch.fnmatchcase(path[place], pattern[at]):
            place, at = place + 1, at + 1
        elif retry is not None:
            retry = (retry[0] + 1, retry[1])
            place, at = retry
        else:
            return False
    return all(part == "**" for part in pattern[at:])
