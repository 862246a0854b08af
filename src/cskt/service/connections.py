"""Connections that keep the service waiting: each has so long to send its request and to take its answer.

uvicorn closes a connection that is silent between two requests, and `bodies` ends a request whose body is slow. Left
are heads that never end, bodies that go on after their request has been refused, and answers that nobody takes: a few
hundred of these (a "slow loris") would leave no room for anybody else.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, TypeAlias

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cskt.service.errors import REQUEST_ID, error_response, new_request_id, request_id
from cskt.service.security_headers import SECURITY_HEADERS
from cskt.service.settings import ServiceSettings

Wait: TypeAlias = Literal["request", "head", "body", "rest", "answer"]
"""What the client is to do: ask again, end its head, its body, the rest of a body that has been answered already, or
take what was written."""


class Connection(H11Protocol):
    """uvicorn's connection, with deadlines; where too many are held, the one waited for longest gives way.

    Args:
        settings: of the service.
        uvicorns: as uvicorn calls a protocol.
    """

    def __init__(self, settings: ServiceSettings, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._most = settings.connections
        self._stop_seconds = settings.stop_seconds
        self._seconds: dict[Wait, float] = {
            "head": settings.head_seconds,
            "rest": settings.head_seconds,
            "answer": settings.answer_seconds,
        }  # uvicorn has its own time for "request", and `bodies` for "body"
        self._wait: Wait | None = None
        self._since = 0.0
        self._deadline: asyncio.TimerHandle | None = None
        self._untaken = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has come."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # `pause_writing` then says that the client has not taken everything
        self._look()
        if len(self.connections) > self._most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """The client sends."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer has been handed over to the system."""
        super().on_response_complete()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """What the client sends is no HTTP: it is told so, unless it has had its answer, and sent away.

        Args:
            msg: as uvicorn words it; our answers have one form.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else h11 raises: rubbish after a refusal
            request_id.set(new_request_id())
            answer = error_response(400, "bad_http", "this is no sound HTTP/1.1; the connection is closed")
            every = {**SECURITY_HEADERS, REQUEST_ID: request_id.get()}
            security = [(name.lower().encode(), value.encode()) for name, value in every.items()]
            headers = [*answer.raw_headers, *security, (b"connection", b"close")]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:  # the rest of its body will not come
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def pause_writing(self) -> None:
        """The client does not take what was written, or not as fast."""
        super().pause_writing()
        self._untaken = True
        self._look()

    def resume_writing(self) -> None:
        """The client has taken everything."""
        super().resume_writing()
        self._untaken = False
        self._look()

    def shutdown(self) -> None:
        """The service stops; the client may keep it waiting no longer than its own work may take."""
        super().shutdown()
        self.loop.call_later(self._stop_seconds, self._drop_if_awaited)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was sent away."""
        super().connection_lost(exc)
        self._wait_for(None)

    def _look(self) -> None:
        self._wait_for(self._awaited())

    def _awaited(self) -> Wait | None:
        """What the client is to do; none where the service is to move."""
        if self._untaken:
            return "answer"
        if self.conn.their_state is h11.IDLE:
            return "head" if self.timeout_keep_alive_task is None else "request"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if self.conn.our_state is h11.DONE else "body"
        return None

    def _wait_for(self, wait: Wait | None) -> None:
        """Begin to wait, unless for the same as before: a byte now and then gives no more time."""
        if wait == self._wait:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._wait, self._since, self._deadline = wait, self.loop.time(), None
        if wait in self._seconds:
            self._deadline = self.loop.call_later(self._seconds[wait], self._drop)

    def _make_room(self) -> None:
        waited_for = [other for other in self.connections if isinstance(other, Connection) and other._wait is not None]
        min(waited_for, key=lambda other: other._since)._drop()  # this connection, at the least, is among them

    def _drop_if_awaited(self) -> None:
        if self._wait is not None:
            self._drop()

    def _drop(self) -> None:
        self._wait_for(None)  # it is lost only when the loop comes to it; until then it is not to be dropped again
        self.transport.abort()
