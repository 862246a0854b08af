"""`RequestMiddleware`, the outermost middleware.

It gives every request an id, counts it, adds the security headers, and answers with a 500 where the app fails. HEAD is
handled here as GET without the body, so that routes need not handle it.
"""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cskt.service.http_errors import REQUEST_ID, error_response, new_request_id, request_id, stopping
from cskt.service.monitoring import Metrics, log_failure

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Added to every answer that does not set them itself."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Counted by name; a client could invent any number of others."""

log = logging.getLogger(__name__)


class IncompleteAnswerError(Exception):
    """An answer failed after it had begun, so the server closes the connection. The cause is logged here."""


class RequestMiddleware:
    """ASGI middleware around all others."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with a 500 where the app fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        method = scope["method"] if scope["method"] in METHODS else "other"
        identifier = new_request_id()
        request_id.set(identifier)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers[REQUEST_ID] = identifier
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        inner = {**scope, "method": "GET"} if method == "HEAD" else scope
        begun = time.perf_counter()
        self._metrics.in_flight.inc()
        try:
            await self._app(inner, receive, send_with_headers)
        except asyncio.CancelledError:  # the service stops and the request has had its time
            if not status:
                await stopping().response()(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001  (a client gets an answer whatever fails)
            # Neither the address nor the message is logged or answered: both may quote what the client sent.
            log_failure(log, f"{method} {_route_of(inner)} failed, request {identifier}", error)
            if status:
                raise IncompleteAnswerError from None
            message = "an error of the service; its log has an entry with this request_id"
            await error_response(500, "internal", message)(scope, receive, send_with_headers)
        finally:
            self._metrics.in_flight.dec()
            route = _route_of(inner)
            self._metrics.requests.labels(route, method, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - begun)


def _route_of(scope: Scope) -> str:
    """Return the template of the route, such as /page/{path}; never the address that the client wrote."""
    return getattr(scope.get("route"), "path", "none")
