"""A page of the reference: every operation of the HTTP API, from its OpenAPI description."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from markdown_text import code, escape, table, type_text

from cskt.service.routes import crops, searching, status

PATH = "reference/http.md"
INTRODUCTION = """\
# HTTP API

`cskt serve GALLERY` answers these operations, and describes them at `/docs` and, for programs, at `/openapi.json`.
[Page and HTTP API](../service.md) explains tokens, errors and limits.
"""


def pages() -> dict[str, str]:
    """Return path -> Markdown."""
    app = FastAPI()
    for router in (status.router, searching.router, crops.router):
        app.include_router(router)
    description = app.openapi()
    schemas = description["components"]["schemas"]
    parts = [INTRODUCTION]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parts += [f"## {method.upper()} {path}\n", escape(operation.get("description", "")) + "\n"]
            parts += _operation(operation, schemas)
    parts.append("## Objects\n")
    for name, schema in schemas.items():
        if rows := list(_fields(schema, schemas)):
            parts += [
                f"### {name}\n",
                escape(schema.get("description", "")) + "\n",
                table(["field", "type", "meaning"], rows),
            ]
    return {PATH: "\n".join(parts)}


def _operation(operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    """Yield parameters, body and answers of an operation."""
    if parameters := operation.get("parameters"):
        rows = [
            [code(one["name"]), escape(type_text(one["schema"], schemas)), escape(one.get("description", ""))]
            for one in parameters
        ]
        yield table(["parameter", "type", "meaning"], rows)
    if content := operation.get("requestBody", {}).get("content"):
        yield f"Body: {', '.join(_content(content))}.\n"
    rows = [
        [code(status), ", ".join(_content(answer.get("content", {}))) or "", escape(answer.get("description", ""))]
        for status, answer in operation["responses"].items()
    ]
    yield table(["status", "answer", "meaning"], rows)


def _content(content: Mapping[str, Any]) -> Iterator[str]:
    for kind, media in content.items():
        reference = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
        yield f"[{reference}](#{reference.lower()})" if reference else code(kind)


def _fields(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, field in schema.get("properties", {}).items():
        needed = " (required)" if name in schema.get("required", ()) else ""
        about = field.get("description", "")
        default = f" Default: {code(str(field['default']))}." if field.get("default") is not None else ""
        yield [code(name), escape(type_text(field, schemas)) + needed, escape(about) + default]
