"""Files of a gallery's source, found without opening them: a folder with its subfolders, or a list of paths.

An entry that cannot be read never ends a scan. It is listed, and its crops count as unchecked: neither present nor
missing, so that `--prune` keeps them.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from cskt.errors import CsktError
from cskt.gallery.indexing.ignoring import IgnorePatterns
from cskt.image_files.formats import suffixes

SUFFIXES = suffixes()
"""Suffixes, in lower case, of image files."""
LIST_SUFFIXES = (".txt", ".lst")
"""Suffixes of a list: UTF-8, one path a line."""
READ_WITH = {
    ".heic": "pip install 'cskt[heic]'", ".heif": "pip install 'cskt[heic]'", ".avif": "pip install -U pillow",
}  # fmt: skip
"""Suffix of images that need another package -> the command that installs it."""
HIDDEN, IGNORED, LINKS, FOLDERS, SPECIAL = "hidden", "ignored", "links", "folders", "special files"
NO_SUFFIX = "files without a suffix"
OTHER = "other files"
MAX_SUFFIXES = 20
"""Suffixes that are counted separately; files with further ones count as `OTHER`."""
MAX_SUFFIX_CHARACTERS = 12

Files: TypeAlias = dict[str, tuple[int, int]]
"""Name of a file -> (bytes, time of the last change in nanoseconds since 1970)."""


@dataclass(frozen=True)
class ImageSource:
    """Source of the images of a gallery."""

    folder: Path
    """Names of crops are paths within it."""
    list_file: Path | None = None
    """A list of paths below the folder, if not all of its files are indexed."""
    ignore: tuple[str, ...] = ()
    """See `ignoring`."""

    def __post_init__(self) -> None:
        IgnorePatterns(self.ignore)  # refused before anything is loaded

    def scan(self, gallery: Path | None = None) -> Scan:
        """Find the files; the folder of the gallery is skipped if it is inside the source.

        A folder or list that cannot be read is an error, as is a line of the list that names a path outside the folder.
        """
        scan = Scan()
        patterns = IgnorePatterns(self.ignore)
        if self.list_file is not None:
            files = listed(self.list_file, self.folder.resolve(), scan, patterns)
        else:
            files = walk(self.folder, scan, patterns, gallery)
        scan.files = {name: (state.st_size, state.st_mtime_ns) for name, state in files}
        return scan


@dataclass
class Scan:
    """Contents of a source."""

    files: Files = field(default_factory=dict)
    growing: set[str] = field(default_factory=set)
    """Files that were different a moment ago; neither indexed nor missing."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Kind of entries that are not indexed (a suffix, `hidden`, `links`, ...) -> number."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of files whose size cannot be read."""
    unreadable_folders: list[tuple[str, str]] = field(default_factory=list)
    """(path within the folder, reason)."""
    unchecked: set[str] = field(default_factory=set)
    """Files and folders that cannot be read."""

    def leave_growing(self, before: Files) -> None:
        """Leave out the files that are not the same as `before`, since a program may still be writing them."""
        self.growing = {name for name, state in self.files.items() if before.get(name) != state}
        self.files = {name: state for name, state in self.files.items() if name not in self.growing}

    def is_unchecked(self, name: str) -> bool:
        """Return whether a crop's file, or a folder above it, cannot be read."""
        if not self.unchecked:
            return False
        return name in self.unchecked or any(str(above) in self.unchecked for above in PurePosixPath(name).parents)

    def add_unreadable(self, name: str, error: Exception) -> None:
        """List a file whose state cannot be read."""
        self.unreadable.append((name, reason_of(error)))
        self.unchecked.add(name)

    def pass_over_file(self, name: str, suffix: str) -> None:
        """Count a regular file whose suffix is not one of `SUFFIXES`."""
        if suffix in READ_WITH:
            self.unchecked.add(name)  # it may have been indexed where images of this kind can be read
        kind = suffix or NO_SUFFIX
        num_suffixes = sum(known.startswith(".") for known in self.passed_over)
        is_odd = len(suffix) > MAX_SUFFIX_CHARACTERS or not kind.isprintable()
        if is_odd or (kind not in self.passed_over and num_suffixes >= MAX_SUFFIXES):
            kind = OTHER
        self.passed_over[kind] += 1


