"""The token: read from a file, compared in constant time, exchanged by a browser for a session that may only read."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from cskt.errors import CsktError
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
    """The token of a service, if it has one, and the sessions of browsers that have sent it."""

    def __init__(self, token: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._sessions: dict[str, float] = {}

    def is_right(self, token: str) -> bool:
        """Return whether this is the token, in a time that does not depend on how much of it is right."""
        return self._token is not None and hmac.compare_digest(_digest(token), _digest(self._token))

    def new_session(self) -> str:
        """Return the random name of a new session that may read."""
        now = self._clock()
        self._sessions = {name: end for name, end in self._sessions.items() if end > now}
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = secrets.token_urlsafe(32)
        # Only its digest is stored, so that the timing of a look-up reveals nothing.
        self._sessions[_digest(session)] = now + SESSION_SECONDS
        return session

    def is_session(self, session: str) -> bool:
        """Return whether this session was opened here and has not ended."""
        return self._sessions.get(_digest(session), 0.0) > self._clock()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
