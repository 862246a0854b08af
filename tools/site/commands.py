"""Pages of the reference: every command, from its argparse parser."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from typing import Any
from unittest import mock

from markdown_text import block, code, escape, table

from cskt.cli.main import ABOUT_COMMON_FLAGS, COMMANDS, module_of
from cskt.cli.parsing import OVERRIDE, Parser

SECTION = "reference/commands"


class Built(BaseException):
    """Raised by a command in place of parsing; no Exception, which the command would handle."""


def parser_of(command: str) -> Parser:
    """Return the parser that a command builds."""

    def stop(parser: Parser, argv: Sequence[str], **_: Any) -> None:
        raise Built(parser)

    with mock.patch.object(Parser, "parse", stop):
        try:
            importlib.import_module(module_of(command)).main([])
        except Built as built:
            parser: Parser = built.args[0]
            return parser
    raise RuntimeError(f"cskt {command} parses no flags")


def path_of(command: str) -> str:
    """Return the page of a command."""
    return f"{SECTION}/cskt-{command.replace(' ', '-')}.md"


def pages() -> dict[str, str]:
    """Return path -> Markdown: a page of all commands, and one for each."""
    rows = [
        [f"[cskt {command}]({path_of(command).rpartition('/')[2]})", escape(about)]
        for command, about in COMMANDS.items()
    ]
    index = f"# Commands\n\n{table(['command', 'purpose'], rows)}\n{escape(ABOUT_COMMON_FLAGS)}\n"
    return {f"{SECTION}/index.md": index} | {path_of(command): page(command) for command in COMMANDS}


def page(command: str) -> str:
    """Return the page of a command."""
    parser = parser_of(command)
    usage = re.sub(r"\x1b\[[0-9;]*m", "", parser.format_usage()).removeprefix("usage: ").replace("\n       ", "\n")
    parts = [f"# cskt {command}\n", prose(parser.description or COMMANDS[command]), block(usage)]
    has_config = False
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        keys = [action for action in actions if action.dest.startswith(OVERRIDE)]
        has_config = has_config or bool(keys)
        if rows := [_row(action, parser) for action in actions if action not in keys]:
            title = f"{group.title}"
            about = f"{escape(group.description)}\n" if group.description else ""
            parts += [f"## {title[:1].upper()}{title[1:]}\n", about, table(["", "meaning"], rows)]
    if has_config:
        parts.append("## Config keys\n\nEvery key of a config is a flag as well: [Config keys](../config.md).\n")
    if parser.epilog:
        title, _, examples = parser.epilog.partition(":\n")
        parts += [f"## {title.capitalize()}\n", block(_dedented(examples))] if examples else [prose(parser.epilog)]
    return "\n".join(part for part in parts if part)


def _row(action: argparse.Action, parser: Parser) -> list[str]:
    """Return the spellings of a flag or an argument, and its help with the defaults filled in."""
    formatter = parser._get_formatter()
    value = (
        formatter._format_args(action, formatter._get_default_metavar_for_optional(action)) if action.nargs != 0 else ""
    )
    if not action.option_strings:
        value = str(action.metavar or action.dest)
        if action.choices:
            value = ", ".join(map(str, action.choices))
    spellings = ", ".join(action.option_strings)
    return [code(f"{spellings} {value}".strip()), escape(formatter._expand_help(action)) if action.help else ""]


def prose(text: str) -> str:
    """Return a text of a help: paragraphs, those with indented lines as they are."""
    paragraphs = [part for part in text.strip("\n").split("\n\n") if part.strip()]
    shown = [block(_dedented(part)) if part.startswith(" ") else escape(part) for part in paragraphs]
    return "\n\n".join(shown) + "\n"


def _dedented(text: str) -> str:
    return "\n".join(line.removeprefix("  ") for line in text.splitlines())
