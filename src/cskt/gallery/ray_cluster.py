"""A connection to a Ray cluster: a running one, or one of this machine's own that nobody else can speak to."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cskt.extras import require

CONNECT_SECONDS = 5.0

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
    are started after it. A cluster of one's own ends with this process, however it ends.

    Args:
        address: HOST:PORT of a running cluster, `auto` for the one of this machine; none starts one here.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """
    require("ray", "ray")
    os.environ |= {name: os.environ.get(name, value) for name, value in QUIET.items()}
    if address is None:
        os.environ |= ALONE
    else:
        _see_that_it_listens(address)
    import ray  # noqa: PLC0415  (an extra, slow to import, and reads the environment)

    logging.getLogger("ray").setLevel(logging.CRITICAL)
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        where = "of this machine's own" if address is None else f"at {address}"
        raise ValueError(f"no Ray cluster {where}: {first_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _see_that_it_listens(address: str) -> None:
    """Somebody must: Ray asks for minutes, and then ends the process."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535 or "/" in host:
        raise ValueError(f"--address {address}: expected auto, or HOST:PORT as `ray start` names it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster at {address}: {error.strerror or error}; see `ray start`") from None


def first_line(error: BaseException) -> str:
    """Of what Ray says, which is often pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
