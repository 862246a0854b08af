"""Printed lists, cut where they are long."""

from __future__ import annotations

from collections.abc import Sequence

from cskt.utils.terminal import printable

MAX_LISTED = 20
"""Lines of one kind that are printed; `--json` has all."""


def print_first(start: str, lines: Sequence[str], *, all_by: str = "--json") -> None:
    """Print the first lines, each behind `start`, and what lists all of them if there are more."""
    for line in lines[:MAX_LISTED]:
        print(printable(f"{start}{line}"))
    if len(lines) > MAX_LISTED:
        print(f"{start}and {len(lines) - MAX_LISTED:,} more; {all_by} lists all")
