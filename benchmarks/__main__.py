"""All measurements with a target, in one table: `python -m benchmarks`, or `make bench`.

    python -m benchmarks --json bench.json
    python -m benchmarks --only towers,metrics

Each module runs in its own process, one after the other, so that memory and threads are not shared.
"""

from __future__ import annotations

import sys

import torch

from benchmarks import measure
from benchmarks.measure import Row

TABLES = ("towers", "train_step", "selection", "methods", "inexact", "metrics", "data", "growth", "startup")
"""Modules of this folder with a function `rows(quick)`, in the order of the table."""


def measured(name: str, quick: bool, threads: int) -> list[Row]:
    """Return the rows of one table and report progress on stderr."""
    print(f"measuring {name} ...", file=sys.stderr, flush=True)
    return measure.in_own_process(f"benchmarks.{name}", quick, threads)


def main() -> None:
    """Measure the tables and print them as one."""
    parser = measure.parser(__doc__)
    parser.add_argument("--only", metavar="NAMES", help=f"of {', '.join(TABLES)}, separated by commas")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else TABLES
    if unknown := sorted({*names} - {*TABLES}):
        parser.error(f"--only {unknown[0]}: no such table; choose from {', '.join(TABLES)}")
    torch.set_num_threads(args.threads)
    before = measure.machine()
    rows = [row for name in names for row in measured(name, args.quick, args.threads)]
    measure.show(rows, args, before)


if __name__ == "__main__":
    main()
