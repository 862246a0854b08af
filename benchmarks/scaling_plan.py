"""Projection for 8 and 64 H100, from the counts of one training step and assumed speeds.

    python -m benchmarks.scaling_plan                            # counts a step, then projects: a minute on two cores
    python -m benchmarks.scaling_plan --gpu gpu-check.json     # with a step measured by benchmarks.gpu_check

Counted are kernels, the bytes that they read and write, operations, and bytes of gradients of a step at ViT-B/16, 384 x
128, captions padded to 48 tokens, in bfloat16 autocast, eager. `Device` has the speed of a device and `Links` that
of links; both are from data sheets and assumptions, not measured. A step of B pairs on N devices, with b = B / N
(rounded up) each:

    computing  = max(kernels x launch, bytes(b) / memory speed + operations(b) / matrix speed)
    loss       = bytes(B x B) / memory speed + 3 x 2 x B x B x D / float32 speed      computed by every device
    gathering  = 2 x ((N - 1) / N x B x D x 4 bytes / link + (N - 1) x latency)       features, once per tower
    reducing   = over a ring in each machine, and over one ring per device between M machines:
                 2 x (n - 1) / n x G / link + 2 x (M - 1) / M x G / n / network + (2 (n - 1) + 2 (M - 1)) x latency

with G bytes of gradients and n devices per machine. No overlap is assumed, because gradients are reduced after the
backward pass.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import CPU
from benchmarks.towers import VIT_B_16, draw_captions
from cskt import losses
from cskt.config import AdapterConfig, ClipArchitecture, OptimConfig, PromptConfig
from cskt.device import arithmetic
from cskt.model.dual_encoder import DualEncoder
from cskt.training.optim import build_optimizer

METHODS = ("CSKT", "fine-tuning")
SMALL, LARGE, LOSS_PAIRS = 1, 3, 256
"""Batch sizes of the counted steps, and of the counted loss."""
TRAINING_PAIRS, EPOCHS = 68_126, 60
"""CUHK-PEDES."""
BATCH_SIZE = 128
DEVICES = (1, 8, 64)


@dataclass(frozen=True)
class Device:
    """One H100 SXM; assumed, not measured."""

    bytes_per_second: float = 3e12
    """Memory bandwidth in a kernel; data sheet 3.35e12."""
    matrix_flops: float = 790e12
    """bfloat16 in large products; data sheet 989e12."""
    float32_flops: float = 60e12
    """float32; data sheet 67e12."""
    launch_seconds: float = 5e-6
    """Time per kernel launch by the host."""


@dataclass(frozen=True)
class Links:
    """Links, in one direction, from data sheets."""

    devices_per_machine: int = 8
    device_bytes_per_second: float = 450e9
    """NVLink 4, per device."""
    network_bytes_per_second: float = 50e9
    """InfiniBand NDR, 400 Gb/s, one adapter per device."""
    device_latency_seconds: float = 5e-6
    network_latency_seconds: float = 10e-6


NO_KERNELS = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
"""Operations without a kernel, besides those that PyTorch marks as views."""
H100, DGX = Device(), Links()


@dataclass(frozen=True)
class Step:
    """Counts of a training step of a method."""

    method: str
    kernels: float
    fixed_bytes: float
    """Bytes read and written independently of the batch."""
    pair_bytes: float
    fixed_flop: float
    pair_flop: float
    gradient_bytes: float
    loss_bytes: float
    """Bytes read and written by SDM, forward and backward, per similarity of the B x B."""
    embed_dim: int


class Counting(TorchDispatchMode):
    """Counter of kernel launches and of the bytes of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.num_bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation and count it unless it is a view."""
        result = func(*args, **(kwargs or {}))
        looks = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not looks and func.__name__.split(".")[0] not in NO_KERNELS:
            self.kernels += 1
            self.num_bytes += sum(held.nbytes for held in _tensors([*args, *(kwargs or {}).values(), result]))
        return result


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [one for value in values for one in _tensors(value)] if isinstance(values, list | tuple) else []


def counted(work: Callable[[], object]) -> tuple[int, int, int]:
    """Return kernels, bytes and operations of a call, which is made twice.

    PyTorch's counter knows no operations of the fused attention of CPUs, so these are counted with the plain one.
    """
    with Counting() as counts:
        work()
    with FlopCounterMode(display=False) as flops, sdpa_kernel(SDPBackend.MATH):
        work()
    return counts.kernels, counts.num_bytes, flops.get_total_flops()


def count_step(method: str, architecture: ClipArchitecture) -> Step:
    """Return the counts of a method by a line through a small and a larger batch; only the loss is not linear."""
    whole = method == "fine-tuning"
    model = DualEncoder(
        architecture,
        {} if whole else {"prompts": PromptConfig(depth=architecture.text_layers), "adapters": AdapterConfig()},
        trainable="all" if whole else "added",
    )
    generator = torch.Generator().manual_seed(1)
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    optimizer = build_optimizer(model.named_parameters(), OptimConfig())
    captions = draw_captions(LARGE, generator)
    images = torch.randn(LARGE, 3, architecture.image_height, architecture.image_width, generator=generator)

    def step(pairs: int) -> None:
        with arithmetic(CPU, "bf16"):
            image_features, text_features = model(images[:pairs], captions[:pairs])
        torch.autograd.backward(image_features.float().sum() + text_features.float().sum())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(SMALL)  # the optimiser makes its state
    small, large = counted(lambda: step(SMALL)), counted(lambda: step(LARGE))
    per_pair = [(more - less) / (LARGE - SMALL) for less, more in zip(small, large, strict=True)]
    return Step(
        method=method,
        kernels=large[0] + _loss_of(LOSS_PAIRS, architecture.embed_dim)[0],
        fixed_bytes=small[1] - SMALL * per_pair[1],
        pair_bytes=per_pair[1],
        fixed_flop=small[2] - SMALL * per_pair[2],
        pair_flop=per_pair[2],
        gradient_bytes=4 * model.num_parameters(trainable_only=True),
        loss_bytes=_loss_of(LOSS_PAIRS, architecture.embed_dim)[1] / LOSS_PAIRS**2,
        embed_dim=architecture.embed_dim,
    )


def _loss_of(pairs: int, embed_dim: int) -> tuple[int, int, int]:
    features = [torch.randn(pairs, embed_dim, requires_grad=True) for _ in range(2)]
    pids = torch.arange(pairs)
    return counted(lambda: torch.autograd.backward(losses.sdm(features[0], features[1], pids)))


@dataclass(frozen=True)
class Projection:
    """Projected training on a number of devices."""

    method: str
    devices: int
    batch_size: int
    computing_seconds: float
    loss_seconds: float
    gathering_seconds: float
    reducing_seconds: float

    @property
    def step_seconds(self) -> float:
        """Seconds per step."""
        return self.computing_seconds + self.loss_seconds + self.gathering_seconds + self.reducing_seconds

    @property
    def pairs_per_second(self) -> float:
        """Pairs per second of all devices."""
        return self.batch_size / self.step_seconds

    @property
    def num_steps(self) -> int:
        """Steps of all epochs."""
        return EPOCHS * math.ceil(TRAINING_PAIRS / self.batch_size)

    @property
    def minutes(self) -> float:
        """Time of all epochs, without evaluations."""
        return self.num_steps * self.step_seconds / 60


def project(
    step: Step,
    devices: int,
    batch_size: int,
    *,
    device: Device = H100,
    links: Links = DGX,
    pair_seconds: float | None = None,
) -> Projection:
    """Project a training with the formulas of this module.

    Args:
        pair_seconds: computing time per pair if measured, used instead of bytes and operations.
    """
    own = math.ceil(batch_size / devices)
    moved = (step.fixed_bytes + own * step.pair_bytes) / device.bytes_per_second
    worked = (step.fixed_flop + own * step.pair_flop) / device.matrix_flops
    busy = moved + worked if pair_seconds is None else own * pair_seconds
    similarities = batch_size**2
    loss_flop = 3 * 2 * similarities * step.embed_dim
    return Projection(
        step.method,
        devices,
        batch_size,
        computing_seconds=max(step.kernels * device.launch_seconds, busy),
        loss_seconds=similarities * step.loss_bytes / device.bytes_per_second + loss_flop / device.float32_flops,
        gathering_seconds=_gathering(devices, 4 * batch_size * step.embed_dim, links),
        reducing_seconds=_all_reduce_seconds(devices, step.gradient_bytes, links),
    )


def _gathering(devices: int, num_bytes: float, links: Links) -> float:
    """Return the seconds to gather the features of both towers over the slowest link between devices."""
    far = devices > links.devices_per_machine
    speed = links.network_bytes_per_second if far else links.device_bytes_per_second
    latency = links.network_latency_seconds if far else links.device_latency_seconds
    return 2 * ((devices - 1) / devices * num_bytes / speed + (devices - 1) * latency)


def _all_reduce_seconds(devices: int, num_bytes: float, links: Links) -> float:
    """Return the seconds to all-reduce gradients: a ring in each machine, then a ring between machines per device."""
    near, machines = min(devices, links.devices_per_machine), math.ceil(devices / links.devices_per_machine)
    within = (near - 1) / near * num_bytes / links.device_bytes_per_second + (near - 1) * links.device_latency_seconds
    share = (machines - 1) / machines * num_bytes / near
    between = share / links.network_bytes_per_second + (machines - 1) * links.network_latency_seconds
    return 2 * (within + between)


def projections(step: Step, pair_seconds: float | None = None) -> list[Projection]:
    """Project the published batch on more devices, then a batch that grows with them."""
    plans = [(devices, BATCH_SIZE) for devices in DEVICES]
    plans += [(devices, devices * BATCH_SIZE) for devices in DEVICES[1:]]
    return [project(step, devices, pairs, pair_seconds=pair_seconds) for devices, pairs in plans]


def plan_table(rows: list[Projection]) -> str:
    """Format Markdown; efficiency is pairs per second and device relative to one device."""
    lines = [
        "| method | devices | pairs per step | computing | loss | gathering | reducing | pairs/s | efficiency | steps,"
        f" {EPOCHS} epochs | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        alone = next(one for one in rows if one.method == row.method and one.devices == 1)
        parts = (row.computing_seconds, row.loss_seconds, row.gathering_seconds, row.reducing_seconds)
        efficiency = row.pairs_per_second / row.devices / alone.pairs_per_second
        cells = [row.method, str(row.devices), f"{row.batch_size:,}", *(f"{1e3 * part:.2f} ms" for part in parts)]
        cells += [f"{row.pairs_per_second:,.0f}", f"{efficiency:.0%}", f"{row.num_steps:,}", f"{row.minutes:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def step_table(steps: list[Step]) -> str:
    """Format the counts as Markdown."""
    lines = [
        "| method | kernels | bytes, fixed | bytes per pair | operations per pair | gradients | bytes per similarity |",
        "|---|---|---|---|---|---|---|",
    ]
    for step in steps:
        cells = [step.method, f"{step.kernels:,.0f}", f"{step.fixed_bytes / 1e9:.2f} GB"]
        cells += [f"{step.pair_bytes / 1e9:.2f} GB", f"{step.pair_flop / 1e9:.1f} GFLOP"]
        cells += [f"{step.gradient_bytes / 1e6:.1f} MB", f"{step.loss_bytes:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def timed_pair_seconds(path: Path, check: str) -> float:
    """Return the seconds per pair from the JSON file of `benchmarks.gpu_check`.

    Raises:
        SystemExit: the file has no such measurement.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))
    rates = {row["check"]: float(row["pairs_per_s"]) for row in rows if "pairs_per_s" in row}
    if check not in rates:
        raise SystemExit(f"{path}: no measurement '{check}'; choose from {', '.join(rates)}")
    return 1 / rates[check]


def main() -> None:
    """Count, project and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=Path, metavar="FILE", help="JSON of benchmarks.gpu_check; its step is CSKT's")
    parser.add_argument("--check", default="ViT-B/16", help="measurement of that file (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    timed = timed_pair_seconds(args.gpu, args.check) if args.gpu else None
    methods = METHODS[:1] if args.gpu else METHODS
    steps = [count_step(method, VIT_B_16) for method in methods]
    rows = [row for step in steps for row in projections(step, timed)]
    print(f"Counted on the CPU, a step in bfloat16 autocast:\n\n{step_table(steps)}\n")
    source = f"{args.gpu}, '{args.check}'" if args.gpu else "stated speeds; nothing was timed on such a device"
    print(f"PROJECTION from {source}:\n{H100}\n{DGX}\n\n{plan_table(rows)}")
    if args.json:
        content = {"steps": [asdict(step) for step in steps], "projection": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
