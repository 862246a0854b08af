"""Errors in one JSON form: {"error": {"code": "bad_filter", "message": "one line with the remedy"}}."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from cskt.errors import GalleryChangedError, NoAnswerError, StoreError, UnknownCropError
from cskt.gallery.gallery import Gallery

LONGEST_MESSAGE = 500
"""Characters; a message may quote what the client sent."""

log = logging.getLogger(__name__)


class ServiceError(HTTPException):
    """A refusal that the client is told of.

    Args:
        status: of HTTP, 4xx or 5xx.
        code: the kind of error, for programs.
        message: one line with the remedy, for people.
        headers: of the response.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code

    def response(self) -> Response:
        """The error as it goes to the client."""
        return error_response(self.status_code, self.code, self.detail, self.headers)


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the one form."""
    line = " ".join(message.split())[:LONGEST_MESSAGE]
    return JSONResponse({"error": {"code": code, "message": line}}, status, headers)


def busy() -> ServiceError:
    """More work waits than the service takes on."""
    return ServiceError(503, "busy", "too many queries are waiting; try again in a second", {"Retry-After": "1"})


def stopping() -> ServiceError:
    """The service takes on nothing more, or gives up what takes too long."""
    return ServiceError(503, "stopping", "the service is being stopped; ask again when it is back")


def unknown_crop() -> ServiceError:
    """The gallery knows no crop of the name asked for."""
    return ServiceError(404, "unknown_crop", "the gallery has no crop of this name; a search tells which it has")


def gallery_changed() -> ServiceError:
    """What the service has opened is no longer there: neither its model nor its vectors would be the right ones."""
    message = "the gallery was filled by another model meanwhile, or is gone; the operator must restart the service"
    return ServiceError(503, "gallery_changed", message)


def store_refuses(error: OSError | StoreError, gallery: Gallery) -> ServiceError:
    """The gallery's disk is full or closed, or its server is gone; where, the log says, and not the answer."""
    if isinstance(error, StoreError) and error.without_query:
        log.error("the store of the gallery refuses: %s", error)
    else:
        store = "" if gallery.manifest.store == "lance" else f" ({gallery.manifest.store})"
        log.error("the store of the gallery refuses: %s%s: %s", gallery.folder, store, _reason(error))
    return ServiceError(503, "store_refuses", "the gallery's store refuses; ask again when the operator has mended it")


@contextmanager
def told_to_the_client(gallery: Gallery, code: str = "bad_query") -> Iterator[None]:
    """What the gallery refuses as a user's error becomes a 4xx with its line, less the folders that it names.

    What its store refuses, a full disk for example, becomes a 503.

    Every use of the gallery stands in one, for any may find that the gallery has changed.
    """
    try:
        yield
    except GalleryChangedError:
        raise gallery_changed() from None
    except UnknownCropError:
        raise unknown_crop() from None
    except StoreError as error:
        raise store_refuses(error, gallery) from None
    except ValueError as error:
        raise ServiceError(400, code, _without_places(str(error), gallery)) from None
    except OSError as error:
        if error.errno is None:  # none of the system's, but a time limit's
            raise
        raise store_refuses(error, gallery) from None


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
    """Return what finds a path in a message, but not its letters in words: a gallery may be called `g`.

    A relative path in quotes is not found either: messages quote what the client has written.
    """
    further = "" if path.is_absolute() else ".'\""
    return re.compile(rf"(?<![\w./{further}-]){re.escape(str(path))}(?![\w{further}-])")


def _reason(error: OSError | StoreError) -> str:
    """Why a store refuses, in words that are not taken from the error: its message may quote the request."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    text = str(error)
    found = (os.strerror(number) for number in errno.errorcode if os.strerror(number) in text)
    kind = "it is damaged" if "damaged (" in text else "it cannot be read or written"
    if isinstance(error, NoAnswerError):
        kind = "its server gives no answer"
    return next(found, f"{kind}; 'cskt search' on this machine shows more")


def add_error_handlers(app: FastAPI) -> None:
    """Bring what FastAPI and Starlette refuse by themselves into the one form."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if isinstance(error, ServiceError):
            return error.response()
        if error.status_code == 405:
            methods = ", ".join(_methods(request))
            message = f"{request.scope['path']} takes {methods}"
            return error_response(405, "method_not_allowed", message, {"Allow": methods})
        if error.status_code == 404:
            return error_response(404, "not_found", "nothing lies at this address; /docs lists what there is")
        return error_response(error.status_code, "bad_request", str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "body"
        message = str(first["msg"]).removeprefix("Value error, ")
        return error_response(422, "invalid_request", f"{place}: {message}; /docs says what is taken")


def _methods(request: Request) -> list[str]:
    """What the address takes. No address of ours has a variable part but those of the page, which can only be read."""
    operations = request.app.openapi()["paths"].get(request.scope["path"], {"get": None})
    methods = {method.upper() for method in operations}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)
