"""Buffers of method parts, such as the statistics of a batch normalisation, while a model trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cskt.errors import CsktError
from cskt.model.dual_encoder import DualEncoder


@contextmanager
def constant_buffers(model: DualEncoder) -> Iterator[None]:
    """Return a context in which no part may change its buffers, except for heads that get whole batches.

    A tower may be computed several times in a step (micro-batches, recomputed activations), and by several processes
    for different rows: statistics would count rows twice, and differ between processes.

    Raises:
        CsktError: a buffer has changed; names it.
    """
    parts = {name: part for name, part in model.method_parts().items() if part.by_row}
    before = {
        (name, key): (buffer, buffer._version) for name, part in parts.items() for key, buffer in part.named_buffers()
    }
    yield
    for (name, key), (buffer, version) in before.items():
        now = parts[name].get_buffer(key)
        if now is not buffer or now._version != version:
            raise CsktError(
                f"method part '{name}': the buffer '{key}' changed in a step; only an embedding head with"
                " by_row = False may change buffers, in its embed"
            )


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Return a context after which the buffers have the values that they had before."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
