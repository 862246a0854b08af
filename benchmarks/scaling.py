"""Training in one process and in several on this machine: pairs per second, communicated bytes and time.

    python -m benchmarks.scaling                       # ViT-B/16 at 384 x 128 with random weights: half an hour
    python -m benchmarks.scaling --quick               # small sizes, a short trial

Every run is `cskt train`, under `torchrun` for several processes, with the same total batch; the values come from its
metrics.jsonl. Runs alternate, and medians are compared. Processes share the cores of the machine, so two processes with
one thread each are compared with one process with one thread and with two. `benchmarks.scaling_plan` projects to more
machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from benchmarks import measure
from benchmarks.towers import THIN, VIT_B_16
from cskt.data.paperdoll import make_dataset
from cskt.training.events import read_events

RUNS = ((1, 1), (2, 1), (1, 2))
"""(processes, threads per process)"""
BATCH_SIZE, NUM_STEPS, ROUNDS = 16, 4, 3
CAPTIONS_PER_PERSON = 8
"""Captions of a generated person: four images with two captions each."""
METHODS = ("cskt", "finetune")
"""Recipes: CSKT trains 7 % of the parameters, fine-tuning all."""


@dataclass(frozen=True)
class Measured:
    """A training in a number of processes; medians over steps and rounds, without the first step of each round."""

    method: str
    processes: int
    threads: int
    step_seconds: float
    gathered_bytes: float
    """Bytes of features that a process receives per step."""
    added_up_bytes: float
    """Bytes of gradients that are all-reduced per step."""
    exchange_share: float
    """Share of time in which rank 0 communicates or waits for other processes."""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, says nothing of speed")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="recipes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    machine = measure.machine() | {"batch_size": BATCH_SIZE, "rounds": args.rounds, "quick": args.quick}
    found = [row for method in args.methods for row in measured(method, args.rounds, quick=args.quick)]
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(table(found))
    if args.json:
        content = {"machine": machine, "runs": [asdict(row) for row in found]}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def measured(method: str, rounds: int, *, quick: bool) -> list[Measured]:
    """Measure every run of `RUNS`, alternating."""
    steps: dict[tuple[int, int], list[dict[str, float]]] = {run: [] for run in RUNS}
    with tempfile.TemporaryDirectory() as scratch:
        config = write_config(Path(scratch), method, quick=quick)
        for number in range(rounds):
            for processes, threads in RUNS:
                folder = Path(scratch) / f"{processes}-{threads}-{number}"
                steps[processes, threads] += train(config, folder, processes, threads)
    return [_middle(method, processes, threads, found) for (processes, threads), found in steps.items()]


def write_config(folder: Path, method: str, *, quick: bool) -> Path:
    """Write a config over random weights, with just enough people for the steps and no evaluation before the end."""
    make_dataset(
        folder / "dolls", seed=1,
        ids={"train": BATCH_SIZE * NUM_STEPS // CAPTIONS_PER_PERSON, "val": 1, "test": 1},
    )  # fmt: skip
    content = {
        "base": method, "device": "cpu", "precision": "fp32",
        "backbone": {"architecture": dataclasses.asdict(THIN if quick else VIT_B_16)},
        "data": {"root": str(folder / "dolls"), "batch_size": BATCH_SIZE, "num_workers": 0, "cache_images": True},
        "loop": {"num_epochs": 1, "evaluate_before": False, "log_period_steps": 1},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def train(config: Path, folder: Path, processes: int, threads: int) -> list[dict[str, float]]:
    """Return the step events of a run without the first, each with its own `step_seconds`."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "cskt", "train", "--config", str(config), "--output", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    steps: list[dict[str, Any]] = [event for event in read_events(folder) if event["event"] == "step"]
    return [after | {"step_seconds": after["seconds"] - before["seconds"]} for before, after in pairwise(steps)]


def _middle(method: str, processes: int, threads: int, steps: Sequence[dict[str, float]]) -> Measured:
    def median(name: str) -> float:
        return statistics.median(step.get(name, 0.0) for step in steps)

    names = [field.name for field in dataclasses.fields(Measured)][3:]
    return Measured(method, processes, threads, *(median(name) for name in names))


def table(rows: Sequence[Measured]) -> str:
    """Format Markdown with the speed-up over the first row of a method and the communication per process."""
    head = ["| method | processes x threads | s a step | times as fast | gathered | gradients reduced | exchanging |"]
    lines = [*head, "|---|---|---|---|---|---|---|"]
    for row in rows:
        first = next(one for one in rows if one.method == row.method)
        cells = [row.method, f"{row.processes} x {row.threads}", f"{row.step_seconds:.2f}"]
        cells += [f"{first.step_seconds / row.step_seconds:.2f}"]
        alone = row.processes == 1
        exchanged = (f"{row.gathered_bytes / 1e3:.1f} kB", f"{row.added_up_bytes / 1e6:.1f} MB")
        cells += ["", "", ""] if alone else [*exchanged, f"{row.exchange_share:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
