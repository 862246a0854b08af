"""The audit log: client, key, time and content of each request, one JSON object per line; sentences, no pictures."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cskt.errors import CsktError, FileSystemError
from cskt.service.http_errors import ServiceError

log = logging.getLogger(__name__)


class AuditLog:
    """A file that is only appended to, readable by its owner alone.

    Args:
        path: the file; None for no log.
        only_file: refuse a link, a pipe or a device in its place: a stranger may have made the gallery.
    """

    def __init__(self, path: Path | None, *, only_file: bool = False) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: int | None = None
        self._torn = False
        """The last line is incomplete."""
        if path is None:
            return
        if only_file and (path.is_symlink() or (path.exists() and not path.is_file())):
            raise CsktError(f"the audit log {path} is no plain file; remove it, or choose another place: --audit-log")
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise FileSystemError(
                f"the audit log {path} cannot be written ({error.strerror}); choose another place with --audit-log, or"
                " --no-audit-log"
            ) from None
        self._torn = _is_torn(path)

    def record(self, client: str, action: str, **facts: Any) -> None:
        """Append one line, which is in the file when the call returns; a request that cannot be logged gets a 503."""
        if self._file is None:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "client": client, "action": action} | facts) + "\n"
        data = line.encode("ascii")  # JSON escapes all others, line breaks and control characters included
        with self._lock:
            if self._torn:  # the disk was full: the incomplete line stays a line of its own
                data = b"\n" + data
            reason = "no space for a whole line"
            try:
                num_written = os.write(self._file, data)
            except OSError as error:
                num_written, reason = 0, error.strerror or reason
            missing = len(data) - num_written
            self._torn = missing > 0 and (self._torn or num_written > 0)
        if missing:
            log.error("the audit log %s cannot be written: %s", self.path, reason)
            raise ServiceError(503, "no_audit_log", "the audit log cannot be written; the operator must repair it")

    @contextmanager
    def audited(
        self, client: str, action: str, facts: dict[str, Any], *, changes: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Write a line when a request has been answered, refused or cancelled; the block may add to its facts.

        A request that changes the gallery has a line before as well (`stage` asked, then ended), so that nothing is
        changed which is not in the log.
        """
        if changes:
            self.record(client, action, **facts, stage="asked")
            facts = facts | {"stage": "ended"}
        try:
            yield facts
        except BaseException as error:  # a request that is cancelled because the service stops, too
            self.record(client, action, **facts, error=_code_of(error))
            raise
        self.record(client, action, **facts)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _is_torn(path: Path) -> bool:
    """Return whether the last line of a log is incomplete; False for what cannot be read, such as a pipe."""
    if not path.is_file() or not path.stat().st_size or not os.access(path, os.R_OK):
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def _code_of(error: BaseException) -> str:
    if isinstance(error, ServiceError):
        return error.code
    return "internal" if isinstance(error, Exception) else "broken-off"
