"""Named keys of a service: a JSON file that holds the digest of each, so nobody who reads it can use one.

`cskt keys` writes the file. A running service reads it again whenever it has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from annotated_types import Len
from filelock import FileLock
from pydantic import AfterValidator, with_config

from cskt.errors import CsktError, MissingFileError, file_system_errors
from cskt.gallery.stores.base import check_sha256
from cskt.utils.files import write_atomically
from cskt.utils.json_files import JSON, parse_json, read_text

Scope: TypeAlias = Literal["read", "write"]
"""Rights of a key: to search, or also to add and delete crops."""
TOKEN_NAME = "token"
"""Name of the key of `--token-file` in the audit log; no other key has it."""
FORMAT_VERSION = 1
MAX_KEYS = 1000
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
REMEDY = "to make one: cskt keys FILE --add NAME"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

log = logging.getLogger(__name__)


def check_key_name(name: str) -> str:
    """Return the name of a key unchanged."""
    if not _NAME.fullmatch(name):
        raise CsktError("must be 1 to 64 letters, digits, '.', '_' and '-', and begin with a letter or digit")
    if name == TOKEN_NAME:
        raise CsktError(f"must not be '{TOKEN_NAME}', which the audit log calls the key of --token-file")
    return name


@with_config(JSON)
@dataclass(frozen=True)
class Key:
    """A key as the service knows it; the key itself is not stored."""

    name: Annotated[str, AfterValidator(check_key_name)]
    scope: Scope
    sha256: Annotated[str, AfterValidator(check_sha256)]
    """Digest of the key. A key is 32 random bytes, so nobody can find one with this digest."""
    created: Annotated[str, Len(0, 64)] = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def _check_different(keys: tuple[Key, ...]) -> tuple[Key, ...]:
    for name in ("name", "sha256"):
        if len({getattr(key, name) for key in keys}) < len(keys):
            raise CsktError(f"must hold keys with different values of '{name}'")
    return keys


@with_config(JSON)
@dataclass(frozen=True)
class KeyList:
    """Content of a key file."""

    keys: Annotated[tuple[Key, ...], Len(0, MAX_KEYS), AfterValidator(_check_different)] = ()


def key_digest(secret: str) -> str:
    """Return the digest by which a key is stored and compared."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class KeyFile:
    """The keys of a file as it is now: its text is read at each call, and parsed when it has changed.

    Raises:
        CsktError: the file is missing, cannot be read or is no key file; also from `read`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text: str | None = None
        self._keys: tuple[Key, ...] = ()
        self.read()

    def read(self) -> tuple[Key, ...]:
        """Return the keys."""
        text = read_text(self.path, remedy=REMEDY)
        if text != self._text:
            version = ("format_version", FORMAT_VERSION)
            self._keys = parse_json(text, KeyList, where=str(self.path), remedy=REMEDY, version=version).keys
            self._text = text
        return self._keys


def warn_of_other_writers(path: Path) -> None:
    """Log a warning if other users of the machine can change a key file, or put another in its place."""
    if os.name == "nt":  # which has no such bits: there every file seems to be writable by all
        return
    with file_system_errors(path):
        for place in (path, path.absolute().parent):
            mode = place.stat().st_mode
            is_sticky_folder = place != path and mode & stat.S_ISVTX
            if mode & WRITABLE_BY_OTHERS and not is_sticky_folder:
                log.warning("%s can be changed by other users, who can add keys; type: chmod go-w %s", place, place)


def add_key(path: Path, name: str, scope: Scope) -> str:
    """Add a key to a file, which is made if it is missing, and return the key: the only time that it is known.

    Raises:
        CsktError: an invalid name, one that the file has already, or a file that cannot be read or written.
    """
    try:
        check_key_name(name)
    except CsktError as error:
        raise CsktError(f"the name of a key {error}") from None
    secret = secrets.token_urlsafe(32)

    def with_new(keys: tuple[Key, ...]) -> list[Key]:
        if any(key.name == name for key in keys):
            raise CsktError(f"{path}: has a key '{name}' already; revoke it first, or choose another name")
        if len(keys) >= MAX_KEYS:
            raise CsktError(f"{path}: has {MAX_KEYS:,} keys, and cannot hold more; revoke some")
        return [*keys, Key(name, scope, key_digest(secret))]

    _change(path, with_new, make=True)
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Remove a key from a file.

    Raises:
        CsktError: the file has no such key, or cannot be read or written.
    """

    def without(keys: tuple[Key, ...]) -> list[Key]:
        remaining = [key for key in keys if key.name != name]
        if len(remaining) == len(keys):
            raise CsktError(f"{path}: has no key {name[:80]!r}; 'cskt keys {path}' lists the names")
        return remaining

    _change(path, without)


def _change(path: Path, change: Callable[[tuple[Key, ...]], Sequence[Key]], *, make: bool = False) -> None:
    """Replace the keys of a file; of two programs that change it at once, the second waits."""
    if not make:
        KeyFile(path)  # before the lock, which would be left beside a file that does not exist
    with file_system_errors(path), FileLock(path.with_name(f".{path.name}.lock")):
        try:
            keys = KeyFile(path).read()
        except MissingFileError:
            if not make:
                raise
            keys = ()
        content = {"format_version": FORMAT_VERSION, "keys": [asdict(key) for key in change(keys)]}
        text = json.dumps(content, indent=1) + "\n"
        # The service may read the file as a user of another group: its rights must not depend on who adds a key.
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), keep_permissions=True)
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~WRITABLE_BY_OTHERS)
