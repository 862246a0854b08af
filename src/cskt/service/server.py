"""A socket, and uvicorn on it until someone stops it."""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from cskt.errors import CsktError
from cskt.service.connections import Connection
from cskt.service.dependencies import Service
from cskt.service.descriptors import room_for
from cskt.service.private_log import private_logging
from cskt.service.settings import ServiceSettings

MOST_UNACCEPTED = 2048
"""Connections that the system holds while the service is busy."""
LAST_SECONDS = 5
"""After `stop_seconds`: for the answers to requests that have been given up, and the end of idle threads."""

log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; port 0 lets the system choose one.

    Raises:
        CsktError: the address is not ours, or another program has the port.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise CsktError(f"--host {host}: no such address; 127.0.0.1 is this machine alone") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name != "nt":  # there it would let two programs share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(MOST_UNACCEPTED)
    except OSError as error:
        listener.close()
        remedies = {
            errno.EADDRINUSE: f"--port {port} is in use; choose another, or stop the program that has it",
            errno.EACCES: f"--port {port} needs a privilege; choose one above 1023",
            errno.EADDRNOTAVAIL: f"--host {host} is no address of this machine; 127.0.0.1 always is",
        }
        raise CsktError(remedies.get(error.errno or 0, f"--host {host} --port {port}: {error.strerror}")) from None
    return listener


def address_of(listener: socket.socket) -> str:
    """What a browser is to open."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(app: FastAPI, listener: socket.socket, settings: ServiceSettings) -> None:
    """Answer requests until SIGINT or SIGTERM, with the words of clients kept out of the log.

    Requests that have begun are finished first, for `settings.stop_seconds`. A process in which a thread of the service
    still works then ends all the same, a few seconds later and with exit code 0: what was acknowledged is on the disk,
    and nothing else may be relied on. A second signal ends it at once.

    Args:
        app: of `create_app`.
        listener: of `listen`; closed at the end.
        settings: those of the app.

    Raises:
        CsktError: the gallery's model or vectors cannot be loaded.
    """
    room = room_for(settings.connections)
    held = dataclasses.replace(settings, connections=room.connections)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="error",  # its warnings are lines that any client can have written as often as it likes
        access_log=False,  # who asked is in the audit log
        proxy_headers=False,  # or anybody here could write any address into it
        server_header=False,
        ws="none",
        http=cast(type[Connection], functools.partial(Connection, held)),
        lifespan="on",
        backlog=room.at_once,
        timeout_keep_alive=settings.idle_seconds,
        timeout_graceful_shutdown=settings.stop_seconds + 1,  # by then `Connection` has dropped those waited for
    )
    deadline = _Deadline(settings.stop_seconds + LAST_SECONDS)
    server = _Server(config, deadline)
    service: Service = app.state.service

    def give_up(ready: Future[None]) -> None:
        if ready.exception() is not None:
            server.should_exit = True

    service.engine.ready.add_done_callback(give_up)
    with private_logging():
        server.run(sockets=[listener])
    if service.engine.finished:  # else the interpreter may wait for threads that the service has started indirectly
        deadline.cancel()
    if service.engine.ready.done():
        service.engine.ready.result()


class _Deadline:
    """Ends the process at a time, whatever its threads do.

    Args:
        seconds: from `begin` to the end.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun: SimpleQueue[bool] = SimpleQueue()  # can be used in a signal handler, unlike an Event
        self._cancelled = threading.Event()
        threading.Thread(target=self._wait, name="deadline", daemon=True).start()

    def begin(self) -> None:
        """Start to count."""
        self._begun.put(True)

    def cancel(self) -> None:
        """Let the process live on."""
        self._cancelled.set()
        self._begun.put(False)

    def _wait(self) -> None:
        if not self._begun.get() or self._cancelled.wait(self._seconds):
            return
        line = "the service has not stopped within %g s; its process ends now"
        # In a thread of its own: whoever reads stderr may have stopped reading.
        told = threading.Thread(target=log.warning, args=(line, self._seconds), daemon=True)
        told.start()
        told.join(1.0)
        end_process()


def end_process() -> None:
    """End this process with exit code 0, without waiting for any of its threads."""
    os._exit(0)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, deadline: _Deadline) -> None:
        super().__init__(config)
        self._deadline = deadline
        self.is_stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """asyncio has one `backlog` for what it accepts in a turn and for what the system holds, which may be more."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(MOST_UNACCEPTED)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again at the end, and so end the program as if by an accident."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self.is_stopping:
                end_process()
            self.is_stopping = self.should_exit = True
            self._deadline.begin()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
