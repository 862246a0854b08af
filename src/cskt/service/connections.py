"""Connections with a deadline for what uvicorn waits for without a limit.

uvicorn closes a connection that is idle between two requests, and `routes.base` ends a request whose body is slow.
Without a limit are heads that never end, the rest of a body whose request has been refused, and answers that the client
does not take; `benchmarks/slow_clients.py` measures all of them. A reverse proxy has limits of its own for these.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, Literal, TypeAlias, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cskt.service.http_errors import REQUEST_ID, error_response, new_request_id, request_id
from cskt.service.middleware import SECURITY_HEADERS
from cskt.service.settings import ServiceSettings

CHECK_SECONDS = 0.5
Wait: TypeAlias = Literal["request", "head", "body", "rest", "answer"]
"""Next step of the client: send a request, its head, its body, the rest of a body that has been answered, or take an
answer."""


class Connection(H11Protocol):
    """uvicorn's connection, closed when its client keeps the service waiting too long.

    With more than `max_connections`, the one whose client the service has waited for longest is closed.
    """

    def __init__(self, settings: ServiceSettings, max_connections: int, **options: Any) -> None:
        super().__init__(**options)
        self._max_connections = max_connections
        self._stop_seconds = settings.stop_seconds
        self._limits: dict[Wait | None, float] = {
            "head": settings.head_seconds,
            "rest": settings.head_seconds,
            "answer": settings.answer_seconds,
        }
        self._wait: tuple[Wait | None, object] = (None, None)
        self._since = math.inf
        """Start of the wait; infinite while it is the service's turn."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Watch a new connection; close another one if there are too many."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # writing then pauses until the client has taken everything
        self._check()
        if len(self.connections) > self._max_connections:
            connections = cast(set[Connection], self.connections)
            for other in connections:
                other._update()
            min(connections, key=lambda other: other._since)._abort()  # if no other one, then this new one

    def send_400_response(self, msg: str) -> None:
        """Answer in the service's own form what is not HTTP, unless there is an answer already, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else h11 would raise
            request_id.set(new_request_id())
            answer = error_response(400, "bad_http", "this is not valid HTTP/1.1; the connection is closed")
            headers = {**SECURITY_HEADERS, REQUEST_ID: request_id.get(), "Connection": "close"}
            answer.headers.update(headers)
            head = h11.Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:  # the rest of its body will not come
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def shutdown(self) -> None:
        """Begin to stop; a client may delay this no longer than the service's own work may."""
        super().shutdown()
        self.loop.call_later(self._stop_seconds, self._abort_if_waiting)

    def _check(self) -> None:
        """Close the connection if its client is too slow; a byte now and then gives it no more time."""
        if self not in self.connections:  # a lost one; one that is closing may still wait for its last answer
            return
        self._update()
        if self.loop.time() > self._since + self._limits.get(self._wait[0], math.inf):
            self._abort()
        else:
            self.loop.call_later(CHECK_SECONDS, self._check)

    def _update(self) -> None:
        wait = self._awaited(), self.cycle
        if wait != self._wait:
            self._wait, self._since = wait, math.inf if wait[0] is None else self.loop.time()

    def _awaited(self) -> Wait | None:
        """Return the next step of the client; None while it is the service's turn."""
        if self.flow.write_paused:
            return "answer"
        if self.conn.their_state is h11.IDLE:
            return "head" if self.timeout_keep_alive_task is None else "request"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.conn.our_state is h11.DONE else "body"
        return None

    def _abort_if_waiting(self) -> None:
        if self._awaited() is not None:
            self._abort()

    def _abort(self) -> None:
        self._since = math.inf  # it stays in `connections` until the loop reports the loss
        self.transport.abort()
