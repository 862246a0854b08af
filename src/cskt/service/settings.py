"""Settings of the service: address, access, and limits of requests and connections."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path
from typing import Annotated

from annotated_types import Le
from pydantic import AfterValidator, ConfigDict, model_validator

from cskt.config.types import STRICT, NonNegative, Positive, PositiveReal
from cskt.errors import CsktError
from cskt.gallery.conditions import MAX_FILTER_CHARACTERS
from cskt.gallery.options import MAX_RESULTS
from cskt.utils.checked import checked_dataclass

MIN_TOKEN_CHARACTERS = 16
"""Characters; shorter ones can be guessed."""
# Without inputs: a message about the settings must not show the token.
QUIET = ConfigDict(**STRICT, hide_input_in_errors=True)


def _check_network(text: str) -> str:
    """Return an address or a network unchanged."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise CsktError("must be an address or a network, such as 127.0.0.1 or 172.16.0.0/12") from None
    return text


@checked_dataclass(QUIET)
class ServiceSettings:
    """Address, access and limits of the service."""

    host: str = "127.0.0.1"
    """Address or name to listen on; any but this machine's own (127.0.0.1, ::1, localhost) needs keys."""
    port: Annotated[NonNegative, Le(65535)] = 8000
    """Port to listen on; 0 lets the system choose."""
    allow_hosts: tuple[str, ...] = ()
    """Further host names of the service, through a proxy for example; they need keys too."""
    token: str | None = dataclasses.field(default=None, repr=False)
    """A key with full rights."""
    key_file: Path | None = None
    """Named keys with a scope, which `cskt keys` writes; read again whenever it changes."""
    require_token: bool = False
    """Let nobody read without a key on this machine either."""
    proxies: tuple[Annotated[str, AfterValidator(_check_network)], ...] = ()
    """Addresses or networks (`172.16.0.0/12`) of reverse proxies. Their X-Forwarded-For states the client's address;
    from everybody else it is ignored."""
    keep_audit_log: bool = True
    """Log client, time and content of each request."""
    audit_log: Path | None = None
    """File of that log; audit.jsonl in the gallery folder if None."""
    rate: PositiveReal = 20.0
    """Requests per second and client on average."""
    burst_seconds: PositiveReal = 3.0
    """Seconds whose requests a client may make at once."""
    max_k: Positive = 500
    """Most hits of one search."""
    max_offset: NonNegative = 9000
    """Most hits that paging skips."""
    max_exclude: Positive = 8
    """Most sentences to move away from in one search."""
    where_characters: Annotated[Positive, Le(MAX_FILTER_CHARACTERS)] = MAX_FILTER_CHARACTERS
    """Longest filter."""
    image_bytes: Positive = 10 * 2**20
    """Largest image file."""
    image_pixels: Positive = 24_000_000
    """Most pixels of an image; decoding needs 3 bytes for each."""
    crops_per_request: Positive = 64
    """Most crops added by one request."""
    crops_bytes: Positive = 64 * 2**20
    """Largest body of a request that adds crops."""
    other_bytes: Positive = 4 * 2**20
    """Largest body of any other request without a picture."""
    session_bytes: Positive = 16 * 2**10
    """Largest body of a request that sends the token; anybody can send one."""
    connections: Positive = 512
    """Most connections; when another comes, the one whose client the service has waited for longest is closed."""
    idle_seconds: Positive = 75
    """Time between two requests on a connection; longer than clients and proxies keep theirs, or a request could be
    sent just as the service closes."""
    head_seconds: PositiveReal = 10.0
    """Time in which a request's headers must arrive, and the rest of a body that has been refused already."""
    body_seconds: PositiveReal = 60.0
    """Time in which a request's body must arrive."""
    answer_seconds: PositiveReal = 60.0
    """Time in which a client must take its answer."""
    queries_together: Positive = 32
    """Most queries that are encoded in one batch."""
    queries_waiting: Positive = 256
    """Queries that may wait for the model; the next one gets 503."""
    stop_seconds: Positive = 30
    """Time that running requests have to finish when the service is stopped."""

    @model_validator(mode="after")
    def _check(self) -> ServiceSettings:
        if self.token is not None and len(self.token) < MIN_TOKEN_CHARACTERS:
            raise CsktError(f"the token has {len(self.token)} characters; give it at least {MIN_TOKEN_CHARACTERS}")
        if self.reading_needs_token and not self.has_keys:
            remedy = "give --token-file FILE with a secret of your choice, or --key-file FILE"
            if self.for_other_machines:
                where = f"--host {self.host}" if not is_loopback(self.host) else f"--allow-host {self.allow_hosts[0]}"
                raise CsktError(f"{where} lets other machines ask; {remedy}")
            raise CsktError(f"--require-token leaves nobody who can ask; {remedy}")
        if self.max_k + self.max_offset > MAX_RESULTS:
            raise CsktError(
                f"max_k {self.max_k} and max_offset {self.max_offset} make more than the {MAX_RESULTS:,} best crops"
                " that a search looks at"
            )
        return self

    @property
    def has_keys(self) -> bool:
        """Return whether somebody may have a key."""
        return self.token is not None or self.key_file is not None

    @property
    def for_other_machines(self) -> bool:
        """Return whether the service can be reached from other machines."""
        return not is_loopback(self.host) or bool(self.allow_hosts)

    @property
    def reading_needs_token(self) -> bool:
        """Return whether searching needs a key."""
        return self.require_token or self.for_other_machines

    def body_bytes(self, path: str) -> int:
        """Return the largest body of a request to this path."""
        if path == "/api/crops":
            return self.crops_bytes
        if path == "/api/session":
            return self.session_bytes
        # base64 writes 3 bytes as 4 characters
        return self.other_bytes + (self.image_bytes * 4 // 3 if path == "/api/search" else 0)


def is_loopback(host: str) -> bool:
    """Return whether an address or name is this machine's and cannot be reached from another."""
    address = ip_address(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host states as a number; None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
