"""Under which names a browser may reach the service, and from whose pages it may be asked.

A page on the internet can make a browser ask a service on this machine: by pointing a name of its own at 127.0.0.1
(DNS rebinding), which the Host header shows, or by posting across sites, which the Origin header shows.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from cskt.service.errors import ServiceError
from cskt.service.settings import ServiceSettings, is_loopback

EVERY_ADDRESS = ("0.0.0.0", "::")
FORWARDED = ("x-forwarded-host", "forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "via")
"""Headers that proxies add. They are not believed; they only choose the words of a refusal."""
PASS_HOST = "let it pass the browser's Host on (nginx: proxy_set_header Host $host; Apache: ProxyPreserveHost On)"
LONGEST_SHOWN = 60
"""Characters of a name in a refusal."""
DEFAULT_PORTS = {"http": 80, "https": 443}


def check_host(headers: Headers, settings: ServiceSettings) -> None:
    """Refuse a request that was sent to a name that is not ours.

    Args:
        headers: of the request; it has one Host header, `name[:port]`.
        settings: of the service.

    Raises:
        ServiceError: 403.
    """
    hosts = headers.getlist("host")
    name = _name(hosts[0]) if len(hosts) == 1 else ""
    if name and (is_loopback(name) or name in _own_names(settings) or _is_own_address(name, settings)):
        return
    message = f"the service does not answer under '{name[:LONGEST_SHOWN]}'; start it with --allow-host and that name"
    if any(header in headers for header in FORWARDED):
        asked = _forwarded_host(headers)
        shown = f"'{asked[:LONGEST_SHOWN]}', the name that the browser asked for" if asked else "the browser's name"
        message = (
            f"the service does not answer under '{name[:LONGEST_SHOWN]}', which a proxy has sent as Host; {PASS_HOST},"
            f" and start the service with --allow-host and {shown}"
        )
    raise ServiceError(403, "wrong_host", message)


def check_origin(origin: str | None, host: str, settings: ServiceSettings) -> None:
    """Refuse a request that changes or costs something and comes from a page that is not ours.

    Args:
        origin: the Origin header, which browsers send and other programs leave out.
        host: the Host header.
        settings: of the service.

    Raises:
        ServiceError: 403.
    """
    if origin is None:
        return
    scheme, _, place = origin.lower().partition("://")
    if _with_port(place, scheme) == _with_port(host.lower(), scheme):
        return
    message = "a page of another site may not ask; open the page of this service"
    if name := _name(place):  # said to everybody, for a proxy that rewrites Host may add no header that tells of it
        message += (
            f". If this is its page behind a proxy: the proxy has sent Host: {host[:LONGEST_SHOWN]} instead of"
            f" {place[:LONGEST_SHOWN]}; {PASS_HOST}"
        )
        if not (is_loopback(name) or name in _own_names(settings)):
            message += f", and start the service with --allow-host {name[:LONGEST_SHOWN]}"
    raise ServiceError(403, "wrong_origin", message)


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


def _forwarded_host(headers: Headers) -> str:
    """The name that a browser asked a proxy for, as the proxy says; empty where it says nothing."""
    if found := headers.get("x-forwarded-host", "").partition(",")[0].strip():
        return found
    pairs = re.split("[;,]", headers.get("forwarded", ""))
    values = {name.strip().lower(): value.strip(' "') for name, _, value in (pair.partition("=") for pair in pairs)}
    return values.get("host", "")


def _with_port(place: str, scheme: str) -> tuple[str, int | None] | None:
    """Name and port of `name[:port]`; a port that is left out is that of the scheme. None where it is malformed."""
    name = _name(place)
    port = urlsplit(f"//{place}").port if name else None
    return (name, DEFAULT_PORTS.get(scheme) if port is None else port) if name else None


def _name(host: str) -> str:
    """`name:8000` and `[::1]:8000` without the port; nothing where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.netloc == host and "@" not in host else ""
