"""List the installed packages of constraints.txt with version and licence, as each states it.

    python tools/licences.py [--json]

A package that is not installed is listed without a licence; one that states none ends the program with exit code 1.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_INSTALLED = "not installed here"
LONGEST = 80
"""Characters of a licence in a field that some packages fill with the whole text."""


def licence_of(about: PackageMetadata) -> str:
    """Return the licence that a package states: an SPDX expression, else its classifiers, else its free text."""
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [text.split(" :: ") for text in about.get_all("Classifier", [])]
    if named := [words[-1] for words in classifiers if words[0] == "License" and words[-1] != "OSI Approved"]:
        return ", ".join(named)
    return (about.get("License") or "").strip().partition("\n")[0][:LONGEST]


def pinned() -> list[tuple[str, str]]:
    """Return name and version of the packages in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [(name, version) for name, _, version in (line.partition("==") for line in lines) if version]


def rows() -> list[tuple[str, str, str]]:
    """Return name, version and licence of every package."""
    found = []
    for name, version in pinned():
        try:
            about = metadata(name)
            found.append((name, about["Version"], licence_of(about)))
        except PackageNotFoundError:
            found.append((name, version, NOT_INSTALLED))
    return found


def main(arguments: list[str]) -> int:
    """Print the list and return the exit code."""
    listed = rows()
    if arguments == ["--json"]:
        print(json.dumps([dict(zip(("package", "version", "licence"), row, strict=True)) for row in listed], indent=1))
    else:
        widths = [max(len(row[column]) for row in listed) for column in range(2)]
        for name, version, licence in listed:
            print(f"{name:{widths[0]}}  {version:{widths[1]}}  {licence}".rstrip())
    silent = [name for name, _, licence in listed if not licence]
    print(f"{len(listed)} packages; without a licence: {', '.join(silent) or 'none'}", file=sys.stderr)
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
