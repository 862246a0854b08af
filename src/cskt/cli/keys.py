"""`cskt keys`: the named keys of a service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from cskt.cli.parsing import Parser
from cskt.errors import CsktError
from cskt.service.access.keys import KeyFile, Scope, add_key, revoke_key, warn_of_other_writers

DESCRIPTION = """\
List the keys in a file of `cskt serve --key-file FILE`, add one, or revoke one. A running service follows at once. Give
every person and every program a key of its own: the audit log has its name, and it can be revoked alone. The file holds
no key, only digests; a new key is printed once, and can never be shown again.
"""
EXAMPLES = """\
examples:
  cskt keys keys.json --add alice                          prints a key that may search
  cskt keys keys.json --add detector --scope write > key   a key that may add and delete, too
  cskt keys keys.json                                      names, scopes, dates
  cskt keys keys.json --revoke alice                       ends the sessions of browsers as well
"""


def main(argv: Sequence[str]) -> int:
    """See `cskt keys --help`."""
    parser = Parser(prog="cskt keys", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE", help="key file; --add makes it if it is missing")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--add", metavar="NAME", help="add a key, and print it")
    change.add_argument("--revoke", metavar="NAME", help="remove a key")
    parser.add_argument("--scope", choices=get_args(Scope), help="rights of a new key (default: read)")
    flags = parser.parse(argv)
    if flags.scope is not None and flags.add is None:
        raise CsktError("--scope is for a new key; give --add NAME, too")
    if flags.add is not None:
        print(add_key(flags.file, flags.add, flags.scope or "read"))
    elif flags.revoke is not None:
        revoke_key(flags.file, flags.revoke)
        print(f"revoked: {flags.revoke}")
    else:
        keys = KeyFile(flags.file).read()
        width = max((len(key.name) for key in keys), default=0)
        for key in keys:
            print(f"{key.name:<{width}}  {key.scope:<5}  {key.created}")
    warn_of_other_writers(flags.file)
    return 0
