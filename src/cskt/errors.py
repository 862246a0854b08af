"""Errors that a user, a file or a request can cause.

Only these become one line and exit code 2 in the shell, or HTTP 4xx and 503 in the service. Every other exception is a
bug: the traceback is printed with exit code 70, or logged with HTTP 500. In Python, a wrong value, shape or empty
argument of the public functions is a CsktError; an argument of a wrong type is a TypeError, as everywhere in Python.

Example:
    >>> try:
    ...     encoder = cskt.load("clip-tinny")
    ... except cskt.errors.CsktError as error:
    ...     print(error)  # one line: file and field, what is wrong, how to correct it
    backbone 'clip-tinny': no such file; did you mean 'clip-tiny'?
"""

from __future__ import annotations

import errno
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHORT = reprlib.Repr()
"""Quotes a value from a file in a message, cut to a bounded length."""
SHORT.maxstring, SHORT.maxother, SHORT.maxlong, SHORT.maxlevel = 80, 80, 80, 2

MAX_PATH_CHARACTERS = 300
"""Characters of a path that a message shows."""
OTHER_PROGRAMS = "close other programs, or use --device cpu"
SMALLER_BATCHES = "use a smaller --batch-size or --precision bf16"
"""Remedies against full memory, for `out_of_memory_errors`."""
REMEDIES: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space on the disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "choose a place that you may read and write"),
    errno.EROFS: "choose a place that you may write",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files, 'ulimit -n'"),
}
"""Error number of the operating system -> what helps against it."""


class CsktError(ValueError):
    """Something that the caller can correct: an argument, a file, a setting of the machine. The message is one line."""


class FileSystemError(CsktError):
    """The operating system refused to read or write a file: a full disk, missing rights, a missing folder."""


class MissingFileError(FileSystemError):
    """A file does not exist."""


class OutOfMemoryError(CsktError):
    """The memory of the machine or of its accelerator does not suffice."""


class RefusedImageError(CsktError):
    """An intact image that is not read: too large, too slow to decode, or without a defined 8-bit picture."""


class MissingBackboneError(CsktError):
    """The backbone of a run is not where its config says, or is another file."""


class StoreError(CsktError):
    """The store of a gallery cannot do what it is asked now; its operator can correct that, a query cannot.

    Args:
        message: one line; may quote the query, a filter for example.
        without_query: whether the message quotes nothing of the query, so that it may be logged.
    """

    def __init__(self, message: str, *, without_query: bool = False) -> None:
        super().__init__(message)
        self.without_query = without_query


class NoAnswerError(StoreError):
    """The server of a store does not answer, or answers with an error; the next request would wait as long."""


class CorruptRowError(StoreError):
    """A row of a store has values that this program does not write.

    Args:
        place: the store's folder or address.
        row: name of the row, or what it holds in its place.
        reason: what is wrong with it.
    """

    def __init__(self, place: Path | str, row: object, reason: str) -> None:
        super().__init__(
            f"{place}: row {SHORT.repr(row)}: {reason}; the store is corrupt or was altered: remove such rows with"
            " 'cskt index GALLERY --prune', or index into a new folder"
        )
        self.row = row
        self.reason = reason


class UnknownCropError(CsktError):
    """The gallery has no crop of that name."""


class GalleryChangedError(CsktError):
    """Another process replaced the model of a gallery or deleted the gallery; it must be opened again."""


@contextmanager
def file_system_errors(place: Path | str | None = None) -> Iterator[None]:
    """Turn an OSError of the block into a FileSystemError that names the file and the remedy.

    A path that the file system cannot encode is refused in the same way. A closed pipe stays a BrokenPipeError: the
    output has no reader, and nothing can be corrected.

    Args:
        place: file or folder to name if the error names none.

    Raises:
        FileSystemError: the operating system refused a call.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os_error(error, place) from error
    except UnicodeEncodeError as error:
        text = error.object[:200]
        if error.encoding.lower().replace("-", "") == "utf8":
            raise FileSystemError(f"{text}: is not UTF-8; rename it, or write it as UTF-8") from error
        raise FileSystemError(
            f"{text}: cannot be written in the encoding of the locale, {error.encoding}; set LC_ALL=C.UTF-8"
        ) from error


def from_os_error(error: OSError, place: Path | str | None = None) -> FileSystemError:
    """Return the error that describes an OSError in one line, with the file that it names, else `place`."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else place
    kind = MissingFileError if isinstance(error, FileNotFoundError) else FileSystemError
    start = f"{str(name)[:MAX_PATH_CHARACTERS]}: " if name is not None else ""
    return kind(f"{start}{error.strerror or error}; {REMEDIES.get(error.errno, 'choose another place')}")


@contextmanager
def out_of_memory_errors(remedy: str = OTHER_PROGRAMS) -> Iterator[None]:
    """Turn full memory, of the machine or of its accelerator, into an OutOfMemoryError that names the remedy.

    Also a decorator. Where two are nested, the remedy of the outer one counts.

    Raises:
        OutOfMemoryError: Python, CUDA, MPS or torch's CPU allocator is out of memory.
    """
    try:
        yield
    except (OutOfMemoryError, MemoryError, RuntimeError) as error:
        # MPS and torch's CPU allocator have no exception class for it.
        texts = ("out of memory", "DefaultCPUAllocator")
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in texts):
            raise
        raise OutOfMemoryError(f"out of memory: {remedy}") from error


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turn a failure of the compiler behind `torch.compile` into a CsktError.

    Raises:
        CsktError: there is no C++ compiler, or it fails on the code that torch has generated.
    """
    try:
        yield
    except RuntimeError as error:
        # By name: to import the class takes seconds, and programs that compile nothing do not need it.
        kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
        if "torch._dynamo.exc.BackendCompilerFailed" not in kinds:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise CsktError(
            f"torch.compile failed: {reason}; install g++ or name another compiler by CXX, or leave out --compile"
        ) from error
