"""The token: read from a file, compared in constant time, and held by a browser as a session that may only read."""

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
from cskt.service.settings import SHORTEST_TOKEN

SESSION_SECONDS = 12 * 3600
"""How long a browser stays signed in."""
MOST_SESSIONS = 1000
"""The oldest gives way."""
READABLE_BY_OTHERS = 0o077

log = logging.getLogger(__name__)


def read_token(path: Path) -> str:
    """The secret in a file: its text without the space around it.

    Raises:
        CsktError: there is none, it is too short to be safe, or it could not be sent in a header.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CsktError(f"--token-file {path}: {reason}; name a file with a secret of your choice") from None
    if len(token) < SHORTEST_TOKEN:
        raise CsktError(
            f"--token-file {path}: the token has {len(token)} characters; give it at least {SHORTEST_TOKEN}, for"
            " example by: openssl rand -hex 32"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CsktError(f"--token-file {path}: write the token with ASCII letters, digits and signs, without spaces")
    # Windows keeps no such bits: there every file seems to be readable by all.
    if os.name != "nt" and path.stat().st_mode & READABLE_BY_OTHERS:
        log.warning("%s can be read by other users of this machine; type: chmod 600 %s", path, path)
    return token


class Tokens:
    """Who has shown the token.

    Args:
        token: the secret; none where the service has none.
        clock: seconds that only rise.
    """

    def __init__(self, token: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._sessions: dict[str, float] = {}

    def is_right(self, token: str) -> bool:
        """Whether this is the secret; takes as long for a near miss as for a far one."""
        if self._token is None:
            return False
        return hmac.compare_digest(_digest(token), _digest(self._token))

    def new_session(self) -> str:
        """A name under which a browser that has shown the token may read on; says nothing about the token."""
        now = self._clock()
        self._sessions = {name: end for name, end in self._sessions.items() if end > now}
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = secrets.token_urlsafe(32)
        # Only its digest is kept: looking it up then tells nothing by its timing.
        self._sessions[_digest(session)] = now + SESSION_SECONDS
        return session

    def is_session(self, session: str) -> bool:
        """Whether this session was opened here and has not ended."""
        return self._sessions.get(_digest(session), 0.0) > self._clock()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
