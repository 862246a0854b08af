"""How many pairs may pass the model at once: measured on small pieces, computed for the memory that there is."""

from __future__ import annotations

import dataclasses
import logging
import math

import torch

from cskt.device import free_memory_bytes, held_memory_bytes, peak_memory_bytes, reset_peak_memory
from cskt.errors import CsktError
from cskt.training.distributed import ALONE
from cskt.training.setup import Session
from cskt.training.step import add_gradients
from cskt.types import Batch

logger = logging.getLogger(__name__)

SHARE = 0.8
"""Of the free memory that may be used: allocators keep gaps, and evaluation wants some too."""
SMALL = 4
"""Pairs of the smaller of two measured pieces; the other has twice as many."""
BYTES_OF_MOMENTS = 8
"""Of a trained parameter: the two float32 moments of Adam, which the first step will add."""


def fitted(session: Session) -> Session:
    """The session with the largest `loop.micro_batch_size` that the memory of its device holds.

    The memory of a step grows linearly with its pairs, so two small steps tell how much each pair takes. A step of a
    whole batch in such pieces is then tried, and the pieces are halved until it fits: its losses see all pairs at once.
    Where several processes share a batch, each tries its share by itself, and the smallest size is taken by all.

    Raises:
        CsktError: the system does not say how much memory is free, or not even one image fits.
    """
    data, device, processes = session.config.data, session.device, session.processes
    beside = processes.local_count if device.type == "cpu" else 1
    free = SHARE * free_memory_bytes(device) / beside
    if free <= 0:
        raise CsktError(f"how much memory is free on {device} cannot be told here; set loop.micro_batch_size instead")
    unit = data.captions_per_image
    small = max(SMALL // unit, 1) * unit
    most = unit * math.ceil(data.batch_size / unit / processes.count)
    if 2 * small >= most:
        return session
    alone = dataclasses.replace(session, processes=ALONE)
    held = held_memory_bytes(device)
    moments = BYTES_OF_MOMENTS * session.built.model.num_parameters(trainable_only=True)
    whole = in_pieces_of(alone, None)
    peaks = [_peak_bytes(whole, num_pairs) for num_pairs in (small, small, 2 * small)]
    per_pair = max((peaks[2] - peaks[1]) / small, 1.0)
    room = free + held - moments - peaks[1]
    largest = min(small + math.floor(room / per_pair), most) // unit * unit
    if largest < unit:
        raise CsktError(
            f"a single image takes {per_pair * unit / 1e9:.1f} GB, more than {device} has free; use"
            " --checkpoint-activations or --precision bf16"
        )
    while largest > unit and _peak_bytes(in_pieces_of(alone, largest), most) > free + held - moments:
        largest = max(largest // 2 // unit, 1) * unit
    largest = processes.least(largest)
    logger.info(
        "%.1f GB free, %.0f MB per pair: %s", free / 1e9, per_pair / 1e6,
        f"{largest} pairs at once" if largest < most else "the whole batch at once",
    )  # fmt: skip
    return in_pieces_of(session, largest)


def in_pieces_of(session: Session, num_pairs: int | None) -> Session:
    """The session with that `loop.micro_batch_size`."""
    loop = dataclasses.replace(session.config.loop, micro_batch_size=num_pairs)
    return dataclasses.replace(session, config=dataclasses.replace(session.config, loop=loop))


def _peak_bytes(session: Session, num_pairs: int) -> int:
    """Most memory held in a step over random pairs with captions of full length; leaves nothing behind."""
    device, architecture, unit = (
        session.device,
        session.built.model.architecture,
        session.config.data.captions_per_image,
    )
    generator = torch.Generator().manual_seed(0)
    size = num_pairs // unit, 3, architecture.image_height, architecture.image_width
    length = session.built.tokenizer.context_length
    caption_ids = torch.randint(1, architecture.vocab_size - 2, (num_pairs, length), generator=generator)
    caption_ids[:, 0], caption_ids[:, -1] = architecture.vocab_size - 2, architecture.vocab_size - 1
    num_identities = session.loader.num_identities
    batch = Batch(
        images=torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).to(device),
        caption_ids=caption_ids,
        pids=torch.arange(num_pairs) % num_identities,
        image_ids=torch.arange(num_pairs // unit),
    )
    reset_peak_memory(device)
    add_gradients(session, batch, 0, generator)
    peak = peak_memory_bytes(device)
    session.trainee.optimizer.zero_grad(set_to_none=True)
    return peak
