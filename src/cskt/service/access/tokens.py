"""Keys that clients send, compared in constant time, and the sessions for which browsers exchange them.

A session may only read, and ends when its key is revoked.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from cskt.errors import CsktError
from cskt.service.access.keys import TOKEN_NAME, Key, KeyFile, key_digest, warn_of_other_writers
from cskt.service.http_errors import ServiceError
from cskt.service.settings import MIN_TOKEN_CHARACTERS

SESSION_SECONDS = 12 * 3600
"""Time that a browser stays signed in."""
MAX_SESSIONS = 1000
"""Beyond that, the oldest session ends."""
READABLE_BY_OTHERS = 0o077

log = logging.getLogger(__name__)


def read_token(path: Path) -> str:
    """Read the token from a file: its text without the space around it."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CsktError(f"--token-file {path}: {reason}; name a file with a secret of your choice") from None
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise CsktError(
            f"--token-file {path}: the token has {len(token)} characters; give it at least {MIN_TOKEN_CHARACTERS}, for"
            " example by: openssl rand -hex 32"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CsktError(f"--token-file {path}: write the token with ASCII letters, digits and signs, without spaces")
    # Windows has no such bits: there every file seems to be readable by all.
    if os.name != "nt" and path.stat().st_mode & READABLE_BY_OTHERS:
        log.warning("%s can be read by other users of this machine; type: chmod 600 %s", path, path)
    return token


class Tokens:
    """The keys of a service, and the sessions of browsers that have sent one.

    Args:
        token: a key with full rights, under the name `token`.
        key_file: further keys, as the file holds them at each request.
        clock: seconds, rising.
    """

    def __init__(
        self, token: str | None, key_file: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._token = () if token is None else (Key(TOKEN_NAME, "write", key_digest(token)),)
        self._file = None if key_file is None else KeyFile(key_file)
        if key_file is not None:
            warn_of_other_writers(key_file)
        self._clock = clock
        self._sessions: dict[str, tuple[Key, float]] = {}

    def valid_keys(self) -> tuple[Key, ...]:
        """Return the keys that are valid now.

        Raises:
            ServiceError: the key file cannot be read; nobody can use a key until it is repaired.
        """
        if self._file is None:
            return self._token
        try:
            return (*self._token, *self._file.read())
        except CsktError as error:
            log.error("no key is accepted: %s", error)
            message = "the key file cannot be read; the operator must repair it"
            raise ServiceError(503, "no_keys", message) from None

    def find(self, secret: str) -> Key | None:
        """Return the key that a client has sent, in a time that does not depend on how much of it is right."""
        sent = key_digest(secret)
        found = [key for key in self.valid_keys() if hmac.compare_digest(sent, key.sha256)]
        return found[0] if found else None

    def new_session(self, key: Key) -> str:
        """Return the random name of a new session that may read as long as its key is valid."""
        now = self._clock()
        self._sessions = {name: entry for name, entry in self._sessions.items() if entry[1] > now}
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = secrets.token_urlsafe(32)
        # Only its digest is stored, so that the timing of a look-up reveals nothing.
        self._sessions[key_digest(session)] = key, now + SESSION_SECONDS
        return session

    def key_of_session(self, session: str) -> Key | None:
        """Return the key of a session that was opened here; None if it has ended, or its key was revoked."""
        key, end = self._sessions.get(key_digest(session), (None, 0.0))
        return key if key is not None and end > self._clock() and key in self.valid_keys() else None
