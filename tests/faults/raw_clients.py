"""Clients that send HTTP byte by byte, valid or not."""

from __future__ import annotations

import json
import socket
import struct
from types import TracebackType
from typing import Any, NamedTuple

from service_process import TOKEN, Served

HOST = "Host: 127.0.0.1\r\n"
WRITES = f"Authorization: Bearer {TOKEN}\r\n"
JSON = "Content-Type: application/json\r\n"
AT_ONCE = struct.pack("ii", 1, 0)
"""Linger option of zero seconds: closing the socket sends a reset."""


def head(line: str, *headers: str) -> bytes:
    """A request's first line and headers, those that every request has included."""
    return f"{line} HTTP/1.1\r\n{HOST}{WRITES}{''.join(headers)}\r\n".encode()


def post(path: str, body: Any) -> bytes:
    """A whole request with JSON."""
    data = json.dumps(body).encode()
    return head(f"POST {path}", JSON, f"Content-Length: {len(data)}\r\n") + data


class BrokenOffError(AssertionError):
    """An answer is incomplete: an error, unless the service was killed."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Raw:
    """A connection.

    Args:
        service: to whom.
        receive_bytes: that the system takes for a client which does not; its own choice if empty.
    """

    def __init__(self, service: Served, *, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(300)
        try:
            self.socket.connect((service.host, service.port))
        except BaseException:
            self.socket.close()
            raise
        self._stream = self.socket.makefile("rb")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """Send, and return False if the other side has closed."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def answer(self) -> Answer:
        """Return the next complete answer; all of the service have a length."""
        line = self._stream.readline()
        if not line:
            raise ConnectionError("the connection was closed instead of an answer")
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (field := self._stream.readline().decode().strip()) != "":
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        body = self._stream.read(int(headers["content-length"]))
        if len(body) < int(headers["content-length"]):
            raise BrokenOffError("the answer was broken off")
        return Answer(int(line.split()[1]), headers, body)

    def rest(self) -> bytes:
        """Everything until the other side closes."""
        found = b""
        try:
            while data := self._stream.read1(65536):
                found += data
        except ConnectionResetError:  # it closed with bytes of ours unread
            pass
        return found

    def is_closed(self) -> bool:
        """Return whether the other side has closed; earlier data is discarded."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(65536):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        finally:
            self.socket.settimeout(300)
        return True

    def reset(self) -> None:
        """Disconnect with a reset, as a client does whose machine has lost its network."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self.__exit__(None, None, None)
