"""Host names of the service, and origins of the pages that may send it requests.

A page on the internet can make a browser send requests to a service on this machine: by pointing a name of its own at
127.0.0.1 (DNS rebinding), which the Host header shows, or by posting across sites, which the Origin header shows.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from cskt.service.http_errors import ServiceError
from cskt.service.settings import ServiceSettings, ip_address, is_loopback

EVERY_ADDRESS = ("0.0.0.0", "::")
FORWARDED = ("x-forwarded-host", "forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "via")
"""Headers that proxies add. They decide nothing; they only choose the words of a refusal."""
PASS_HOST = "let it pass the browser's Host on (nginx: proxy_set_header Host $host; Apache: ProxyPreserveHost On)"
MAX_SHOWN = 60
"""Characters of a name in a refusal."""
DEFAULT_PORTS = {"http": 80, "https": 443}


def check_host(headers: Headers, settings: ServiceSettings) -> None:
    """Refuse a request that was sent to a name that is not the service's, in one Host header, `name[:port]`."""
    hosts = headers.getlist("host")
    name, _ = _name_and_port(hosts[0]) if len(hosts) == 1 else ("", None)
    # Rebinding needs a name; where every address of the machine is served, a number is one of its addresses.
    if name and (_is_own_name(name, settings) or (settings.host in EVERY_ADDRESS and ip_address(name))):
        return
    refused = f"the service does not answer under '{name[:MAX_SHOWN]}'"
    message = f"{refused}; start it with --allow-host and that name"
    if any(header in headers for header in FORWARDED):
        wanted = _forwarded_host(headers)
        shown = f"'{wanted[:MAX_SHOWN]}', the name that the browser asked for" if wanted else "the browser's name"
        message = (
            f"{refused}, which a proxy has sent as Host; {PASS_HOST}, and start the service with --allow-host and"
            f" {shown}"
        )
    raise ServiceError(403, "wrong_host", message)


def check_origin(origin: str | None, host: str, settings: ServiceSettings) -> None:
    """Refuse a request that changes or costs something and comes from the page of another site.

    Browsers send the Origin header, other programs leave it out.
    """
    if origin is None:
        return
    scheme, _, place = origin.lower().partition("://")
    default_port = DEFAULT_PORTS.get(scheme)
    name, port = _name_and_port(place, default_port)
    if (name, port) == _name_and_port(host.lower(), default_port):
        return
    message = "a page of another site may not ask; open the page of this service"
    if name:  # for every such request: a proxy that rewrites Host may add no header that shows it
        message += (
            f". If this is its page behind a proxy: the proxy has sent Host: {host[:MAX_SHOWN]} instead of"
            f" {place[:MAX_SHOWN]}; {PASS_HOST}"
        )
        if not _is_own_name(name, settings):
            message += f", and start the service with --allow-host {name[:MAX_SHOWN]}"
    raise ServiceError(403, "wrong_origin", message)


def _is_own_name(name: str, settings: ServiceSettings) -> bool:
    own = {own.lower().strip("[]") for own in (settings.host, *settings.allow_hosts)}
    return is_loopback(name) or name in own


def _forwarded_host(headers: Headers) -> str:
    """Return the name that a browser asked a proxy for, as the proxy reports it, or an empty string."""
    if found := headers.get("x-forwarded-host", "").partition(",")[0].strip():
        return found
    pairs = re.split("[;,]", headers.get("forwarded", ""))
    values = {name.strip().lower(): value.strip(' "') for name, _, value in (pair.partition("=") for pair in pairs)}
    return values.get("host", "")


def _name_and_port(host: str, default_port: int | None = None) -> tuple[str, int | None]:
    """Return the parts of `name:8000` or `[::1]:8000`; an empty name if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port
    except ValueError:
        return "", None
    if parts.netloc != host or "@" in host:
        return "", None
    return parts.hostname or "", default_port if port is None else port
