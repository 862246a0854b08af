"""Invalid variants of a JSON file, corrupt or malicious."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

VALUES: dict[str, Any] = {
    "null": None, "true": True, "five": 5, "minus one": -1, "infinity": 1e999, "NaN": math.nan, "a fraction": 0.5,
    "empty text": "", "text": "x" * 10, "a path": "../../etc/passwd", "an empty list": [], "an empty object": {},
    "a nested list": [[[[[[[[1]]]]]]]], "a huge number": 10**30, "an escape": "\x1b[31m\n",
}  # fmt: skip


def fields(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside, and of the first two values of a list."""
    if path:
        yield path
    if isinstance(content, dict):
        for name in content:
            yield from fields(content[name], (*path, name))
    elif isinstance(content, list):
        for index in range(min(len(content), 2)):
            yield from fields(content[index], (*path, index))


def with_value(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with another value at a path."""
    changed = copy.deepcopy(content)
    inner = changed
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return changed


def without(content: Any, path: tuple[Any, ...]) -> Any:
    """Return a copy without the value at a path."""
    changed = copy.deepcopy(content)
    inner = changed
    for part in path[:-1]:
        inner = inner[part]
    del inner[path[-1]]
    return changed


def wrong_shapes(content: Any) -> Iterator[tuple[str, bytes]]:
    """Yield (description, bytes): every field with every value, without the field, and texts that are not JSON."""
    for path in fields(content):
        place = ".".join(map(str, path))
        for kind, value in VALUES.items():
            yield f"{place} is {kind}", json.dumps(with_value(content, path, value)).encode()
        yield f"{place} is missing", json.dumps(without(content, path)).encode()
        if isinstance(inner := _at(content, path), dict):
            yield f"{place} has one more", json.dumps(with_value(content, (*path, "one more"), 1)).encode()
            if inner:
                name = next(iter(inner))
                marked = json.dumps(with_value(content, (*path, "\0"), 1))
                twice = marked.replace(f"{json.dumps(chr(0))}: 1", f"{json.dumps(name)}: {json.dumps(inner[name])}")
                yield f"{place} has a key twice", twice.encode()
    text = json.dumps(content)
    yield from {
        "empty": b"", "a BOM alone": b"\xef\xbb\xbf", "a BOM": b"\xef\xbb\xbf" + text.encode(),
        "not UTF-8": text.encode() + b"\xff", "UTF-16": text.encode("utf-16"), "cut": text[: len(text) // 2].encode(),
        "null": b"null", "five": b"5", "NaN": b"NaN", "infinity": b"1e999", "text": b'"x"', "a list": b"[]",
        "an object": b"{}", "a list of objects": b"[{}]", "deep lists": b"[" * 100_000, "zeros": bytes(100),
        "deep objects": b'{"a":' * 100_000, "nested 500 times": b"[" * 500 + b"]" * 500,
        "digits": b"9" * 10_000, "twice": text.encode() * 2, "a surrogate": b'"\\ud800"',
    }.items()  # fmt: skip


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        content = content[part]
    return content
