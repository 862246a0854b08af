"""The OpenAPI description: what FastAPI reads off the routes, and the limits and the token, which are settings."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from cskt.service.access_control import SESSION_COOKIE, needed_access
from cskt.service.pictures import LONGEST_DATA_HEAD
from cskt.service.settings import ServiceSettings


def describe(app: FastAPI, settings: ServiceSettings) -> dict[str, Any]:
    """The whole description of an app whose routes are complete."""
    description: dict[str, Any] = FastAPI.openapi(app)
    _state_limits(description["components"]["schemas"], settings)
    description["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": SESSION_COOKIE},
    }
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            needed = needed_access(method.upper(), path)
            if needed == "write":
                operation["security"] = [{"token": []}]
            elif needed == "read" and settings.reading_needs_token:
                operation["security"] = [{"token": []}, {"session": []}]
    return description


def _state_limits(schemas: dict[str, Any], settings: ServiceSettings) -> None:
    search = schemas["SearchRequest"]["properties"]
    search["where"]["anyOf"][0]["maxLength"] = settings.where_characters
    search["image"]["anyOf"][0]["maxLength"] = settings.image_bytes * 4 // 3 + LONGEST_DATA_HEAD
    search["exclude"] |= {"maxItems": settings.max_exclude}
    search["k"]["maximum"] = settings.max_k
    search["offset"]["maximum"] = settings.max_offset
    schemas["AddRequest"]["properties"]["crops"]["maxItems"] = settings.crops_per_request
    schemas["CropUpload"]["properties"]["image"]["maxLength"] = settings.image_bytes * 4 // 3 + LONGEST_DATA_HEAD
