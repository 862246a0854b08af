"""Errors in one JSON form: {"error": {"code": "bad_filter", "message": "one line", "request_id": "4f0c..."}}.

A `CsktError` becomes a 4xx or 503. Every other exception is a bug: `RequestMiddleware` answers it with a 500.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from cskt.errors import (
    CsktError,
    FileSystemError,
    GalleryChangedError,
    NoAnswerError,
    OutOfMemoryError,
    StoreError,
    UnknownCropError,
)
from cskt.gallery.gallery import Gallery
from cskt.utils.checked import raise_bug

MAX_MESSAGE = 500
"""Characters; a message may quote what the client sent."""
REQUEST_ID = "X-Request-ID"
"""Header of every answer; log entries and errors contain the same value."""
request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Identifier of the request that is being answered."""

log = logging.getLogger(__name__)


def new_request_id() -> str:
    """Return a random identifier; one that a client sends is not used, because it would be logged."""
    return secrets.token_hex(8)


class ServiceError(HTTPException):
    """An error that the client sees: a code for programs, and one line with the remedy for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code

    def response(self) -> Response:
        """Return the error as it is sent to the client."""
        return error_response(self.status_code, self.code, self.detail, self.headers)


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error in the one form."""
    line = " ".join(message.split())[:MAX_MESSAGE]
    content = {"code": code, "message": line, "request_id": request_id.get()}
    return JSONResponse({"error": content}, status, headers)


def stopping() -> ServiceError:
    """Return the error for a request that arrives while the service stops, or takes longer than it may then."""
    return ServiceError(503, "stopping", "the service is being stopped; ask again when it is back")


def refusal(error: CsktError, gallery: Gallery, code: str = "bad_query") -> ServiceError:
    """Return the answer to an error of the gallery, with `code` if the request is at fault.

    A store's error is logged instead of answered; the gallery's folders are removed from the message.
    """
    match error:
        case GalleryChangedError():
            message = "the gallery was replaced or deleted by another process; the operator must restart the service"
            return ServiceError(503, "gallery_changed", message)
        case UnknownCropError():
            return ServiceError(404, "unknown_crop", "the gallery has no crop of this name; a search lists the names")
        case OutOfMemoryError():
            log.error("out of memory")
            return ServiceError(503, "out_of_memory", "the service is out of memory; ask again later")
        case StoreError() | FileSystemError():
            _log_store_error(error, gallery)
            message = "the gallery's store is unavailable; ask again when the operator has repaired it"
            return ServiceError(503, "store_refuses", message)
        case _:
            return ServiceError(400, code, _without_places(str(error), gallery))


def _without_places(line: str, gallery: Gallery) -> str:
    """Return a message without the paths of a gallery, its images and its model."""
    model = gallery.manifest.model
    for place, name in (
        (gallery.manifest.images, "images"), (gallery.folder, "the gallery"),
        (model.path, "the model"), (model.backbone, "the backbone"),
    ):  # fmt: skip
        if place is not None and (place is gallery.folder or Path(place).is_absolute()):
            for path in (Path(place).resolve(), Path(place)):
                line = _path_pattern(path).sub(name, line)
    return line


def _path_pattern(path: Path) -> re.Pattern[str]:
    """Return a pattern that matches a path in a message, but not its letters in words: a gallery may be called `g`.

    A relative path in quotes does not match either: messages quote what the client has written.
    """
    further = "" if path.is_absolute() else ".'\""
    return re.compile(rf"(?<![\w./{further}-]){re.escape(str(path))}(?![\w{further}-])")


def _log_store_error(error: CsktError, gallery: Gallery) -> None:
    """Log why a store is unavailable, in fixed words unless the message is known to quote nothing of the request."""
    if isinstance(error, StoreError) and error.without_query:
        log.error("the store of the gallery is unavailable: %s", error)
        return
    text = str(error)
    reason = "it is corrupt" if "corrupt (" in text else "it cannot be read or written"
    if isinstance(error, NoAnswerError):
        reason = "its server gives no answer"
    of_system = (os.strerror(number) for number in errno.errorcode if os.strerror(number) in text)
    reason = next(of_system, f"{reason}; 'cskt search' on this machine shows more")
    store = "" if gallery.manifest.store_in_folder else f" ({gallery.manifest.store})"
    log.error("the store of the gallery is unavailable: %s%s: %s", gallery.folder, store, reason)


def add_error_handlers(app: FastAPI) -> None:
    """Bring errors of the gallery, of FastAPI and of Starlette into the one form."""

    @app.exception_handler(CsktError)
    async def refused_by_gallery(request: Request, error: CsktError) -> Response:
        return refusal(error, request.app.state.service.worker.gallery).response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if isinstance(error, ServiceError):
            return error.response()
        if error.status_code == 405:
            # No path of the API has a variable part; the page, which has one, can only be read.
            operations = request.app.openapi()["paths"].get(request.scope["path"], {"get": None})
            methods = {method.upper() for method in operations} | ({"HEAD"} if "get" in operations else set())
            allowed = ", ".join(sorted(methods))
            message = f"{request.scope['path']} takes {allowed}"
            return error_response(405, "method_not_allowed", message, {"Allow": allowed})
        if error.status_code == 404:
            return error_response(404, "not_found", "nothing is at this address; see /docs")
        return error_response(error.status_code, "bad_request", str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        raise_bug(error.errors())
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        message = str(first["msg"]).removeprefix("Value error, ")
        return error_response(422, "invalid_request", f"{place}: {message}; see /docs")
