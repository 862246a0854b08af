"""Base of the routes: the parts of the service, the reading of JSON bodies, and the described errors.

Bodies are read with a limit and checked before pydantic sees them. Refused is what a lenient parser would accept:
another content type, NaN, numbers beyond 2^63, duplicate keys, deep nesting, and text that is not UTF-8 or contains NUL
or half a surrogate pair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from cskt.errors import CsktError
from cskt.service.access.access_control import client_of, key_name_of
from cskt.service.access.tokens import Tokens
from cskt.service.audit import AuditLog
from cskt.service.http_errors import ServiceError, refusal
from cskt.service.monitoring import Metrics
from cskt.service.schemas import ErrorAnswer
from cskt.service.settings import ServiceSettings
from cskt.service.worker import GalleryWorker
from cskt.utils.json_files import load_json

MAX_DEPTH = 16
"""Lists and objects within each other; no request needs more than five."""
MAX_NUMBER = 2**63


@dataclass(frozen=True)
class Service:
    """The parts of a running service."""

    settings: ServiceSettings
    worker: GalleryWorker
    metrics: Metrics
    tokens: Tokens
    audit: AuditLog

    @contextmanager
    def audited(
        self, request: Request, action: str, facts: dict[str, Any], *, changes: bool = False, code: str = "bad_query"
    ) -> Iterator[dict[str, Any]]:
        """Write a request to the audit log, without empty facts, and turn errors of the gallery into `refusal`s."""
        named = {"key": key_name_of(request), **facts}
        stated = {name: value for name, value in named.items() if value not in (None, [], ())}
        with self.audit.audited(client_of(request), action, stated, changes=changes) as entry:
            try:
                yield entry
            except CsktError as error:
                raise refusal(error, self.worker.gallery, code) from None


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceParts: TypeAlias = Annotated[Service, Depends(_service)]

_MEANINGS = {
    400: "the request is understood and refused",
    401: "the key is missing or wrong",
    403: "the service is read-only, the key may only read, or another site asks",
    404: "there is no such crop",
    408: "the body did not arrive in time",
    413: "the body or a picture is too large",
    415: "the body is not JSON",
    422: "the request has not the form described here",
    429: "too many requests; Retry-After says how long to wait",
    500: "an error of the service",
    503: "busy, loading or stopping; the gallery has changed, or its store, the audit log or the key file fails",
}
BODY_ERRORS = (400, 408, 413, 415)
"""Errors of every route that reads a body."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of error answers, with those that every route may give."""
    every = sorted({*statuses, 401, 403, 422, 429, 500, 503})
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in every}


class StrictRoute(APIRoute):
    """A route whose JSON body is read by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler; called by FastAPI."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            if self.body_field is not None and await strict.body():
                await strict.json()  # here, because FastAPI makes a 400 of whatever its own reading raises
            return await handle(strict)

        return handle_strictly


class StrictRequest(Request):
    """A request whose body has a limit of bytes and seconds."""

    async def body(self) -> bytes:
        """Return the whole body; refuse one that is not JSON, too large or too slow."""
        if not hasattr(self, "_body"):
            settings: ServiceSettings = self.app.state.settings
            if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise ServiceError(415, "json_expected", "send JSON, with Content-Type: application/json")
            try:
                async with asyncio.timeout(settings.body_seconds):
                    self._body = await self._read_at_most(settings.body_bytes(self.scope["path"]))
            except ClientDisconnect:
                raise ServiceError(400, "incomplete", "the body ended too early; send all of it") from None
            except TimeoutError:
                message = f"the body did not arrive within {settings.body_seconds:g} seconds; send it faster"
                raise ServiceError(408, "too_slow", message, {"Connection": "close"}) from None
        return self._body

    async def json(self) -> Any:
        """Return the parsed body, or refuse it; see the module."""
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                text = body.decode("utf-8")
            except UnicodeDecodeError:
                raise _bad("not UTF-8") from None
            try:
                value = load_json(text, where="the body", remedy="send strict JSON")
            except CsktError as error:
                raise ServiceError(400, "bad_json", str(error)) from None
            _check(value)
            self._json = value
        return self._json

    async def _read_at_most(self, limit: int) -> bytes:
        # The connection stays open: `Connection` discards the rest. Were it closed, a client or proxy that is still
        # sending would see a broken connection instead of this answer.
        too_large = ServiceError(413, "too_large", f"the body has more than {limit:,} bytes; send less at once")
        length = self.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limit:
            raise too_large
        body = bytearray()
        async for chunk in self.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)


def _check(value: Any, depth: int = 1) -> None:
    if depth > MAX_DEPTH:
        raise _bad("nested too deep")
    match value:
        case str():
            if "\0" in value:
                raise _bad("a text contains NUL")
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise _bad("a text contains half of a surrogate pair") from None
        case int() | float() if not abs(value) < MAX_NUMBER:  # NaN and infinity included
            raise _bad("a number is too large, or none")
        case dict():
            for part in (*value.keys(), *value.values()):
                _check(part, depth + 1)
        case list():
            for part in value:
                _check(part, depth + 1)


def _bad(reason: str) -> ServiceError:
    return ServiceError(400, "bad_json", f"the body: {reason}; send strict JSON")
