"""Requirements of 10 and 100 million crops on a Milvus cluster, projected from measurements at small sizes.

    python -m benchmarks.milvus_plan --json FILE         # measures, then projects; 7 minutes of processor time
    python -m benchmarks.milvus_plan --quick             # small sizes, a short trial
    python -m benchmarks.milvus_plan --measured benchmarks/milvus_measured.json --node-bytes 128e9    # projects again

Milvus stores vectors in segments and searches each separately. A larger gallery has more segments, not larger ones, and
the largest measured size is about one full segment, so mostly their number is extrapolated. `docs/large-galleries.md`
has the formulas. Needs `pip install faiss-cpu`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.milvus_projection import GB, Assumptions, Plan, Row, diskann_plan, grown, plan
from benchmarks.milvus_sizes import (
    DIM,
    INDEXES,
    IndexSize,
    crop_of,
    crops_of,
    measure_index,
    rows_written_per_second,
)
from cskt.gallery.stores.milvus.collection import to_row

SIZES = (10_000, 40_000, 160_000)
QUICK = (1000, 2000, 4000)
PROJECTED = (10_000_000, 100_000_000)
WRITTEN = 5000
"""Number of crops that are serialised, those of one or two commits."""


@dataclass(frozen=True)
class Measured:
    """All measurements at small sizes."""

    machine: dict[str, Any]
    row: Row
    indexes: list[IndexSize]

    @classmethod
    def read(cls, path: Path) -> Measured:
        """Read a file written by `--json`."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            content["machine"],
            Row(**content["row"]),
            [IndexSize(**size) for size in content["indexes"]],
        )


def measured_row() -> Row:
    """Bytes of a crop as our store writes it."""
    row = to_row(crop_of(1, crops_of(10)[1]), {"camera": "text"}, "camera")
    thumbnail = len(row.pop("thumbnail"))
    vector = row.pop("vector").nbytes
    # A double, an int64; a bool is a byte. Texts of the dynamic field carry their keys, as Milvus keeps it as JSON.
    sizes = [len(name) + len(value) if isinstance(value, str) else 8 for name, value in row.items()]
    return Row(vector, sum(sizes), thumbnail, rows_written_per_second(WRITTEN))


def plans(measured: Measured, given: Assumptions) -> list[Plan]:
    """Return the plan of every index at every projected size."""
    found = []
    for crops in PROJECTED:
        for name in dict.fromkeys(size.index for size in measured.indexes):
            found.append(plan([size for size in measured.indexes if size.index == name], crops, measured.row, given))
        found.append(diskann_plan(crops, measured.row, given))
    return found


def index_table(sizes: Sequence[IndexSize]) -> str:
    """Format the measured indexes, with the time predicted from the two smaller sizes."""
    rows = []
    for size in sizes:
        before = [each for each in sizes if each.index == size.index and each.crops < size.crops]
        predicted = grown(before, lambda each: each.search_seconds, size.crops) if len(before) > 1 else None
        cells = [size.index, f"{size.crops:,}", f"{1e3 * size.build_core_seconds / size.crops:.2f} ms"]
        cells += [f"{size.index_bytes / size.crops:,.0f} B", f"{size.read_bytes / 1e6:,.1f} MB"]
        cells += [f"{1e3 * size.search_seconds:.2f} ms", "" if predicted is None else f"{1e3 * predicted:.2f} ms"]
        rows.append([*cells, f"{1e3 * size.crowded_seconds:.2f} ms", f"{size.recall:.3f}"])
    head = ["index", "crops", "build per crop", "index per crop", "read by a query", "query", "predicted", "both cores"]
    return markdown([*head, "recall"], rows)


def plan_table(found: Sequence[Plan]) -> str:
    """Format the projection."""
    rows = []
    for each in found:
        cells = [f"{each.crops // 1_000_000} M", each.index, f"{each.segments:,}", f"{each.shards}"]
        cells += [f"{each.memory_bytes / GB:,.0f} GB", f"{each.nodes}", f"{each.disk_bytes / GB:,.0f} GB"]
        cells += [f"{each.write_hours:.1f} h", "not known" if each.build_hours is None else f"{each.build_hours:.1f} h"]
        rows.append([*cells, "not known" if each.p50_seconds is None else f"{1e3 * each.p50_seconds:.0f} ms"])
    head = ["crops", "index", "segments", "shards", "memory", "query nodes", "disk", "writing, at least"]
    return markdown([*head, "index build", "p50"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def measure_all(quick: bool, num_queries: int, threads: int, keep: Callable[[Measured], None]) -> Measured:
    """Measure every index at every size, printing each result."""
    measured = Measured(measure.machine(), measured_row(), [])
    for name, crops in itertools.product(INDEXES, QUICK if quick else SIZES):
        print(f"measuring {name}, {crops:,} crops ...", file=sys.stderr, flush=True)
        measured.indexes.append(measure_index(name, crops, num_queries, threads))
        keep(measured)
    return measured


def main() -> None:
    """Print the tables of `docs/large-galleries.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, says nothing of size")
    parser.add_argument("--queries", type=int, default=100, help="of each measurement")
    parser.add_argument("--threads", type=int, default=measure.THREADS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="project from that file; measure nothing")
    for each in fields(Assumptions):
        kind = type(each.default)
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=kind, default=each.default, help="(%(default)s)")
    flags = parser.parse_args()
    given = Assumptions(**{each.name: getattr(flags, each.name) for each in fields(Assumptions)})

    def keep(measured: Measured) -> None:
        if flags.json:
            flags.json.write_text(json.dumps(asdict(measured), indent=1) + "\n", encoding="utf-8")

    if flags.measured:
        measured = Measured.read(flags.measured)
    else:
        measured = measure_all(flags.quick, flags.queries, flags.threads, keep)
    print(", ".join(f"{name} {value}" for name, value in measured.machine.items()))
    print(f"\nMEASURED: one segment of vectors of {DIM} numbers, faiss\n\n{index_table(measured.indexes)}")
    print(f"\nPROJECTION, not measured, from {measured.row}\nand {given}\n\n{plan_table(plans(measured, given))}")


if __name__ == "__main__":
    main()
