"""The page and its files, and a list of the operations: served from memory, so that no path is ever followed."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import APIRouter, Request, Response

from cskt.service.errors import ServiceError

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
DOCS_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.15rem 1rem .15rem 0}"
    "section{border-top:1px solid #8888;margin-top:1.5rem}code{font-family:ui-monospace,monospace}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(DOCS_STYLE.encode()).digest()).decode()
DOCS_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; frame-ancestors 'none'"


def page_files() -> dict[str, bytes]:
    """The files of the page by their path below it, such as `app.js`."""
    return dict(_files(importlib.resources.files("cskt") / "assets" / "page", ""))


def page_router(files: Mapping[str, bytes]) -> APIRouter:
    """The routes of the page and of /docs; they are no part of the API."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        return _file(files, "index.html", request)

    @router.get("/page/{path:path}")
    async def part(path: str, request: Request) -> Response:
        return _file(files, path, request)

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        text = docs_page(request.app.openapi())
        return Response(text, media_type="text/html", headers={"Content-Security-Policy": DOCS_POLICY})

    return router


def docs_page(description: Mapping[str, Any]) -> str:
    """A page that lists the operations of an OpenAPI description, without any script."""
    sections = []
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            rows = [("answers", _answers(operation["responses"]))]
            rows += [("parameter", _parameter(parameter)) for parameter in operation.get("parameters", [])]
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                rows += [("body", text) for text in _properties(schema, description)]
            table = "".join(f"<tr><th scope=row>{name}<td>{text}" for name, text in rows)
            summary = html.escape(operation.get("description", ""))
            heading = f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
            sections.append(f"<section>{heading}<p>{summary}</p><table>{table}</table></section>")
    title = html.escape(description["info"]["title"])
    return (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{title}</title><style>{DOCS_STYLE}</style><h1>{title}</h1><p>{html.escape(description['info']['description'])}"
        f" The full description, for programs: <a href=/openapi.json>openapi.json</a>.</p>{''.join(sections)}</html>"
    )


def _files(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif _suffix(entry.name) in TYPES:
            yield prefix + entry.name, entry.read_bytes()


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2]


def _file(files: Mapping[str, bytes], path: str, request: Request) -> Response:
    if path not in files:
        raise ServiceError(404, "not_found", "the page has no such file")
    tag = f'"{hashlib.sha256(files[path]).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": PAGE_POLICY}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(files[path], media_type=TYPES[_suffix(path)], headers=headers)


def _answers(responses: Mapping[str, Any]) -> str:
    return ", ".join(f"{status} {html.escape(answer.get('description', ''))}" for status, answer in responses.items())


def _parameter(parameter: Mapping[str, Any]) -> str:
    text = f"<code>{html.escape(parameter['name'])}</code> {html.escape(parameter.get('description', ''))}"
    return text + (" (needed)" if parameter.get("required") else "")


def _properties(schema: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """The keys of a JSON body, one line each."""
    settled = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    lines = []
    for name, inner in settled["properties"].items():
        kinds = [option.get("type", "object") for option in inner.get("anyOf", [inner])]
        text = f"<code>{html.escape(name)}</code> {' or '.join(kinds)}"
        text += f", {inner['default']!r} if left out" if inner.get("default") is not None else ""
        text += " (needed)" if name in settled.get("required", []) else ""
        lines.append(f"{text}. {html.escape(inner.get('description', ''))}")
    return lines
