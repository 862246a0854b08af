"""Batches of captions: few, and with little padding."""

from __future__ import annotations

import torch
from torch import Tensor

BATCH_TOKENS = {"cpu": 32, "cuda": 4096, "mps": 4096}
"""Device -> the fixed cost of a batch, in tokens. On a CPU it is that of reading the weights; on a GPU also of starting
kernels, in whose time thousands of tokens could be computed. The value for CUDA and MPS is an assumption."""


def caption_batches(lengths: Tensor, batch_size: int, device_type: str) -> list[Tensor]:
    """Divide captions into batches of similar length that together cost least, with padding computed as words.

    Args:
        lengths: [N] int64, tokens of each caption.
        batch_size: most captions of a batch.
        device_type: one of `BATCH_TOKENS`.

    Returns:
        Indices [n] of the captions of each batch, shortest first; every caption once.

    Example:
        >>> caption_batches(torch.tensor([60, 12, 61, 12]), 64, "cpu")
        [tensor([1, 3]), tensor([0, 2])]
    """
    order = lengths.argsort(stable=True)
    found, counts = torch.unique(lengths, return_counts=True)
    sizes, ends = found.tolist(), counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    per_batch = BATCH_TOKENS.get(device_type, BATCH_TOKENS["cuda"])
    # Least cost of the captions of the first lengths, and the length at which the last of their batches begins.
    least, firsts = [0], []
    for last, size in enumerate(sizes):
        costs = []
        for first in range(last + 1):
            count = ends[last] - starts[first]
            costs.append(least[first] + count * size + per_batch * -(-count // batch_size))
        firsts.append(min(range(last + 1), key=costs.__getitem__))
        least.append(costs[firsts[-1]])
    groups, last = [], len(sizes) - 1
    while last >= 0:
        groups.append(order[starts[firsts[last]] : ends[last]])
        last = firsts[last] - 1
    return [batch for group in reversed(groups) for batch in torch.split(group, batch_size)]
