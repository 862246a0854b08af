"""Connection to a Ray cluster: a running one, or one on this machine that accepts no other client."""

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
from cskt.utils.messages import require

CONNECT_SECONDS = 5.0
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""First bytes of a client of HTTP/2 (RFC 9113, section 3.4), the protocol of Ray's servers, with a settings frame."""
SETTINGS = 4
"""Type of a settings frame, in its fourth byte; a server answers with one."""

PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: listen on 127.0.0.1 only
    "RAY_AUTH_MODE": "token",  # other users of the machine cannot run code in it; an older Ray knows no tokens
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
"""Environment of a cluster that is started here; Ray reads it when it is imported."""
QUIET = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # every line of its log, which goes to stdout
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns that this will become the default
}
"""Environment that silences Ray's output and its usage statistics; values that the user has set take precedence."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine, for the `with` block.

    Enter it before Ray is imported, and before a gallery is opened: the gallery's store does not survive processes
    that are started after it. A cluster that was started here ends with this process, however that ends; the last of
    its processes some seconds later.

    Args:
        address: HOST:PORT of a running cluster, `auto` for the one of this machine; None starts one.
    """
    require("ray", "ray")
    if address is not None:
        _check_address(address)
    with _environment(QUIET if address is not None else QUIET | PRIVATE), _unchanged_sigterm():
        import ray  # noqa: PLC0415  (an extra, slow to import, and reads the environment)

        logging.getLogger("ray").setLevel(logging.CRITICAL)
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address is None:
            quiet["include_dashboard"] = False
        try:
            ray.init(address=address or "local", **quiet)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            where, remedy = "on this machine", ""
            if address is not None:
                where, remedy = f"at {address}", "; is it up, and its token here (RAY_AUTH_MODE=token)?"
            raise CsktError(f"no Ray cluster {where}: {first_line(error)}{remedy}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the `with` block; those of `QUIET` that the user has set stay."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= {name: value for name, value in values.items() if name in PRIVATE or before[name] is None}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _unchanged_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM; Ray's would print a page of addresses."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_address(address: str) -> None:
    """Check that a server of HTTP/2 listens; Ray itself tries for minutes, and then ends the process."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or len(port) > 5 or int(port) > 65535 or "/" in host:
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
    """Return the first line of Ray's message, which often has pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def python_error(error: BaseException) -> str:
    """Return the Python error at the end of Ray's message about a worker that did not start; empty if there is none."""
    lines = re.findall(r"^\s*(?:[a-z_]\w*\.)*([A-Z]\w*(?:Error|Exception): .+)$", str(error), flags=re.MULTILINE)
    return next((line for line in reversed(lines) if not line.startswith(("Ray", "Actor"))), "")
