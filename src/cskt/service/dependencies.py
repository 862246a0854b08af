"""What the routes share: one `Service` per app."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, Request

from cskt.errors import CsktError
from cskt.service.access_control import client_of
from cskt.service.audit import AuditLog
from cskt.service.engine import Engine
from cskt.service.errors import refusal
from cskt.service.metrics import Metrics
from cskt.service.schemas import ErrorAnswer
from cskt.service.settings import ServiceSettings
from cskt.service.tokens import Tokens


@dataclass(frozen=True)
class Service:
    """The parts of a running service."""

    settings: ServiceSettings
    engine: Engine
    metrics: Metrics
    tokens: Tokens
    audit: AuditLog

    @contextmanager
    def noting(
        self, request: Request, action: str, facts: dict[str, Any], *, changes: bool = False, code: str = "bad_query"
    ) -> Iterator[dict[str, Any]]:
        """See `AuditLog.noting` and, for errors of the gallery in the block, `refusal`; empty facts are left out."""
        stated = {name: value for name, value in facts.items() if value not in (None, [], ())}
        with self.audit.noting(client_of(request), action, stated, changes=changes) as noted:
            try:
                yield noted
            except CsktError as error:
                raise refusal(error, self.engine.gallery, code) from None
            except OSError as error:
                if error.errno is None:
                    raise
                raise refusal(error, self.engine.gallery) from None


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Parts: TypeAlias = Annotated[Service, Depends(_service)]

_MEANINGS = {
    400: "the request is understood and refused",
    401: "the token is missing or wrong",
    403: "the service is read-only, or another site asks",
    404: "there is no such crop",
    408: "the body did not arrive in time",
    413: "the body or a picture is too large",
    415: "the body is not JSON",
    422: "the request has not the form described here",
    429: "too many requests; Retry-After says how long to wait",
    500: "an error of the service",
    503: "busy, loading or being stopped; the gallery has changed, its store refuses, or no audit log can be written",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of error answers; every route may answer 401, 403, 422, 429, 500 and 503."""
    every = sorted({*statuses, 401, 403, 422, 429, 500, 503})
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in every}


BODY_ERRORS = (400, 408, 413, 415)
"""Of every route that reads a body."""
