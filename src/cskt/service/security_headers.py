"""The outermost layer: every answer is counted and bears the security headers, an error of ours included.

HEAD is answered here as GET without the body, so that no route has to know of it.
"""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cskt.service.errors import REQUEST_ID, error_response, new_request_id, request_id, stopping
from cskt.service.metrics import Metrics
from cskt.service.private_log import log_failure

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer that does not set them itself."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Counted by name; a client could make up any number of others."""

log = logging.getLogger(__name__)


class BrokenOffError(Exception):
    """An answer failed after it had begun; the server closes the connection. The error itself is logged here."""


class Outermost:
    """ASGI middleware around everything else.

    Args:
        app: what lies behind.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, come what may."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        identifier = new_request_id()
        request_id.set(identifier)
        method = scope["method"] if scope["method"] in METHODS else "other"

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
        except asyncio.CancelledError:
            # The service stops, and this request has had its time; nobody is left to be told of the cancelling.
            if not status:
                await stopping().response()(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001  (a client gets an answer whatever fails)
            # What went wrong is for the operator; the client learns only that something did. Neither the address nor
            # the message is logged, for both may hold what the client wrote.
            log_failure(log, f"{method} {_route_of(inner)} failed, request {identifier}", error)
            if status:  # the answer has begun: all that is left is to break off the connection
                raise BrokenOffError from None
            answer = error_response(
                500, "internal", "an error of the service; its log has an entry with this request_id"
            )
            await answer(scope, receive, send_with_headers)
        finally:
            self._metrics.in_flight.dec()
            route = _route_of(inner)
            self._metrics.requests.labels(route, method, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - begun)


def _route_of(scope: Scope) -> str:
    """The template of the route that answers, such as /page/{path}; never the address that the client wrote."""
    return getattr(scope.get("route"), "path", "none")
