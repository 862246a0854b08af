"""A connection to a Ray cluster: a running one, or one of this machine's own that nobody else can speak to."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cskt.errors import CsktError
from cskt.utils.extras import require

CONNECT_SECONDS = 5.0
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""How a client greets a server of HTTP/2 (RFC 9113, section 3.4), which Ray's are; the end is a frame of settings."""
SETTINGS = 4
"""The kind of that frame, in its fourth byte; the server answers with one."""

ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: listen to 127.0.0.1 alone
    "RAY_AUTH_MODE": "token",  # nor may other users of the machine run code in it; an older Ray knows no tokens
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""Environment of a cluster of this machine's own; Ray reads it when it is imported."""
QUIET = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # every line of its news, which go to stdout
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns that it will become so
}
"""What keeps Ray from speaking, to us and to others; where the user has set one of these, that counts."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a Ray cluster, or a cluster of this machine that hears nobody else, for the `with` block.

    Enter it before Ray is imported, and before a gallery is opened: the gallery's store does not stand processes that
    are started after it. A cluster of one's own ends with this process, however it ends; the last of its helpers some
    seconds later.

    Args:
        address: HOST:PORT of a running cluster, `auto` for the one of this machine; none starts one here.

    Raises:
        CsktError: Ray is not installed, or there is no cluster at the address.
    """
    require("ray", "ray")
    if address is not None:
        _see_that_it_listens(address)
    with _environment(QUIET if address is not None else QUIET | ALONE), _same_sigterm():
        import ray  # noqa: PLC0415  (an extra, slow to import, and reads the environment)

        logging.getLogger("ray").setLevel(logging.CRITICAL)
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        try:
            if address is None:
                ray.init(address="local", include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            where, remedy = "of this machine's own", ""
            if address is not None:
                where, remedy = f"at {address}", "; is it up, and its token here (RAY_AUTH_MODE=token)?"
            raise CsktError(f"no Ray cluster {where}: {first_line(error)}{remedy}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables for the `with` block; of `QUIET`, the user's own count."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= {name: value for name, value in values.items() if name in ALONE or before[name] is None}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """SIGTERM does what it did: Ray would have it print a page of addresses."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _see_that_it_listens(address: str) -> None:
    """Somebody must, in Ray's language: Ray itself asks for minutes, and then ends the process."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535 or "/" in host:
        raise CsktError(f"--address {address}: expected auto, or HOST:PORT as `ray start` names it")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.sendall(HTTP2)
            answer = connection.recv(9, socket.MSG_WAITALL)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CsktError(f"no Ray cluster at {address}: {reason}; see `ray start`") from None
    if len(answer) < 9 or answer[3] != SETTINGS:
        raise CsktError(f"no Ray cluster at {address}: another kind of server is there; see `ray start`")


def first_line(error: BaseException) -> str:
    """Of what Ray says, which is often pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def python_error(error: BaseException) -> str:
    """The error of Python's at the end of what Ray says of a worker that did not start; nothing if there is none."""
    lines = re.findall(r"^\s*(?:[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception): .+)$", str(error), flags=re.MULTILINE)
    return next((line for line in reversed(lines) if not line.startswith(("Ray", "Actor"))), "")
