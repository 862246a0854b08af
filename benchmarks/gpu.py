"""Training and encoding of CSKT at ViT-B/16, 384 x 128, on a GPU: pairs per second, MFU, memory.

    python -m benchmarks.gpu --json gpu.json            # on one GPU about 8 minutes
    python -m benchmarks.gpu --device cpu --layers 2 --batch-size 4 --steps 2     # a short trial

Needs torch and numpy only (`bare`), no data set and no weights, because time does not depend on values. The program
first compares bfloat16 with float32. It then times each variant of the training step (`gpu_step.FORMS`) as `cskt train`
would run it: images come as bytes from the host and are augmented on the device. MFU is the operations that the method
needs (`flops`) divided by those of a bfloat16 product of large matrices in the same time, measured in the same run. It
prints one JSON line per measurement and a table at the end; the exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import json
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import bare
from benchmarks.gpu_device import Clock, ceilings, facts, kernels, median_seconds, wait, waits_for_device

with bare.imports() as STOOD_IN_FOR:
    from benchmarks import flops
    from benchmarks.gpu_step import FORMS, Form, TrainingStep, draw_batches, lengths_of, part_lengths
    from cskt import losses
    from cskt.config import AdapterConfig, AugmentConfig, ClipArchitecture, PromptConfig
    from cskt.data.images import augment, normalise, to_device
    from cskt.data.prefetcher import Prefetcher
    from cskt.device import arithmetic, peak_memory_bytes, pick_device, reset_peak_memory
    from cskt.model.dual_encoder import DualEncoder
    from cskt.model.folded import fold_text, fold_vision
    from cskt.types import Batch

EPOCHS, PAIRS_OF_EPOCH = 60, 68_126
VAL_IMAGES, VAL_CAPTIONS = 3_078, 6_158
"""CUHK-PEDES: training pairs, and images and captions of the evaluation after each epoch."""
NUM_BATCHES = 8
CHECKED_STEPS = 3
BOUNDS = {
    "float32_beside_cpu": 1e-4,
    "feature_difference": 0.02,
    "gradient_difference": 0.15,
    "folded_cosine_distance": 5e-4,
    "loss_difference": 0.02,
}
"""Largest accepted relative difference from float32; see `check_arithmetic` and `judged`."""


def main() -> int:
    """Measure, print and write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="of a group; the median of the groups counts")
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12, help="blocks of each tower")
    parser.add_argument("--matrix-size", type=int, help="of the product that MFU is measured against")
    parser.add_argument("--forms", nargs="*", metavar="TEXT", help="only those whose name holds one of these")
    parser.add_argument("--minutes", type=float, default=8, help="no further form is begun after so many")
    parser.add_argument("--profile", action="store_true", help="the kernels that take longest, with every form")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all there too")
    args = parser.parse_args()
    until = time.perf_counter() + 60 * args.minutes
    device = pick_device(args.device)
    architecture = ClipArchitecture(
        image_height=384, image_width=128, vision_layers=args.layers, text_layers=args.layers
    )
    model = _random_model(architecture)
    batches = _batches(model, args.batch_size, NUM_BATCHES)

    rows: list[dict[str, Any]] = []

    def record(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.json:  # at once: a machine may be taken back at any time
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    size = args.matrix_size or (8192 if device.type == "cuda" else 1024)
    machine = facts(device) | {"stood_in_for": STOOD_IN_FOR} | ceilings(device, size)
    record(machine)
    record(check_arithmetic(model, batches[0], device))
    record(encode(model, batches, device, args))
    right: FirstSteps | None = None
    for form in FORMS:
        if args.forms is not None and not any(text in form.name for text in args.forms):
            continue
        row = {"form": form.name, "pairs_per_step": form.times_pairs * args.batch_size}
        reason = cannot_run(form, device) or ("no time left; raise --minutes" if time.perf_counter() > until else "")
        if reason:
            record(row | {"not_run": reason})
            continue
        try:
            drawn = batches if form.times_pairs == 1 else _batches(model, row["pairs_per_step"], NUM_BATCHES)
            measured, first = measure(form, model, drawn, device, args)
        except RuntimeError as error:  # out of memory, a compiler's complaint: the other forms may still run
            traceback.print_exc()
            record(row | {"failed": str(error).strip().splitlines()[:1] or [type(error).__name__]})
        else:
            right = right or first
            same_batches = right if form.times_pairs == 1 else None
            record(row | judged(measured, machine["matrix_tflops"], first, same_batches))
        _forget(device)
    print(table(rows))
    return int(any(row.get("failed") for row in rows))


def check_arithmetic(model: DualEncoder, batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return the relative norm of the difference between bfloat16 and float32 on the device, and to float32 on the CPU.

    Gradients are those of the loss of a few pairs.
    """
    few = slice(0, 8)
    batch = dataclasses.replace(batch, images=batch.images[few], caption_ids=batch.caption_ids[few])
    host = torch.device("cpu")
    exact = _features_and_gradients(model, batch, device, "fp32")
    rounded = _features_and_gradients(model, batch, device, "bf16")
    images = normalise(batch.images)
    with torch.no_grad():
        folded = fold_vision(model, torch.bfloat16).to(device)(images.to(device)).cpu()
        folded_text = fold_text(model, torch.bfloat16).to(device)(batch.caption_ids.to(device)).cpu()
    cosines = F.cosine_similarity(torch.cat([folded, folded_text]), exact[0])
    found = {
        "feature_difference": _difference(rounded[0], exact[0]),
        "gradient_difference": _difference(rounded[1], exact[1]),
        "folded_cosine_distance": 1 - float(cosines.min()),
    }
    if device != host:
        found["float32_beside_cpu"] = _difference(_features_and_gradients(model, batch, host, "fp32")[0], exact[0])
    return {"check": "bfloat16 against float32", **found, "failed": _beyond(found)}


def _features_and_gradients(
    model: DualEncoder, batch: Batch, device: torch.device, precision: str
) -> tuple[Tensor, Tensor]:
    """Return features [2 B, D] of images and captions and gradients [trained numbers], on the CPU."""
    model.to(device)
    with arithmetic(device, precision):
        features = model(normalise(batch.images.to(device)), batch.caption_ids.to(device))
    loss = losses.sdm(*features, torch.arange(len(batch.images), device=device))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained)
    model.to("cpu")
    return torch.cat(features).detach().float().cpu(), torch.cat([gradient.flatten() for gradient in gradients]).cpu()


class FirstSteps(NamedTuple):
    """Results of a variant on the first batches; all variants start alike."""

    losses: list[float]
    gradients: Tensor
    """Gradients [trained numbers] of the first step, on the CPU."""


def first_steps(step: TrainingStep, batches: Sequence[Batch], device: torch.device) -> FirstSteps:
    """Return the losses of the first steps and the gradients of the first one."""
    values, gradients = [], None
    for inputs in _inputs(batches, CHECKED_STEPS, device):
        values.append(float(step(*inputs)))
        if gradients is None:
            gradients = step.first_gradients()
    assert gradients is not None, "at least one step"
    return FirstSteps(values, gradients)


def measure(
    form: Form, model: DualEncoder, batches: Sequence[Batch], device: torch.device, args: argparse.Namespace
) -> tuple[dict[str, Any], FirstSteps]:
    """Measure one variant: time, memory, operations, synchronisations, and its first steps."""
    reset_peak_memory(device)
    started = time.perf_counter()
    step = TrainingStep(model, form, part_lengths(batches, form.parts), device)
    step.warm_up(*next(_inputs(batches, 1, device)))
    wait(device)
    warm_up_seconds = time.perf_counter() - started
    first = first_steps(step, batches, device)
    waits = waits_for_device(lambda: [step(*inputs) for inputs in _inputs(batches, 2, device)], device)

    clock = Clock(device)
    clock.mark()
    for number, inputs in enumerate(_inputs(batches, args.steps * args.groups, device), start=1):
        step(*inputs)
        if number % args.steps == 0:
            clock.mark()
    seconds = statistics.median(clock.intervals()) / args.steps
    pairs = len(batches[0].pids)
    adapters, prompts = model.method["adapters"], model.method["prompts"]
    lengths = [length for batch in batches for length in lengths_of(batch)]
    row = {
        "milliseconds": 1e3 * seconds,
        "pairs_per_second": pairs / seconds,
        "minutes_of_60_epochs": EPOCHS * PAIRS_OF_EPOCH / pairs * seconds / 60,
        "tflop": flops.cskt_step(model.architecture, prompts, adapters, lengths).total / len(batches) / 1e12,
        "released_tflop": flops.released_step(model.architecture, prompts, adapters, pairs).total / 1e12,
        "peak_memory_gb": peak_memory_bytes(device) / 1e9,
        "caption_lengths": list(step.lengths),
        "losses": first.losses,
        "waits_for_device": waits,
        "warm_up_seconds": warm_up_seconds,
    }
    if args.profile:
        row["kernels_milliseconds"] = kernels(
            lambda: [step(*inputs) for inputs in _inputs(batches, CHECKED_STEPS, device)], device, CHECKED_STEPS
        )
    return row, first


def judged(row: dict[str, Any], matrix_tflops: float, first: FirstSteps, right: FirstSteps | None) -> dict[str, Any]:
    """Return a measurement with its shares of the device's peak, and what is wrong with it.

    Args:
        right: the first steps of the first variant; None if a variant has its own batches.
    """
    per_second = 1e3 / row["milliseconds"] / matrix_tflops
    found = {}
    if right is not None:
        ours, theirs = torch.tensor(first.losses), torch.tensor(right.losses)
        found["loss_difference"] = float((ours / theirs - 1).abs().max())
        found["gradient_difference"] = _difference(first.gradients, right.gradients)
    failed = _beyond(found) + [f"waits for the device at {place}" for place in row["waits_for_device"]]
    return row | {
        "mfu": row["tflop"] * per_second,
        "mfu_by_released_operations": row["released_tflop"] * per_second,
        **found,
        "failed": failed,
    }


def encode(
    model: DualEncoder, batches: Sequence[Batch], device: torch.device, args: argparse.Namespace
) -> dict[str, Any]:
    """Measure images and captions per second of the folded model in bfloat16, captions sorted by length."""
    vision = fold_vision(model, torch.bfloat16).to(device)
    text = fold_text(model, torch.bfloat16).to(device)
    images = batches[0].images.to(device)
    ids = torch.cat([batch.caption_ids for batch in batches])
    ends = ids.argmax(dim=1)
    by_length = ids[ends.argsort()].split(args.batch_size)
    captions = [part[:, : int(part.argmax(dim=1).max()) + 1].to(device) for part in by_length]
    reset_peak_memory(device)
    with torch.inference_mode():
        image_seconds = median_seconds(lambda: vision(normalise(images)), device, calls=args.steps)
        text_seconds = median_seconds(lambda: [text(part) for part in captions], device, calls=-(-args.steps // 4))
    images_per_second, captions_per_second = len(images) / image_seconds, len(ids) / text_seconds
    seconds = VAL_IMAGES / images_per_second + VAL_CAPTIONS / captions_per_second
    return {
        "check": "encode, folded, bfloat16",
        "images_per_second": images_per_second,
        "captions_per_second": captions_per_second,
        "minutes_of_60_evaluations": EPOCHS * seconds / 60,
        "peak_memory_gb": peak_memory_bytes(device) / 1e9,
    }


def cannot_run(form: Form, device: torch.device) -> str:
    """Return the reason why a variant cannot run here, or an empty string."""
    if form.graph and device.type != "cuda":
        return "CUDA graphs need CUDA"
    if form.compiled and device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs triton, which is not installed"
    if form.compiled and device.type == "cpu" and shutil.which("c++") is None:
        return "torch.compile needs a C++ compiler on a CPU"
    return ""


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the table of variants."""
    head = f"{'form':42}{'pairs':>6}{'ms/step':>10}{'pairs/s':>9}{'MFU':>8}{'released':>10}{'GB':>7}{'60 epochs':>13}"
    lines = [f"{head}  notes"]
    for row in rows:
        if "form" not in row:
            continue
        head = f"{row['form']:42}{row['pairs_per_step']:>6}"
        notes = row.get("not_run") or "; ".join(row["failed"])
        if "milliseconds" not in row:
            lines.append(f"{head}  {notes}")
            continue
        lines.append(
            f"{head}{row['milliseconds']:10.2f}{row['pairs_per_second']:9.0f}{row['mfu']:8.1%}"
            f"{row['mfu_by_released_operations']:10.1%}{row['peak_memory_gb']:7.1f}"
            f"{row['minutes_of_60_epochs']:9.1f} min  {notes}"
        )
    lines.append("MFU counts the operations that the method needs, `released` those that the released wiring spends.")
    return "\n".join(lines)


def _random_model(architecture: ClipArchitecture) -> DualEncoder:
    """Return CSKT with random weights, none of them zero."""
    generator = torch.Generator().manual_seed(1)
    depth = min(architecture.vision_layers, architecture.text_layers)
    model = DualEncoder(architecture, {"prompts": PromptConfig(depth=depth), "adapters": AdapterConfig(init="normal")})
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    return model


def _batches(model: DualEncoder, batch_size: int, count: int) -> list[Batch]:
    longest = model.architecture.context_length - model.num_text_slots
    return draw_batches(model.architecture, batch_size, longest, count, torch.Generator().manual_seed(2))


def _inputs(batches: Sequence[Batch], steps: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (augmented images, caption ids, pids) on the device for a number of steps, the same in every call."""
    generator = torch.Generator().manual_seed(3)
    drawn = (batches[step % len(batches)] for step in range(steps))
    with Prefetcher(drawn, device) as feed:
        for batch in feed:
            images = augment(batch.images, AugmentConfig(), generator)
            yield images, to_device(batch.caption_ids, device), to_device(batch.pids, device)


def _difference(ours: Tensor, right: Tensor) -> float:
    return float((ours - right).norm() / right.norm())


def _beyond(found: dict[str, float]) -> list[str]:
    """Describe the values beyond their bounds; NaN is beyond every bound."""
    return [f"{name} {value:.2g} above {BOUNDS[name]:g}" for name, value in found.items() if not value <= BOUNDS[name]]


def _forget(device: torch.device) -> None:
    """Free the compiled code, graphs and cached memory of a variant."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
