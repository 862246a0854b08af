"""`cskt completion`: completion of commands, flags and files in a shell, through argcomplete."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from typing import Any

import argcomplete
from argcomplete.shell_integration import shellcode

from cskt.cli.main import COMMANDS, module_of
from cskt.cli.parsing import Parser

SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = """\
Print what a shell needs to complete commands, flags and file names of cskt. Put one of these lines into the start file
of the shell:

  ~/.bashrc                    eval "$(cskt completion bash)"
  ~/.zshrc                     autoload -U bashcompinit && bashcompinit; eval "$(cskt completion zsh)"
  ~/.config/fish/config.fish   cskt completion fish | source
"""


def main(argv: Sequence[str]) -> int:
    """See `cskt completion --help`."""
    parser = Parser(prog="cskt completion", description=DESCRIPTION)
    parser.add_argument("shell", choices=SHELLS)
    print(shellcode(["cskt"], shell=parser.parse(argv).shell))
    return 0


def complete() -> None:
    """Answer a shell that asks for completions, and end the process.

    The shell's line is in COMP_LINE and its cursor in COMP_POINT. Once the line names a command, the parser of that
    command answers (`Parser.parse`), and sees a line without the words of the command.
    """
    line = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="ignore")
    program, *words = line.split()
    finished = words if line[-1:].isspace() else words[:-1]
    for command in COMMANDS:
        length = len(command.split())
        if finished[:length] == command.split():
            rest = line.split(maxsplit=length + 1)[length + 1 :]
            line = f"{program} {rest[0] if rest else ''}"
            os.environ.update(COMP_LINE=line, COMP_POINT=str(len(line.encode())))
            importlib.import_module(module_of(command)).main([])
    argcomplete.autocomplete(_names())


def _names() -> argparse.ArgumentParser:
    """Return a parser that knows the words of all commands, and nothing of their flags."""
    parser = argparse.ArgumentParser(prog="cskt", add_help=False)
    groups: dict[str, Any] = {"": parser.add_subparsers()}
    for command, summary in {**COMMANDS, "help": "the help of a command"}.items():
        group, _, name = command.rpartition(" ")
        if group not in groups:
            groups[group] = groups[""].add_parser(group, help=f"commands for {group}").add_subparsers()
        groups[group].add_parser(name, help=summary, add_help=False)
    return parser