def is_list(path: Path) -> bool:
    """Return whether a path is that of a list, and not of a folder."""
    return path.suffix.lower() in LIST_SUFFIXES and not path.is_dir()


def walk(
    folder: Path, scan: Scan, patterns: IgnorePatterns, gallery: Path | None
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path relative to `folder` with `/`, state) of every image file below it, in order.

    Links are not followed, so that all files are inside the folder and the walk ends. Names that begin with a dot are
    hidden. Skipped and unreadable entries go into `scan`.
    """
    gallery_name = None
    if gallery is not None and gallery.resolve().is_relative_to(folder.resolve()):
        gallery_name = gallery.resolve().relative_to(folder.resolve()).as_posix()
    pending = [""]
    while pending:
        place = pending.pop()
        try:
            with os.scandir(folder / place) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not place:
                reason = f"{reason_of(error)}; make it readable, or move it away"
                missing = isinstance(error, FileNotFoundError)
                raise CsktError(f"{folder}: {'no such folder of crops' if missing else reason}") from None
            scan.unreadable_folders.append((place, reason_of(error)))
            scan.unchecked.add(place)
            continue
        folders = []
        for entry in children:
            name = f"{place}/{entry.name}" if place else entry.name
            suffix = PurePosixPath(entry.name).suffix.lower()
            try:
                kind = _kind(entry, name, patterns)
                if kind == FOLDERS:
                    folders += [name] if name != gallery_name else []
                elif kind:
                    scan.passed_over[kind] += 1
                elif suffix not in SUFFIXES:
                    scan.pass_over_file(name, suffix)
                else:
                    yield name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # it has gone since the folder was listed
                continue
            except OSError as error:
                scan.add_unreadable(name, error)
        pending += reversed(folders)


def _kind(entry: os.DirEntry[str], name: str, ignore: IgnorePatterns) -> str:
    """Return the reason why an entry is not indexed, or `FOLDERS`; empty for a regular file."""
    is_folder = entry.is_dir(follow_symlinks=False)
    if entry.name.startswith("."):
        return HIDDEN
    if ignore.match(name, is_folder=is_folder):
        return IGNORED
    if entry.is_symlink():
        return LINKS
    if is_folder:
        return FOLDERS
    return "" if entry.is_file(follow_symlinks=False) else SPECIAL


def listed(path: Path, folder: Path, scan: Scan, patterns: IgnorePatterns) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name, state) of the files below a folder that a list names; skipped and missing ones go into `scan`."""
    seen = set()
    for number, line in enumerate(_lines(path), start=1):
        text = line.strip()
        if not text:
            continue
        where = f"{path}: line {number}: {text[:200]}"
        place = Path(os.path.normpath(folder / text))
        if not place.is_relative_to(folder):
            raise CsktError(f"{where} is not below the list's folder; move the list")
        name = place.relative_to(folder).as_posix()
        if name in seen:
            continue
        seen.add(name)
        if patterns.match_file(name):
            scan.passed_over[IGNORED] += 1
            continue
        try:
            state, is_here = place.stat(), place.resolve().is_relative_to(folder)
        except (FileNotFoundError, NotADirectoryError):
            scan.unreadable.append((name, f"line {number} of {path.name}: no such file"))
            continue
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that go round in a circle
            scan.add_unreadable(name, error)
            continue
        if not is_here:
            raise CsktError(f"{where} is a link that leads out of the list's folder; name the file itself")
        if stat.S_ISREG(state.st_mode):
            yield name, state
        else:
            scan.passed_over[FOLDERS if stat.S_ISDIR(state.st_mode) else SPECIAL] += 1


def _lines(path: Path) -> list[str]:
    try:
        if not path.is_file():  # reading a pipe would wait
            raise CsktError(f"{path}: no such list of paths; put it back, or name what to index: --images PATH")
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CsktError(f"{path}: cannot be read as a list of paths: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """Return the message of an error without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
