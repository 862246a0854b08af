"""Under which names a browser may reach the service, and from whose pages it may be asked.

A page on the internet can make a browser ask a service on this machine: by pointing a name of its own at 127.0.0.1
(DNS rebinding), which the Host header shows, or by posting across sites, which the Origin header shows.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from cskt.service.errors import ServiceError
from cskt.service.settings import ServiceSettings, is_loopback

EVERY_ADDRESS = ("0.0.0.0", "::")


def check_host(hosts: list[str], settings: ServiceSettings) -> None:
    """Refuse a request that was sent to a name that is not ours.

    Args:
        hosts: every Host header of the request, `name[:port]`.
        settings: of the service.

    Raises:
        ServiceError: 403.
    """
    name = _name(hosts[0]) if len(hosts) == 1 else ""
    if not name or not (is_loopback(name) or name in _own_names(settings) or _is_own_address(name, settings)):
        message = f"the service does not answer under '{name[:100]}'; start it with --allow-host and that name"
        raise ServiceError(403, "wrong_host", message)


def check_origin(origin: str | None, host: str) -> None:
    """Refuse a request that changes or costs something and comes from a page that is not ours.

    Args:
        origin: the Origin header, which browsers send and other programs leave out.
        host: the Host header.

    Raises:
        ServiceError: 403.
    """
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        raise ServiceError(403, "wrong_origin", "a page of another site may not ask; open the page of this service")


def _own_names(settings: ServiceSettings) -> set[str]:
    return {name.lower().strip("[]") for name in (settings.host, *settings.allow_hosts)}


def _is_own_address(name: str, settings: ServiceSettings) -> bool:
    """Rebinding takes a name; where every address of the machine is served, a number is an address of ours."""
    if settings.host not in EVERY_ADDRESS:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name(host: str) -> str:
    """`name:8000` and `[::1]:8000` without the port; nothing where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.netloc == host and "@" not in host else ""
