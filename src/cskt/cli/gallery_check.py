"""`cskt gallery check`: whether a gallery is intact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskt.cli.listing import print_first
from cskt.cli.parsing import Parser
from cskt.gallery.checking import Finding
from cskt.gallery.gallery import Gallery
from cskt.utils.terminal import json_text, printable

DESCRIPTION = """\
Read everything of a gallery, and report what is not as it should be: rows that cannot be read, uploads that are missing
or changed, files of the indexed folder that are gone or changed, files that no crop needs, and what killed programs
have left. Nothing is corrected, and changes of the gallery wait. The exit code is 1 if there are findings.
"""
EXAMPLES = """\
examples:
  cskt gallery check my-gallery
  cskt gallery check my-gallery --json
"""


def main(argv: Sequence[str]) -> int:
    """See `cskt gallery check --help`."""
    parser = Parser(prog="cskt gallery check", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("gallery", type=Path, metavar="GALLERY", help="folder of the gallery")
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of lines, with every finding")
    flags = parser.parse(argv)
    with Gallery.open(flags.gallery, device="cpu") as gallery:
        report = gallery.check()
    if flags.json:
        print(json_text(vars(report) | {"findings": [vars(finding) for finding in report.findings]}, indent=1))
    else:
        number = f"{len(report.findings):,}" if report.findings else "no"
        print(f"{flags.gallery}: {report.crops:,} crops, {report.uploads:,} uploads; findings: {number}")
        print_findings(report.findings)
    return 1 if report.findings else 0


def print_findings(findings: Sequence[Finding]) -> None:
    """Print findings by problem, the first places of each."""
    places: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        places.setdefault((finding.problem, finding.remedy), []).append(finding.place)
    for (problem, remedy), found in places.items():
        print(printable(f"{problem}; {remedy}: {len(found):,}"))
        print_first("  ", found, all_by="cskt gallery check --json")
