"""`AccessControl` middleware: host name, rate and key of a request, checked before any of its body is read."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal, TypeAlias

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cskt.service.access.hosts import check_host, check_origin
from cskt.service.access.keys import Key
from cskt.service.access.tokens import Tokens
from cskt.service.audit import AuditLog
from cskt.service.http_errors import ServiceError
from cskt.service.settings import ServiceSettings

Access: TypeAlias = Literal["open", "read", "write"]

SESSION_COOKIE = "cskt_session"
OPEN = frozenset({"/", "/healthz", "/docs", "/openapi.json", "/api/session"})
"""Paths that show nothing of the gallery; the page must load before it can ask for a key."""
QUERIES = frozenset({"/api/search", "/api/explain", "/api/marks/export"})
"""Posted because they are long, but they change nothing."""
CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
SMALL_COST = 0.02
"""Cost of a thumbnail or a file of the page, of which one answer shows dozens; a search costs 1."""
KEY_NAME = "cskt.key"
"""Field of a request's ASGI scope: the name of the key that it came with."""
MAX_CLIENTS = 10_000
"""Keys and addresses with a bucket; beyond that, the one that has been silent longest loses it, full by then."""


def needed_access(method: str, path: str) -> Access:
    """Return what a request needs; an unknown one needs a key."""
    if path in OPEN or path.startswith("/page/"):
        return "open"
    return "write" if method in CHANGING and path not in QUERIES else "read"


def cost(path: str) -> float:
    """Return what a request takes from its client's bucket; monitoring systems must not be refused for the rate."""
    if path == "/healthz":
        return 0.0
    return SMALL_COST if path in ("/", "/api/thumbnail") or path.startswith("/page/") else 1.0


class RateLimiter:
    """One token bucket per key, or per address of clients without one, filled with `rate` per second up to `burst`."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, client: str, cost: float) -> None:
        """Take from a client's bucket, or take nothing and raise a ServiceError 429 with the seconds to wait."""
        now = self._clock()
        level, filled = self._buckets.pop(client, (self._burst, now))
        level = min(self._burst, level + (now - filled) * self._rate)
        self._buckets[client] = (level - cost if level >= cost else level, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if level < cost:
            wait = math.ceil((cost - level) / self._rate)
            message = f"more than {self._rate:g} requests per second; try again in {wait} s"
            raise ServiceError(429, "too_many_requests", message, {"Retry-After": str(wait)})


class AccessControl:
    """ASGI middleware in front of every route."""

    def __init__(self, app: ASGIApp, *, settings: ServiceSettings, tokens: Tokens, audit: AuditLog) -> None:
        self._app = app
        self._settings = settings
        self._tokens = tokens
        self._rates = RateLimiter(settings.rate, settings.rate * settings.burst_seconds)
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            try:
                self._check(Request(scope))
            except ServiceError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, request: Request) -> None:
        path = request.scope["path"]  # as the router sees it; `request.url` differs where it holds a %3F
        _check_framing(request)
        check_host(request.headers, self._settings)
        key = self._key_in_header(request)
        any_key = key or self._tokens.key_of_session(request.cookies.get(SESSION_COOKIE, ""))
        self._rates.spend(client_of(request) if any_key is None else f"key {any_key.name}", cost(path))
        if request.method in CHANGING:
            check_origin(request.headers.get("origin"), request.headers["host"], self._settings)
        needed = needed_access(request.method, path)
        if needed == "write":
            self._check_write(request, key)
        if needed == "read" and self._settings.reading_needs_token and any_key is None:
            raise token_error("token_needed", "sign in on the page, or send your key as Authorization: Bearer KEY")
        request.scope[KEY_NAME] = None if any_key is None else any_key.name

    def _check_write(self, request: Request, key: Key | None) -> None:
        if not self._settings.has_keys:
            message = "this service is read-only; start it with --token-file or --key-file to add or delete crops"
            raise ServiceError(403, "read_only", message)
        if key is None:
            message = "adding and deleting need a key in the header; a browser's session may only read"
            raise token_error("token_needed", message)
        if key.scope != "write":
            self._audit.record(client_of(request), "refused-scope", key=key.name, path=request.scope["path"])
            raise ServiceError(403, "read_key", f"the key '{key.name}' may only read; use one with the scope 'write'")

    def _key_in_header(self, request: Request) -> Key | None:
        """Return the key of a request; a wrong one is refused even where none is needed."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        scheme, _, secret = header.partition(" ")
        key = self._tokens.find(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            # On every path: guesses, and their lines in the log, must not be free where health is.
            self._rates.spend(client_of(request), cost(request.scope["path"]) + 1.0)
            self._audit.record(client_of(request), "refused-token", path=request.scope["path"])
            raise token_error()
        return key


def _check_framing(request: Request) -> None:
    """Refuse a body whose end a proxy may see elsewhere: one request here could be two there (RFC 9112, 6.3).

    The connection is closed, because the start of the next request is unknown.
    """
    headers, version = request.headers, request.scope["http_version"]
    if "transfer-encoding" in headers and ("content-length" in headers or version != "1.1"):
        message = "a body has either a Content-Length or, in HTTP/1.1, a Transfer-Encoding; send one of them"
        raise ServiceError(400, "bad_framing", message, {"Connection": "close"})


def client_of(request: Request) -> str:
    """Return the address that a request comes from; only a known proxy may state another, see `create_app`."""
    return request.client.host if request.client else "unknown"


def key_name_of(request: Request) -> str | None:
    """Return the name of the key that a request came with, in its header or as a session."""
    name: str | None = request.scope.get(KEY_NAME)
    return name


def token_error(code: str = "wrong_token", message: str = "the token is not the right one") -> ServiceError:
    """Return a 401."""
    return ServiceError(401, code, message, {"WWW-Authenticate": "Bearer"})
