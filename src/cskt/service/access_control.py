"""Who may come in: the names it is reached by, the rate, the token. Asked before a byte of a body is read."""

from __future__ import annotations

from typing import Literal, TypeAlias

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cskt.service.audit import AuditLog
from cskt.service.errors import ServiceError
from cskt.service.hosts import check_host, check_origin
from cskt.service.rate import RateLimiter
from cskt.service.settings import ServiceSettings
from cskt.service.tokens import Tokens

Access: TypeAlias = Literal["open", "read", "write"]

SESSION_COOKIE = "cskt_session"
OPEN = frozenset({"/", "/healthz", "/docs", "/openapi.json", "/api/session"})
"""Say nothing of the gallery; the page must load before it can ask for the token."""
QUESTIONS = frozenset({"/api/search", "/api/explain", "/api/marks/export"})
"""Posted, for they are long, but change nothing."""
CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
SMALL_COST = 0.02
"""Of a thumbnail or a file of the page beside a search: one answer shows dozens."""


def needed_access(method: str, path: str) -> Access:
    """What a request needs; whatever is not known to be harmless needs the token."""
    if path in OPEN or path.startswith("/page/"):
        return "open"
    return "write" if method in CHANGING and path not in QUESTIONS else "read"


def cost(path: str) -> float:
    """What a request takes from its client's bucket; health is asked for by machines that must not be turned away."""
    if path == "/healthz":
        return 0.0
    return SMALL_COST if path in ("/", "/api/thumbnail") or path.startswith("/page/") else 1.0


class Gate:
    """ASGI middleware in front of every route.

    Args:
        app: what lies behind.
        settings: of the service.
        tokens: who has shown the token.
        rates: one bucket per client.
        audit: where a refused token is noted.
    """

    def __init__(
        self, app: ASGIApp, *, settings: ServiceSettings, tokens: Tokens, rates: RateLimiter, audit: AuditLog
    ) -> None:
        self._app = app
        self._settings = settings
        self._tokens = tokens
        self._rates = rates
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass or answer it with the refusal."""
        if scope["type"] == "http":
            try:
                self._check(Request(scope))
            except ServiceError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, request: Request) -> None:
        path = request.scope["path"]  # what the router sees; that of `request.url` differs where it holds a %3F
        _check_framing(request)
        check_host(request.headers, self._settings)
        self._rates.spend(client_of(request), cost(path))
        if request.method in CHANGING:
            check_origin(request.headers.get("origin"), request.headers["host"], self._settings)
        needed = needed_access(request.method, path)
        shown = self._shown_token(request)
        if needed == "write" and not shown:
            if self._settings.token is None:
                message = "this service is read-only; start it with --token-file FILE to add or delete crops"
                raise ServiceError(403, "read_only", message)
            raise _token_needed("adding and deleting need the token in the header; a browser's session may only read")
        shown = shown or self._tokens.is_session(request.cookies.get(SESSION_COOKIE, ""))
        if needed == "read" and self._settings.reading_needs_token and not shown:
            raise _token_needed("sign in on the page, or send the token as Authorization: Bearer TOKEN")

    def _shown_token(self, request: Request) -> bool:
        """Whether the request bears the token. A wrong one is refused even where none is needed."""
        header = request.headers.get("authorization")
        if header is None:
            return False
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not self._tokens.is_right(token.strip()):
            # whatever was asked: else guesses, and their lines in the log, would be free where health is
            self._rates.spend(client_of(request), 1.0)
            self._audit.note(client_of(request), "refused-token", path=request.scope["path"])
            raise wrong_token()
        return True


def _check_framing(request: Request) -> None:
    """Refuse a body whose end a proxy may see elsewhere: what is one request here could be two there (RFC 9112, 6.3).

    Raises:
        ServiceError: 400; the connection is closed, for nobody knows what comes next on it.
    """
    headers, version = request.headers, request.scope["http_version"]
    if "transfer-encoding" in headers and ("content-length" in headers or version != "1.1"):
        message = "a body has either a Content-Length or, in HTTP/1.1, a Transfer-Encoding; send one of them"
        raise ServiceError(400, "bad_framing", message, {"Connection": "close"})


def client_of(request: Request) -> str:
    """The address that a request comes from; headers that claim another are not believed."""
    return request.client.host if request.client else "unknown"


def wrong_token() -> ServiceError:
    """What a wrong token is answered with."""
    return ServiceError(401, "wrong_token", "the token is not the right one", {"WWW-Authenticate": "Bearer"})


def _token_needed(message: str) -> ServiceError:
    return ServiceError(401, "token_needed", message, {"WWW-Authenticate": "Bearer"})
