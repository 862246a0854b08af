"""A page of the reference: every config key, from the schema of `cskt.RunConfig`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from commands import parser_of
from markdown_text import code, escape, table, type_text
from pydantic import TypeAdapter

from cskt.cli.parsing import FIELDS, OVERRIDE, shown
from cskt.config import RunConfig, value_of

PATH = "reference/config.md"
INTRODUCTION = """\
# Config keys

A config is a YAML file with a section per topic. A recipe that ships with the package is such a file
([Recipes](recipes.md)), and `config.yaml` of a run folder has every key. A key is also a flag of
[cskt train](commands/cskt-train.md): `--optim.lr 1e-4`, or `--lr 1e-4` where its last part is unique.
Defaults are those of `RunConfig`; a recipe may have others.
"""


def pages() -> dict[str, str]:
    """Return path -> Markdown."""
    actions = {
        action.dest.removeprefix(OVERRIDE): action
        for action in parser_of("train")._actions
        if action.dest.startswith(OVERRIDE)
    }
    parts = [INTRODUCTION]
    for title, about, rows in sections(actions):
        parts += [f"## {title}\n", about, table(["key", "type", "default", "meaning"], rows)]
    further = [[_name(key, action), escape(action.help or "")] for key, action in actions.items() if key not in FIELDS]
    about = "Settings of single losses, parts and hooks. Plug-ins add theirs ([Extending](../extending.md)).\n"
    parts += ["## Losses, parts and hooks\n", about, table(["key", "meaning"], further)]
    return {PATH: "\n".join(parts)}


def sections(actions: dict[str, argparse.Action]) -> Iterator[tuple[str, str, list[list[str]]]]:
    """Yield title, description and rows of every section."""
    schema = TypeAdapter(RunConfig).json_schema()
    definitions = schema["$defs"]
    by_section: dict[str, list[list[str]]] = {}
    for key in FIELDS:
        section, _, leaf = key.rpartition(".")
        properties = _section(schema, section)["properties"]
        default = shown(_default(key))
        kind = type_text(properties[leaf], definitions)
        about = properties[leaf].get("description", "")
        by_section.setdefault(section, []).append(
            [_name(key, actions[key]), escape(kind), code(default), escape(about)]
        )
    for section, rows in by_section.items():
        about = _section(schema, section).get("description", "") if section else "Keys without a section."
        yield section or "Run", f"{escape(about)}\n", rows


def _section(schema: dict[str, Any], section: str) -> Any:
    owner = type(value_of(RunConfig(), section)).__name__ if section else ""
    return schema["$defs"][owner] if owner else schema


def _default(key: str) -> Any:
    value = value_of(RunConfig(), key)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _name(key: str, action: argparse.Action) -> str:
    """Return a key with an anchor of its own, and the short spelling of its flag."""
    short = [spelling for spelling in action.option_strings if spelling != f"--{key.replace('_', '-')}"]
    return f'<span id="{key}"></span>{code(key)}' + "".join(f"<br>{code(spelling)}" for spelling in short)
