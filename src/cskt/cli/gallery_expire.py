"""`cskt gallery expire`: the crops that are older than a time, erased."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from cskt.cli.gallery_erase import add_erase_flags, erase
from cskt.cli.parsing import Parser
from cskt.errors import CsktError
from cskt.gallery.gallery import Gallery

DESCRIPTION = """\
Erase the crops whose time is longer ago, all of them or those that match a filter, as `cskt gallery erase` does.
Without --yes nothing is changed. Crops without a time are never old; their number is printed.
"""
EXAMPLES = """\
examples:
  cskt gallery expire my-gallery --older-than 30d
  cskt gallery expire my-gallery --older-than 7d --where "camera = 'entrance'" --yes     for a timer of the system
"""
HOURS = {"h": 1, "d": 24, "w": 24 * 7}
"""Hours in a unit of `--older-than`."""
MAX_DIGITS = 5


def main(argv: Sequence[str]) -> int:
    """See `cskt gallery expire --help`."""
    parser = Parser(prog="cskt gallery expire", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="folder of the gallery")
    parser.add_argument("--older-than", required=True, metavar="AGE", help="30d, 12h or 4w: days, hours, weeks")
    parser.add_argument(
        "--where", metavar="FILTER", help="only crops that match this filter, of one camera for example"
    )
    parser.add_argument("--column", metavar="NAME", help="column of the time (default: the only one that holds times)")
    add_erase_flags(parser)
    flags = parser.parse(argv)
    age = age_of(flags.older_than)
    with Gallery.open(flags.gallery, device="cpu") as gallery:
        names, num_without = gallery.expired(age, flags.where, column=flags.column)
        if num_without:
            print(f"crops without a time, which stay: {num_without:,}", file=sys.stderr)
        return erase(gallery, names, flags)


def age_of(text: str) -> timedelta:
    """Return the time that `30d`, `12h` or `4w` states."""
    found = re.fullmatch(rf"([0-9]{{1,{MAX_DIGITS}}})([{''.join(HOURS)}])", text)
    if not found or not int(found[1]):
        raise CsktError(f"--older-than is {text[:40]!r}; give a number of days, hours or weeks, such as 30d, 12h or 4w")
    return timedelta(hours=int(found[1]) * HOURS[found[2]])
