"""A training step of CSKT at ViT-B/16, 384 x 128: seconds and peak memory, compared with the released code.

    python -m benchmarks.train_step

Forward pass, SDM, backward pass and AdamW, on random weights and pairs. Both implementations share parameters, so each
continues from the other's step. Memory is that of model, optimizer and step, measured in separate processes. At batch
128 it is extrapolated linearly from smaller batches, and measured when the batch is processed in pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.naive import NaiveEncoder
from benchmarks.towers import BASELINE, REPEATS, THIN, VIT_B_16, cskt_model, draw_captions
from cskt import losses
from cskt.config import ClipArchitecture, OptimConfig
from cskt.device import arithmetic, native_bf16
from cskt.model.dual_encoder import DualEncoder
from cskt.training.objective import ModelInputs, ModelOutputs
from cskt.training.optim import build_optimizer
from cskt.training.step import backward_in_pieces

BATCH_SIZE, PUBLISHED_BATCH_SIZE = 8, 128
MEASURED_BATCH_SIZES = (8, 16, 32)
PIECE = 8
"""Pairs per piece when a batch is processed in pieces."""
GIGABYTE = 1e9
RATIO, LOSS = "peak memory, ours / baseline", "loss, relative difference"
"""Names of facts."""

Pairs = tuple[Tensor, Tensor, Tensor]
"""Images [B, 3, H, W], caption ids [B, longest], identities [B]."""


def draw_batch(size: int, architecture: ClipArchitecture) -> Pairs:
    """Return random pairs, two per identity."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(size, 3, architecture.image_height, architecture.image_width, generator=generator)
    return images, draw_captions(size, generator), torch.arange(size) // 2


def loss_of(model: nn.Module, pairs: Pairs, precision: str = "fp32") -> Tensor:
    """Return the SDM loss of a batch."""
    images, caption_ids, pids = pairs
    with arithmetic(measure.CPU, precision):
        image_features, text_features = model(images, caption_ids)
    return losses.sdm(image_features, text_features, pids)


def add_gradients_in_pieces(model: nn.Module, pairs: Pairs) -> None:
    """Run the backward pass of `loss_of` in pieces of `PIECE` pairs."""
    images, caption_ids, pids = pairs

    def encode(piece: ModelInputs) -> ModelOutputs:
        return ModelOutputs(*model(piece.images, piece.caption_ids))

    def backward(outputs: ModelOutputs) -> None:
        torch.autograd.backward(losses.sdm(outputs.image_features, outputs.text_features, pids))

    backward_in_pieces(ModelInputs(images, caption_ids).split(PIECE), encode, backward)


def stepper(owner: DualEncoder, forward_backward: Callable[[Pairs], None]) -> Callable[[Pairs], None]:
    """Return a function that makes a training step; the parameters are those of `owner`."""
    optimizer = build_optimizer(owner.named_parameters(), OptimConfig())

    def step(pairs: Pairs) -> None:
        forward_backward(pairs)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def in_one(model: nn.Module, precision: str = "fp32") -> Callable[[Pairs], None]:
    """Return a function that runs the backward pass of `loss_of` for the whole batch at once."""
    return lambda pairs: torch.autograd.backward(loss_of(model, pairs, precision))


FORMS: dict[str, Callable[[DualEncoder], Callable[[Pairs], None]]] = {
    "baseline": lambda model: in_one(NaiveEncoder.of(model)),
    "float32": in_one,
    "bf16": lambda model: in_one(model, "bf16"),
    "checkpointed": in_one,
    "pieces": lambda model: partial(add_gradients_in_pieces, model),
}
"""Ways to compute the gradients of a batch whose memory is measured."""


def memory_of_step(form: str, batch_size: int, architecture: ClipArchitecture) -> int:
    """Return the bytes of model, optimizer and a step, in a process that does nothing else."""

    def work() -> None:
        model = cskt_model(architecture)
        model.checkpoint_activations(form == "checkpointed")
        step = stepper(model, FORMS[form](model))
        step(draw_batch(2, architecture))  # the optimiser makes its state at its first step
        step(draw_batch(batch_size, architecture))

    return measure.memory_above_start(work)


