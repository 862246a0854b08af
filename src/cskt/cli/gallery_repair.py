"""`cskt gallery repair`: what `cskt gallery check` found, corrected as far as that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskt.cli.gallery_check import print_findings
from cskt.cli.parsing import Parser
from cskt.gallery.gallery import Gallery

DESCRIPTION = """\
Delete rows of a gallery that cannot be read, uploaded files that no crop needs, and what killed programs have left, and
compact the store. The indexed folder is not touched. Without --yes nothing is changed. The exit code is 1 if there are
findings that only you can correct.
"""
EXAMPLES = """\
examples:
  cskt gallery repair my-gallery          says what would be deleted
  cskt gallery repair my-gallery --yes
"""


def main(argv: Sequence[str]) -> int:
    """See `cskt gallery repair --help`."""
    parser = Parser(prog="cskt gallery repair", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="folder of the gallery")
    parser.add_argument("--yes", action="store_true", help="delete; without it, only say what would be deleted")
    flags = parser.parse(argv)
    with Gallery.open(flags.gallery, device="cpu") as gallery:
        if flags.yes:
            report = gallery.repair()
            print(f"deleted: {report.rows:,} rows, {len(report.files):,} files; the store is compact")
            remaining = report.remaining
        else:
            findings = gallery.check().findings
            repairable = [finding for finding in findings if finding.is_repairable]
            remaining = [finding for finding in findings if not finding.is_repairable]
            print(f"to repair: {len(repairable):,}")
            print_findings(repairable)
    print(f"to correct by you: {len(remaining):,}")
    print_findings(remaining)
    if not flags.yes:
        print("nothing was changed; to delete, give --yes" if repairable else "nothing was changed")
    return 1 if remaining else 0
