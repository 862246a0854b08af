"""The socket of the service, and uvicorn on it until a signal stops it."""

from __future__ import annotations

import errno
import functools
import logging
import os
import socket
import threading
from concurrent.futures import Future
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from cskt.errors import CsktError
from cskt.service.connections import Connection
from cskt.service.monitoring import private_logging
from cskt.service.routes.base import Service
from cskt.service.settings import ServiceSettings

MAX_QUEUED = 2048
"""Connections that the system queues while the service is busy."""
LAST_SECONDS = 5
"""After `stop_seconds`: for the answers to requests that have been cancelled, and the end of idle threads."""

log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; the system chooses the port if it is 0."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise CsktError(f"--host {host}: no such address; 127.0.0.1 is this machine alone") from None
    try:
        is_dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=MAX_QUEUED, dualstack_ipv6=is_dual)
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: f"--port {port} is in use; choose another, or stop the program that has it",
            errno.EACCES: f"--port {port} needs a privilege; choose one above 1023",
            errno.EADDRNOTAVAIL: f"--host {host} is no address of this machine; 127.0.0.1 always is",
        }
        raise CsktError(remedies.get(error.errno or 0, f"--host {host} --port {port}: {error.strerror}")) from None


def address_of(listener: socket.socket) -> str:
    """Return the address for a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(app: FastAPI, listener: socket.socket, settings: ServiceSettings) -> None:
    """Answer requests until SIGINT or SIGTERM, without client text in the log.

    Running requests are finished first, for `settings.stop_seconds`. If a thread of the service works even longer, the
    process ends a few seconds later all the same, with exit code 0: what was acknowledged is on the disk. A second
    signal ends it at once. The listener is closed at the end.

    Raises:
        CsktError: the gallery's model or vectors cannot be loaded.
    """
    max_connections = _max_connections(settings.connections)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="error",  # any client can cause a warning as often as it likes
        access_log=False,  # the audit log has the requests
        proxy_headers=False,  # `create_app` reads them from the proxies in the settings alone
        server_header=False,
        ws="none",
        http=cast(type[Connection], functools.partial(Connection, settings, max_connections)),
        lifespan="on",
        backlog=max(1, max_connections // 8),  # up to four times so many are open before one is closed
        timeout_keep_alive=settings.idle_seconds,
        timeout_graceful_shutdown=settings.stop_seconds + 1,  # `Connection` has closed slow ones by then
    )
    server = _Server(config, settings.stop_seconds + LAST_SECONDS)
    service: Service = app.state.service

    def stop_if_broken(ready: Future[None]) -> None:
        if ready.exception() is not None:
            server.should_exit = True

    service.worker.ready.add_done_callback(stop_if_broken)
    with private_logging():
        server.run(sockets=[listener])
    if service.worker.finished:  # else the interpreter would wait for the threads
        server.deadline.cancel()
    if service.worker.ready.done():
        service.worker.ready.result()


def _max_connections(wanted: int) -> int:
    """Return a number of connections that leaves half of the file descriptors to the gallery."""
    if os.name == "nt":  # sockets are not counted with files
        return wanted
    import resource  # noqa: PLC0415  (not on Windows)

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or files // 2 >= wanted:
        return wanted
    message = (
        "connections are limited to %d instead of %d: the system allows %d open files; raise that with 'ulimit -n'"
    )
    log.warning(message, files // 2, wanted, files)
    return files // 2


class _Server(uvicorn.Server):
    """uvicorn's server, which ends within a time and, at a second signal, at once."""

    def __init__(self, config: uvicorn.Config, seconds: float) -> None:
        super().__init__(config)
        self.deadline = threading.Timer(seconds, _end_late, (seconds,))
        self.deadline.daemon = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal; uvicorn's method would also raise it again at the end, as if the program had failed."""
        if self.should_exit:
            os._exit(0)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start; the system may queue more connections than asyncio accepts at once, for which it has one setting."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(MAX_QUEUED)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, with a deadline for threads that do not return."""
        self.deadline.start()
        await super().shutdown(sockets)


def _end_late(seconds: float) -> None:
    """End this process with exit code 0, without waiting for any of its threads."""
    line = "the service has not stopped within %g s; its process ends now"
    # In a thread of its own: the reader of stderr may have stopped reading.
    warning = threading.Thread(target=log.warning, args=(line, seconds), daemon=True)
    warning.start()
    warning.join(1.0)
    os._exit(0)