def peak_gigabytes(form: str, batch_size: int, quick: bool) -> float:
    """Run `memory_of_step` in a new process."""
    flags = ["--memory-of", form, "--batch-size", str(batch_size), "--threads", str(torch.get_num_threads())]
    return measure.peak_memory("benchmarks.train_step", *flags, *(["--quick"] if quick else [])) / GIGABYTE


def line_at(sizes: tuple[int, ...], values: list[float], wanted: int) -> float:
    """Evaluate the least-squares line through the points at `wanted`."""
    return float(np.polyfit(sizes, values, 1) @ (wanted, 1))


def memory_by_batch(form: str, label: str, quick: bool) -> dict[str, float | int | str]:
    """Return gigabytes at the measured batch sizes, and their extrapolation to the published one."""
    peaks = [peak_gigabytes(form, size, quick) for size in MEASURED_BATCH_SIZES]
    facts: dict[str, float | int | str] = {
        f"{label}, batch {size}": peak for size, peak in zip(MEASURED_BATCH_SIZES, peaks, strict=True)
    }
    predicted = line_at(MEASURED_BATCH_SIZES, peaks, PUBLISHED_BATCH_SIZE)
    return facts | {f"{label}, batch {PUBLISHED_BATCH_SIZE}, computed from these": predicted}


def rows(quick: bool = False) -> list[Row]:
    """Measure steps in float32, and in bf16 where the CPU has instructions for it."""
    architecture = THIN if quick else VIT_B_16
    naive_peak = peak_gigabytes("baseline", BATCH_SIZE, quick)
    by_batch = memory_by_batch("float32", "peak GB", quick)
    *_, at_published = by_batch
    checkpointed = memory_by_batch("checkpointed", "peak GB with activation checkpointing", quick)
    in_pieces = {
        f"peak GB in pieces of {PIECE}, batch {PUBLISHED_BATCH_SIZE}": peak_gigabytes(
            "pieces", PUBLISHED_BATCH_SIZE, quick
        )
    }

    model, pairs = cskt_model(architecture), draw_batch(BATCH_SIZE, architecture)
    expected = loss_of(NaiveEncoder.of(model), pairs).item()
    forms = {"float32": "fp32", **({"bf16": "bf16"} if native_bf16() else {})}
    errors = {form: abs(loss_of(model, pairs, precision).item() / expected - 1) for form, precision in forms.items()}
    steps = {form: stepper(model, FORMS[form](model)) for form in ("baseline", *forms)}
    seconds = measure.medians({form: partial(step, pairs) for form, step in steps.items()}, REPEATS)
    work = f"train step, batch {BATCH_SIZE}, longest caption {pairs[1].shape[1]} tokens"
    memory: dict[str, float | int | str] = {
        "baseline's peak GB": naive_peak,
        RATIO: float(by_batch[f"peak GB, batch {BATCH_SIZE}"]) / naive_peak,
    }
    made = [
        Row(
            work, "float32", BASELINE, seconds["baseline"], seconds["float32"], 1.2,
            {LOSS: errors["float32"]} | memory | by_batch | checkpointed | in_pieces,
            at_most={LOSS: 1e-5, RATIO: 0.8, at_published: 24},
        )
    ]  # fmt: skip
    if "bf16" in forms:
        peak = peak_gigabytes("bf16", BATCH_SIZE, quick)
        facts: dict[str, float | int | str] = {LOSS: errors["bf16"], "peak GB": peak, RATIO: peak / naive_peak}
        made.append(Row(work, "bf16", BASELINE, seconds["baseline"], seconds["bf16"], 2.0, facts, at_most={RATIO: 0.8}))
    return made


def main() -> None:
    """Print the table, or one memory value in a separate process."""
    parser = measure.parser(__doc__)
    parser.add_argument("--memory-of", choices=FORMS, help="print the peak bytes of one step in this form, no table")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="of --memory-of")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(memory_of_step(args.memory_of, args.batch_size, THIN if args.quick else VIT_B_16))
        return
    before = measure.machine()
    measure.show(rows(args.quick), args, before)


if __name__ == "__main__":
    main()
