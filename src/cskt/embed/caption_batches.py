"""Batches of captions: few, and with little padding."""

from __future__ import annotations

import torch
from torch import Tensor

BATCH_TOKENS = {"cpu": 32, "cuda": 4096, "mps": 4096}
"""Device -> fixed cost of a batch, as a number of tokens: on a CPU, reading the weights; on a GPU, also starting the
kernels. The value for CUDA and MPS is assumed."""


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
    lengths_found, ends = found.tolist(), counts.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    per_batch = BATCH_TOKENS.get(device_type, BATCH_TOKENS["cuda"])
    # least_costs[n] is the lowest cost of all captions of the first n lengths, and first_lengths[n] the index of the
    # shortest length in the last batches of the best division of the first n + 1 lengths.
    least_costs, first_lengths = [0], []
    for last, length in enumerate(lengths_found):
        costs = []
        for first in range(last + 1):
            count = ends[last] - starts[first]
            costs.append(least_costs[first] + count * length + per_batch * -(-count // batch_size))
        first_lengths.append(min(range(last + 1), key=costs.__getitem__))
        least_costs.append(costs[first_lengths[-1]])
    groups, last = [], len(lengths_found) - 1
    while last >= 0:
        groups.append(order[starts[first_lengths[last]] : ends[last]])
        last = first_lengths[last] - 1
    return [batch for group in reversed(groups) for batch in torch.split(group, batch_size)]
