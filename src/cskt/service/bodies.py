"""Request bodies, read with a limit and parsed without mercy, before anything else looks at them.

What a lenient parser would let through is refused here: another content type, NaN, numbers beyond float64, a key that
appears twice, deep nesting, text that is no UTF-8 or that holds NUL or half a surrogate pair.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from cskt.service.errors import ServiceError
from cskt.service.settings import ServiceSettings

DEEPEST = 16
"""Lists and objects within each other; no request needs more than five."""
LARGEST_WHOLE = 2**63


class StrictRoute(APIRoute):
    """A route whose JSON body is read by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI asks for it."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


class StrictRequest(Request):
    """A request that reads its body once, with a limit of bytes and seconds."""

    _read: bytes | None = None

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            ServiceError: 415 it is not JSON, 413 it is too large, 408 it does not arrive.
        """
        if self._read is None:
            settings: ServiceSettings = self.app.state.settings
            if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise ServiceError(415, "json_expected", "send JSON, with Content-Type: application/json")
            try:
                async with asyncio.timeout(settings.body_seconds):
                    self._read = await self._read_at_most(settings.body_bytes(self.scope["path"]))
            except TimeoutError:
                message = f"the body did not arrive within {settings.body_seconds:g} seconds; send it faster"
                raise ServiceError(408, "too_slow", message, {"Connection": "close"}) from None
        return self._read

    async def json(self) -> Any:
        """The parsed body; see `parse_json`."""
        return parse_json(await self.body())

    async def _read_at_most(self, limit: int) -> bytes:
        told = self.headers.get("content-length", "0")
        if told.isdecimal() and int(told[:20]) > limit:
            raise _too_large(limit)
        chunks, num_bytes = [], 0
        async for chunk in self.stream():
            num_bytes += len(chunk)
            if num_bytes > limit:
                raise _too_large(limit)
            chunks.append(chunk)
        return b"".join(chunks)


def parse_json(body: bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ServiceError: 400; see the module.
    """
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise _bad("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _bad(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _bad("it is nested too deeply") from None
    except ValueError:  # how Python refuses to read a number of thousands of digits
        raise _bad("a number is too long") from None
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Keys are unique, lest we check one value and a reader of the log sees another."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _bad("a key appears twice in one object")
    return found


def _no_number(name: str) -> NoReturn:
    raise _bad(f"{name} is not a JSON number")


def _check(value: Any) -> None:
    waiting = [(value, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            raise _bad("it is nested too deeply")
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < LARGEST_WHOLE):
            raise _bad("a number is too large")
        elif isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            waiting += [(part, depth + 1) for part in value]


def _check_text(text: str) -> None:
    if "\0" in text:
        raise _bad("a text holds NUL")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad("a text holds half of a surrogate pair") from None


def _bad(reason: str) -> ServiceError:
    return ServiceError(400, "bad_json", f"the body is not sound JSON: {reason}")


def _too_large(limit: int) -> ServiceError:
    # The rest is not read; the connection cannot be used for another request.
    message = f"the body has more than {limit:,} bytes; send less at once"
    return ServiceError(413, "too_large", message, {"Connection": "close"})
