"""`cskt gallery erase`: everything about crops deleted, and all files searched for what is left."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cskt.cli.listing import print_first
from cskt.cli.parsing import Parser
from cskt.gallery.erasing import EraseReport
from cskt.gallery.gallery import Gallery
from cskt.utils.terminal import json_text

DESCRIPTION = """\
Delete everything about crops from the folder of a gallery: rows, vectors, thumbnails, uploaded originals, older
versions of the store, and their names in its audit log, which become asterisks. The store is written again as a
whole. Then all files of the folder are searched for each crop's name, vector and pictures; the exit code is 1 if
something is found. Without --yes nothing is changed. Without names, what crops that were removed earlier have left is
deleted.
"""
EXAMPLES = """\
examples:
  cskt gallery erase my-gallery live/1 live/2         says what would be deleted
  cskt gallery erase my-gallery live/1 live/2 --yes
"""
UNTOUCHED = "not touched: backups, archives of the gallery, snapshots of disks, audit logs outside the folder"


def main(argv: Sequence[str]) -> int:
    """See `cskt gallery erase --help`."""
    parser = Parser(prog="cskt gallery erase", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="folder of the gallery")
    parser.add_argument("names", nargs="*", metavar="NAME", help="name of a crop")
    add_erase_flags(parser)
    flags = parser.parse(argv)
    with Gallery.open(flags.gallery, device="cpu") as gallery:
        return erase(gallery, flags.names, flags)


def add_erase_flags(parser: Parser) -> None:
    """Add the flags of commands that erase crops."""
    parser.add_argument("--yes", action="store_true", help="delete; without it, only say what would be deleted")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of lines")


def erase(gallery: Gallery, names: Sequence[str], flags: argparse.Namespace) -> int:
    """Erase crops as the flags of `add_erase_flags` say, print the report, and return the exit code."""
    report = gallery.erase(names, dry_run=not flags.yes)
    if flags.json:
        facts = vars(report) | {"files": [str(path) for path in report.files], "dry_run": not flags.yes}
        print(json_text(facts, indent=1))
    else:
        _print(report, is_done=flags.yes)
    return 1 if report.found or (flags.yes and not report.purged) else 0


def _print(report: EraseReport, *, is_done: bool) -> None:
    print(f"{'erased' if is_done else 'would erase'}: {len(report.erased):,} crops")
    print_first("  ", report.erased)
    if report.unknown:
        print(f"not in the gallery: {len(report.unknown):,}")
        print_first("  ", report.unknown)
    if report.files:
        print(f"files of the indexed folder; delete them, or the next indexing adds them again: {len(report.files):,}")
        print_first("  ", list(map(str, report.files)))
    if is_done:
        if not report.purged:
            print("the store cannot say whether it has kept older versions: see the manual of its server")
        place = f"{report.num_files:,} files ({report.num_bytes:,} bytes) of the gallery folder"
        print_first("not searched for: ", report.not_searched)
        if report.found:
            print(f"searched {place}, and found:")
            print_first("  ", [f"{file}: {what}" for file, what in report.found])
            print("another crop may show the same picture; delete files that are not the gallery's yourself")
        else:
            result = "nothing was found" if report.not_searched else "nothing of these crops is left"
            print(f"searched {place}: {result}")
    print(UNTOUCHED)
    if not is_done:
        print("nothing was changed; to delete, give --yes")
