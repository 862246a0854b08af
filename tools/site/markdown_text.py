"""Text for Markdown: escaped values, tables, and JSON schemas in words."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]


def escape(text: str) -> str:
    """Return plain text, on one line, that Markdown shows as it is, in a cell of a table as well; `this` is code."""
    pieces = " ".join(text.split()).split("`")
    if len(pieces) % 2:  # every backtick has its pair
        return "".join(code(piece) if number % 2 else _literal(piece) for number, piece in enumerate(pieces))
    return _literal(text)


def _literal(text: str) -> str:
    shown = html.escape(text, quote=False)
    for character in "\\`*_{}[]|$":
        shown = shown.replace(character, f"&#{ord(character)};")
    return shown


def code(text: str) -> str:
    """Return text as inline code."""
    return f"<code>{_literal(text)}</code>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def block(text: str) -> str:
    """Return text as it is, in the font of code."""
    return f"```text\n{text.strip(chr(10))}\n```\n"


def type_text(schema: Schema, definitions: Mapping[str, Schema]) -> str:  # noqa: PLR0911  (a line per kind of schema)
    """Return the type and the range of a JSON schema in words: `integer, at least 1, or none`."""
    if "$ref" in schema:
        return type_text(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if choices := schema.get("anyOf"):
        texts = [type_text(choice, definitions) for choice in choices if choice.get("type") != "null"]
        return " or ".join(dict.fromkeys(texts)) + (", or none" if len(texts) < len(choices) else "")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = str(schema.get("type", "any value"))
    if kind == "array" and (items := schema.get("prefixItems")):
        kinds = ", ".join(type_text(item, definitions) for item in items)
        return kinds if len(items) == 1 else f"list: {kinds}"
    if kind == "array" and "items" in schema:
        return f"list of {type_text(schema['items'], definitions)}"
    if kind == "object":
        return str(schema.get("title", "mapping")) if "properties" in schema else "mapping"
    return ", ".join([kind, *_range(schema)])


def _range(schema: Schema) -> list[str]:
    words = {
        "exclusiveMinimum": "above {}", "minimum": "at least {}",
        "exclusiveMaximum": "below {}", "maximum": "at most {}",
        "minLength": "at least {} characters", "maxLength": "at most {} characters",
    }  # fmt: skip
    return [text.format(f"{schema[key]:,}") for key, text in words.items() if key in schema]
