"""Shared parts of the measurements: alternating timing of two implementations, peak memory, the table of targets.

Both implementations alternate in one process, and the medians of their processor seconds are compared: elapsed seconds
depend on what else runs on a machine, processor seconds little. By default everything has one thread.
Peak memory is measured in a separate process, because a process rarely returns memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cskt.device import peak_memory_bytes, reset_peak_memory

THREADS = 1
"""Default number of threads. With more, processor seconds include those that threads wait for each other."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One task, with the baseline and with our code."""

    work: str
    """Description of the task, for example "text encode, captions of 20 to 60 tokens"."""
    variant: str
    """Arithmetic or mode of our code: float32, bf16, int8, cached."""
    baseline: str
    """Description of the baseline."""
    baseline_seconds: float
    """Median of its processor seconds."""
    seconds: float
    """Median of ours."""
    bar: float | None = None
    """Required ratio; None if there is no target."""
    facts: dict[str, float | int | str] = field(default_factory=dict)
    """Differences, peak memory and sizes, with units in the names."""
    at_most: dict[str, float] = field(default_factory=dict)
    """Upper limits of facts."""
    at_least: dict[str, float] = field(default_factory=dict)
    """Lower limits of facts."""

    def __post_init__(self) -> None:
        assert self.at_most.keys() | self.at_least.keys() <= self.facts.keys(), "a limit names one of the facts"

    @property
    def ratio(self) -> float:
        """Speed relative to the baseline."""
        return self.baseline_seconds / self.seconds

    @property
    def met(self) -> bool | None:
        """True if the ratio and all facts meet their targets; None without targets."""
        asked = [float(self.facts[name]) <= limit for name, limit in self.at_most.items()]
        asked += [float(self.facts[name]) >= limit for name, limit in self.at_least.items()]
        if self.bar is not None:
            asked.append(self.ratio >= self.bar)
        return all(asked) if asked else None


def processor_seconds() -> float:
    """Return the processor time of this process, and of the processes that it has started and waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def alternate(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the processor seconds of every call, alternating, `repeats` times after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            started = processor_seconds()
            call()
            if turn:
                seconds[name].append(processor_seconds() - started)
    return seconds


def medians(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median processor seconds of every call of `alternate`."""
    return {name: statistics.median(seconds) for name, seconds in alternate(calls, repeats).items()}


def memory_above_start(work: Callable[[], object]) -> int:
    """Return the peak memory of this process during `work` in bytes, above that before it; 0 if unknown.

    Use a process that does nothing else: memory that was freed earlier is reused without being counted.
    """
    reset_peak_memory(CPU)
    start = peak_memory_bytes(CPU)  # the peak was just set to what is held now
    work()
    return peak_memory_bytes(CPU) - start


def peak_memory(module: str, *arguments: str) -> int:
    """Run `python -m module *arguments` and return the bytes in its last line, its `memory_above_start`."""
    command = [sys.executable, "-m", module, *arguments]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def in_own_process(module: str, quick: bool, threads: int) -> list[Row]:
    """Return `rows(quick)` of a module, run in a new process with a number of threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_rows_of, module, quick, threads).result()


def _rows_of(module: str, quick: bool, threads: int) -> list[Row]:
    torch.set_num_threads(threads)
    return importlib.import_module(module).rows(quick)


def machine() -> dict[str, str | int | float]:
    """Return facts of the machine, and its load before the measurement."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_average_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1,
    }


def table(rows: Sequence[Row]) -> str:
    """Format the rows as aligned text, each followed by its facts."""
    head = ("work", "variant", "baseline s", "ours s", "ratio", "bar", "met")
    cells = [head] + [
        (
            row.work,
            row.variant,
            f"{row.baseline_seconds:.3f}",
            f"{row.seconds:.3f}",
            f"{row.ratio:.2f}",
            "" if row.bar is None else f"{row.bar:g}",
            {None: "", True: "yes", False: "NO"}[row.met],
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = []
    for number, line in enumerate(cells):
        words = (
            text.ljust(width) if at < 2 else text.rjust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("  ".join(words).rstrip())
        if number:
            row = rows[number - 1]
            lines.append(f"    against {row.baseline}")
            lines.extend(f"    {name}: {_figure(value)}{_asked(row, name)}" for name, value in row.facts.items())
    return "\n".join(lines)


def as_json(rows: Sequence[Row], **facts: object) -> dict[str, Any]:
    """Return the rows with their ratios and the `facts` of the machine for a JSON file."""
    return {"machine": facts, "rows": [dataclasses.asdict(row) | {"ratio": row.ratio, "met": row.met} for row in rows]}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every table has: --quick, --threads, --json."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, says nothing of speed")
    made.add_argument("--threads", type=int, default=THREADS)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    return made


def show(rows: Sequence[Row], args: argparse.Namespace, before: Mapping[str, object]) -> None:
    """Print the table and the facts of the machine, and write the JSON file if one is given.

    Targets are for full sizes and do not apply with --quick.
    """
    if args.quick:
        rows = [dataclasses.replace(row, bar=None, at_most={}, at_least={}) for row in rows]
        before = {**before, "quick": True}
    print(", ".join(f"{name} {value}" for name, value in before.items()))
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(as_json(rows, **before), indent=1) + "\n", encoding="utf-8")


def main(rows: Callable[[bool], list[Row]], description: str | None) -> None:
    """Run a module of measurements without options of its own: `measure.main(rows, __doc__)`."""
    args = parser(description).parse_args()
    torch.set_num_threads(args.threads)
    before = machine()
    show(rows(args.quick), args, before)


def _figure(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _asked(row: Row, name: str) -> str:
    most = f" (at most {row.at_most[name]:g})" if name in row.at_most else ""
    return f"{most} (at least {row.at_least[name]:g})" if name in row.at_least else most
