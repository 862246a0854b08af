"""The files of a gallery's source, found without opening them: a folder with its subfolders, or a list of paths.

One entry that cannot be read never ends a scan. It is listed, and its crops count as unchecked: neither present nor
gone, so that `--prune` leaves them alone.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cskt.errors import CsktError
from cskt.gallery.indexing.ignoring import IgnorePatterns
from cskt.gallery.indexing.preparing import SUFFIXES

LIST_SUFFIXES = (".txt", ".lst")
"""Suffixes of a list: UTF-8, one path a line."""
READ_WITH = {
    ".heic": "pip install 'cskt[heic]'", ".heif": "pip install 'cskt[heic]'", ".avif": "pip install -U pillow",
}  # fmt: skip
"""Suffix of images that are read where something more is installed -> the command."""
HIDDEN, IGNORED, LINKS, FOLDERS, SPECIAL = "hidden", "ignored", "links", "folders", "special files"
NO_SUFFIX = "files without a suffix"
OTHER = "other files"
MAX_SUFFIXES = 20
"""Suffixes that are counted each by itself; files with further ones count as `OTHER`."""
LONGEST_SUFFIX = 12


@dataclass(frozen=True)
class ImageSource:
    """Source that a gallery is filled from."""

    folder: Path
    """The crops' names are paths within it."""
    list_file: Path | None = None
    """A list of paths below the folder, if not all of the folder counts."""
    ignore: tuple[str, ...] = ()
    """See `ignoring`."""

    def __post_init__(self) -> None:
        IgnorePatterns(self.ignore)  # refused before anything is loaded

    def scan(self, gallery: Path | None = None) -> Scan:
        """Find the files; none is opened.

        Args:
            gallery: folder of the gallery, which is no part of its own source where it lies inside it.

        Raises:
            CsktError: the folder or the list cannot be read, or a line of the list leads out of the folder.
        """
        scan = Scan()
        patterns = IgnorePatterns(self.ignore)
        if self.list_file is not None:
            files = listed(self.list_file, self.folder, scan, patterns)
        else:
            files = walk(self.folder, scan, patterns, own=gallery)
        scan.files = {name: (state.st_size, state.st_mtime_ns) for name, state in files}
        return scan


@dataclass
class Scan:
    """Contents of a source."""

    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name -> (bytes, nanoseconds since 1970 at which it was last changed)."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Kind of entries that are not indexed (a suffix, `hidden`, `links`, ...) -> how many."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of files of which not even the size can be read."""
    unreadable_folders: list[tuple[str, str]] = field(default_factory=list)
    """(path within the folder, reason)."""
    unchecked: set[str] = field(default_factory=set)
    """Files and folders of which nothing is known."""

    def is_unchecked(self, name: str) -> bool:
        """Return whether a crop's file, or a folder above it, could not be looked at."""
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
        is_odd = len(suffix) > LONGEST_SUFFIX or not kind.isprintable()
        if is_odd or (kind not in self.passed_over and num_suffixes >= MAX_SUFFIXES):
            kind = OTHER
        self.passed_over[kind] += 1


def is_list(path: Path) -> bool:
    """Return whether a path is that of a list, and not of a folder."""
    return path.suffix.lower() in LIST_SUFFIXES and not path.is_dir()


def walk(
    folder: Path, scan: Scan | None = None, ignore: IgnorePatterns | None = None, *, own: Path | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path relative to `folder` with `/`, state) of every image file below it, in order.

    Links are not followed, so that nothing outside the folder comes in, and no circle is walked. Names that begin with
    a dot are hidden.

    Args:
        folder: its subfolders are walked, too.
        scan: receives what is passed over, and what cannot be read.
        ignore: what is not walked.
        own: folder of the gallery, which is not walked.

    Raises:
        CsktError: `folder` itself cannot be read.
    """
    found = Scan() if scan is None else scan
    patterns = ignore or IgnorePatterns()
    own_name = _name_within(folder, own)
    pending = [""]
    while pending:
        place = pending.pop()
        try:
            with os.scandir(folder / place) as entries:
                children = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not place:
                _refuse_root(folder, error)
            found.unreadable_folders.append((place, reason_of(error)))
            found.unchecked.add(place)
            continue
        folders = []
        for entry in children:
            name = f"{place}/{entry.name}" if place else entry.name
            suffix = PurePosixPath(entry.name).suffix.lower()
            try:
                kind = _kind(entry, name, patterns)
                if kind == FOLDERS:
                    folders += [name] if name != own_name else []
                elif kind:
                    found.passed_over[kind] += 1
                elif suffix not in SUFFIXES:
                    found.pass_over_file(name, suffix)
                else:
                    yield name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # it has gone since the folder was listed
                continue
            except OSError as error:
                found.add_unreadable(name, error)
        pending += reversed(folders)


def _kind(entry: os.DirEntry[str], name: str, ignore: IgnorePatterns) -> str:
    """Return why an entry is no file to index, or `FOLDERS`; empty for a regular file."""
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


def _name_within(folder: Path, other: Path | None) -> str | None:
    """Return the path of another folder within a folder; None if it lies elsewhere."""
    if other is None or not other.resolve().is_relative_to(folder.resolve()):
        return None
    return other.resolve().relative_to(folder.resolve()).as_posix()


def _refuse_root(folder: Path, error: OSError) -> None:
    if isinstance(error, FileNotFoundError):
        raise CsktError(f"{folder}: no such folder of crops") from None
    raise CsktError(f"{folder}: {reason_of(error)}; make it readable, or move it away") from None


def listed(
    path: Path, folder: Path | None = None, scan: Scan | None = None, ignore: IgnorePatterns | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (name, state) of the files that a list names, one path a line.

    Args:
        path: the list.
        folder: names are relative to it; the list's own if empty.
        scan: receives what is passed over, and what cannot be read, such as a file that is missing.
        ignore: files that do not count.

    Raises:
        CsktError: the list cannot be read, or a line names something outside the folder, be it by a link; says which.
    """
    found = Scan() if scan is None else scan
    patterns = ignore or IgnorePatterns()
    folder = (folder or path.parent).resolve()
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
            found.passed_over[IGNORED] += 1
            continue
        try:
            state, is_here = place.stat(), place.resolve().is_relative_to(folder)
        except (FileNotFoundError, NotADirectoryError):
            found.unreadable.append((name, f"line {number} of {path.name}: no such file"))
            continue
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links that go round in a circle
            found.add_unreadable(name, error)
            continue
        if not is_here:
            raise CsktError(f"{where} is a link that leads out of the list's folder; name the file itself")
        if stat.S_ISREG(state.st_mode):
            yield name, state
        else:
            found.passed_over[FOLDERS if stat.S_ISDIR(state.st_mode) else SPECIAL] += 1


def _lines(path: Path) -> list[str]:
    try:
        if not path.is_file():  # a pipe would be waited for
            raise CsktError(f"{path}: no such list of paths; put it back, or name what to index: --images PATH")
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CsktError(f"{path}: cannot be read as a list of paths: {reason_of(error)}") from None


def reason_of(error: Exception) -> str:
    """Return what the system says of an error, without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
