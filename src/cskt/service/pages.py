"""The page and its files, and a list of the operations: served from memory, so that no path of a request is opened."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Request, Response
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from cskt.service.http_errors import ServiceError

TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
"""Files of other kinds are not part of the page."""
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
TEMPLATES = Environment(loader=PackageLoader("cskt.service"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def page_files() -> dict[str, bytes]:
    """Return the files of the page by their path below it, such as `app.js`."""
    return dict(_files(importlib.resources.files("cskt") / "assets" / "page", ""))


def page_router(files: Mapping[str, bytes]) -> APIRouter:
    """Return the routes of the page and of /docs; they are no part of the API."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        return await part("index.html", request)

    @router.get("/page/{path:path}")
    async def part(path: str, request: Request) -> Response:
        if path not in files:
            raise ServiceError(404, "not_found", "the page has no such file")
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": PAGE_POLICY}
        return cached_response(request, files[path], TYPES[PurePosixPath(path).suffix], headers)

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return docs_page(request.app.openapi())

    return router


def docs_page(description: Mapping[str, Any]) -> Response:
    """Return a page that lists the operations of an OpenAPI description; its policy allows its style sheet alone."""
    style = (importlib.resources.files("cskt.service") / "templates" / "docs.css").read_text(encoding="utf-8")
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; base-uri 'none'; frame-ancestors 'none'"
    template = TEMPLATES.get_template("docs.html.j2")
    text = template.render(**description, schemas=description["components"]["schemas"], style=Markup(style))
    return Response(text, media_type="text/html", headers={"Content-Security-Policy": policy})


def cached_response(request: Request, data: bytes, media_type: str, headers: Mapping[str, str]) -> Response:
    """Return data with an ETag, or a 304 for a client that has them already."""
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"ETag": tag, **headers}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


def _files(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif PurePosixPath(entry.name).suffix in TYPES:
            yield prefix + entry.name, entry.read_bytes()
