"""Largest number of pairs that fit into memory at once (`loop.fit`): two small steps measured, the rest computed."""

from __future__ import annotations

import dataclasses
import logging
import math

import torch

from cskt.device import free_cached_memory, free_memory_bytes, held_memory_bytes, peak_memory_bytes, reset_peak_memory
from cskt.errors import CsktError
from cskt.training.buffers import kept_buffers
from cskt.training.context import TrainingContext
from cskt.training.distributed import SINGLE_PROCESS
from cskt.training.step import forward_backward
from cskt.types import Batch

logger = logging.getLogger(__name__)

USABLE_SHARE = 0.8
"""Share of the free memory that may be used: allocators leave gaps, and evaluation needs memory too."""
SMALL = 4
"""Pairs of the smaller of two measured pieces; the other has twice as many."""
BYTES_OF_MOMENTS = 8
"""Bytes per trained parameter of the two float32 moments of Adam, which the first step will allocate."""


def fit_micro_batch(context: TrainingContext) -> TrainingContext:
    """Return the context with the largest `loop.micro_batch_size` that the memory of its device holds.

    The memory of a step grows linearly with its pairs, so two small steps show how much each pair takes. Then a step
    of a whole batch in such pieces is tried, and the pieces are halved until it fits: its losses see all pairs at once.
    If several processes divide a batch, each tries its share, and all take the smallest size.
    """
    data, device, processes = context.config.data, context.device, context.processes
    num_neighbours = processes.local_world_size if device.type == "cpu" else 1
    free = USABLE_SHARE * free_memory_bytes(device) / num_neighbours
    if free <= 0:
        raise CsktError(f"how much memory is free on {device} cannot be read here; set loop.micro_batch_size instead")
    unit = data.captions_per_image
    small = max(SMALL // unit, 1) * unit
    most = unit * math.ceil(data.batch_size / unit / processes.world_size)
    if 2 * small >= most:
        return context
    held = held_memory_bytes(device)
    moments = BYTES_OF_MOMENTS * context.state.model.num_parameters(trainable_only=True)
    single = dataclasses.replace(context, processes=SINGLE_PROCESS)
    peaks = [_peak_bytes(with_micro_batch(single, None), num_pairs) for num_pairs in (small, small, 2 * small)]
    if math.isinf(max(peaks)):
        raise CsktError(
            f"{2 * small} pairs take more memory than {device} has free; use --checkpoint-activations or --precision"
            " bf16, or set --micro-batch-size to fewer"
        )
    per_pair = max((peaks[2] - peaks[1]) / small, 1.0)
    available = free + held - moments
    largest = min(small + math.floor((available - peaks[1]) / per_pair), most) // unit * unit
    if largest < unit:
        raise CsktError(
            f"a single image takes {per_pair * unit / 1e9:.1f} GB, more than {device} has free; use"
            " --checkpoint-activations or --precision bf16"
        )
    while largest > unit and _peak_bytes(with_micro_batch(single, largest), most) > available:
        largest = max(largest // 2 // unit, 1) * unit
    largest = processes.min(largest)
    logger.info(
        "%.1f GB free, %.0f MB per pair: %s", free / 1e9, per_pair / 1e6,
        f"{largest} pairs at once" if largest < most else "the whole batch at once",
    )  # fmt: skip
    return with_micro_batch(context, largest)


def with_micro_batch(context: TrainingContext, num_pairs: int | None) -> TrainingContext:
    """Return the context with another `loop.micro_batch_size`."""
    loop = dataclasses.replace(context.config.loop, micro_batch_size=num_pairs)
    return dataclasses.replace(context, config=dataclasses.replace(context.config, loop=loop))


def _peak_bytes(context: TrainingContext, num_pairs: int) -> float:
    """Return the most memory held in a step over random pairs with captions of full length, infinity if there is not
    enough of it; discard the gradients."""
    architecture, unit = context.state.model.architecture, context.config.data.captions_per_image
    generator = torch.Generator().manual_seed(0)
    size = num_pairs // unit, 3, architecture.image_height, architecture.image_width
    length, end_id = context.tokenizer.context_length, architecture.vocab_size - 1
    caption_ids = torch.randint(1, end_id - 1, (num_pairs, length), generator=generator)
    caption_ids[:, 0], caption_ids[:, -1] = end_id - 1, end_id
    batch = Batch(
        images=torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).to(context.device),
        caption_ids=caption_ids,
        pids=torch.arange(num_pairs) % context.loader.num_identities,
        image_ids=torch.arange(num_pairs // unit),
    )
    reset_peak_memory(context.device)
    is_over = False
    try:
        with kept_buffers(context.state.model), kept_buffers(context.state.objective):
            forward_backward(context, batch, 0, generator)
    except torch.OutOfMemoryError:
        is_over = True  # what the step held is freed after this block, with the error
    context.state.optimizer.zero_grad(set_to_none=True)
    if is_over:
        free_cached_memory(context.device)
    return math.inf if is_over else peak_memory_bytes(context.device)
