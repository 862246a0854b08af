"""Retrieval metrics: ours compared with an evaluator that sorts the whole matrix; memory at the size of ICFG-PEDES.

    python -m benchmarks.metrics

Features are random with a part shared by the captions and images of a person, so that ranks vary from first to last.
Each person has 20 images, about as many as in ICFG-PEDES.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Row
from cskt import metrics
from cskt.device import peak_memory_bytes
from cskt.types import RetrievalMetrics

WIDTH = 512
IMAGES_PER_PERSON = 20
IN_COMMON = 0.4
"""Weight of the shared part of a feature; the noise has one per dimension."""
SIDE, ICFG_PEDES = 10_000, 19_848
"""Number of captions, and of images."""
REPEATS = 5
FIGURES = ("r1", "r5", "r10", "mean_ap", "mean_inp")
GIGABYTE = 1e9
DIFFERENCE = "R1, R5, R10, mAP, mINP: largest difference"


class Retrieval(NamedTuple):
    """Input of an evaluator."""

    queries: Tensor
    """[Q, D], rows of length 1."""
    gallery: Tensor
    """[G, D], rows of length 1."""
    query_ids: Tensor
    gallery_ids: Tensor


def draw(side: int) -> Retrieval:
    """Return `side` captions and as many images of side / 20 people, shuffled."""
    generator = torch.Generator().manual_seed(1)
    pids = torch.arange(side) % max(1, side // IMAGES_PER_PERSON)
    people = torch.randn(int(pids.max()) + 1, WIDTH, generator=generator)
    sides = [F.normalize(torch.randn(side, WIDTH, generator=generator) + IN_COMMON * people[pids]) for _ in range(2)]
    return Retrieval(sides[0], sides[1], pids, pids)


def sorting(given: Retrieval) -> dict[str, float]:
    """Compute metrics in the usual way: sort all similarities and take cumulative sums over rows."""
    similarity = given.queries @ given.gallery.T
    order = similarity.argsort(dim=1, descending=True, stable=True)
    right = given.gallery_ids[order] == given.query_ids[:, None]
    ranks = torch.arange(1, len(given.gallery) + 1)
    found, num_right = right.cumsum(dim=1), right.sum(dim=1)
    precision = (found / ranks.double() * right).sum(dim=1) / num_right
    last = (right * ranks).amax(dim=1)
    recalls = {f"r{k}": (found[:, k - 1] > 0).double().mean().item() for k in (1, 5, 10)}
    return {**recalls, "mean_ap": precision.mean().item(), "mean_inp": (num_right / last.double()).mean().item()}


def ours(given: Retrieval) -> RetrievalMetrics:
    """Assumes that every query has a relevant image."""
    return metrics.from_features(*given)


def rows(quick: bool = False) -> list[Row]:
    """Measure one row; its facts include the size of ICFG-PEDES, where sorting needs about 15 GB."""
    side, large, repeats = (400, 1000, 1) if quick else (SIDE, ICFG_PEDES, REPEATS)
    given = draw(side)
    expected, found = sorting(given), ours(given)
    difference = max(abs(expected[name] - getattr(found, name)) for name in FIGURES)
    seconds = measure.medians({"sorting": lambda: sorting(given), "ours": lambda: ours(given)}, repeats)
    many = draw(large)
    started = measure.processor_seconds()
    ours(many)
    large_seconds = measure.processor_seconds() - started
    del many
    at_large = f"at {large:,} x {large:,}"
    process, call = (f"{at_large}: most memory {of}, GB" for of in ("of the process", "above the start of the call"))
    held = {
        name: measure.peak_memory("benchmarks.metrics", "--memory", what, "--side", str(large)) / GIGABYTE
        for name, what in ((process, "process"), (call, "call"))
    }
    return [
        Row(
            work=f"metrics, {side:,} x {side:,}, {WIDTH} dimensions",
            variant="float32",
            baseline="an evaluator that sorts the whole matrix",
            baseline_seconds=seconds["sorting"],
            seconds=seconds["ours"],
            bar=6.0,
            facts={"mAP": found.mean_ap, DIFFERENCE: difference, f"{at_large}: seconds": large_seconds, **held},
            at_most={DIFFERENCE: 1e-9, process: 1.0},
        )
    ]


def memory(what: str, side: int) -> int:
    """Return peak memory in bytes: `process`, including torch and the features, and `call`, above that before it.

    Use a process that does nothing else.
    """
    given = draw(side)
    call = measure.memory_above_start(lambda: ours(given))
    return call if what == "call" else peak_memory_bytes(measure.CPU)


def main() -> None:
    """Print the row, or one memory value."""
    parser = measure.parser(__doc__)
    parser.add_argument("--memory", choices=("process", "call"), help="print only these bytes")
    parser.add_argument("--side", type=int, default=ICFG_PEDES, help="captions and images for --memory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(memory(args.memory, args.side))
        return
    before = measure.machine()
    measure.show(rows(args.quick), args, before)


if __name__ == "__main__":
    main()
