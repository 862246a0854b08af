"""Dropout of attention weights that is a function of position: of a seed per sequence, the block, and the two tokens.

PyTorch's dropout draws from the state of a generator, so its numbers depend on the device, on the processes that divide
a batch, and on the pieces that a batch passes the model in. Here a number is a hash of its position: it does not depend
on any of these, and the same numbers are found again in a second pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cskt.device import to_device

MAX_POSITIONS = 1 << 16
"""Positions of tokens are below this, and so are numbers of heads; prefixes are counted from it."""
STEP = 0x9E3779B9 - (1 << 32)
"""Odd number near 2^32 divided by the golden ratio, whose multiples spread evenly."""
MIXING = (0x7FEB352D, 0x846CA68B - (1 << 32))
"""Factors of a 32-bit hash whose output bits depend on all input bits (Wellons 2018, "lowbias32")."""


class AttentionDropout(NamedTuple):
    """Attention weights are set to zero with a probability, and the others divided by 1 - probability."""

    probability: float
    """From 0 to below 1."""
    seeds: Tensor
    """[B] int32, one for each sequence of the batch."""

    def of_rows(self, rows: slice) -> AttentionDropout:
        """Return the dropout of some of the sequences."""
        return self._replace(seeds=self.seeds[rows])

    def of_block(self, index: int) -> AttentionDropout:
        """Return the dropout of one block of a tower, by its index."""
        return self._replace(seeds=_mixed(self.seeds + torch.full_like(self.seeds, index + 1) * STEP))

    def to(self, device: torch.device) -> AttentionDropout:
        """Return the dropout with its seeds on a device."""
        return self._replace(seeds=to_device(self.seeds, device))

    def apply(self, weights: Tensor, query_positions: Tensor, num_prefix: int = 0) -> Tensor:
        """Drop attention weights.

        Args:
            weights: [B, heads, A, L + num_prefix], non-negative.
            query_positions: [A] or [B, A] int64, the token of each row of `weights`.
            num_prefix: number of the last columns that belong to a prefix and not to tokens 0, 1, ....

        Returns:
            [B, heads, A, L + num_prefix].
        """
        num_heads, num_columns = weights.shape[1], weights.shape[3]
        positions = query_positions.to(torch.int32).expand(len(weights), -1)
        heads = torch.arange(num_heads, dtype=torch.int32, device=weights.device) * MAX_POSITIONS
        rows = _mixed(self.seeds[:, None, None] + STEP * (heads[:, None] + positions[:, None]))
        columns = torch.arange(num_columns, dtype=torch.int32, device=weights.device)
        columns[num_columns - num_prefix :] += MAX_POSITIONS - (num_columns - num_prefix)
        numbers = _mixed(rows[..., None] + STEP * columns)
        limit = int(self.probability * 2**32) - 2**31
        return weights * (numbers >= limit) / (1 - self.probability)


def draw_seeds(num_sequences: int, generator: torch.Generator) -> Tensor:
    """Draw a seed for each sequence, [num_sequences] int32 on the host."""
    return torch.randint(-(2**31), 2**31, (num_sequences,), generator=generator).to(torch.int32)


def _mixed(numbers: Tensor) -> Tensor:
    """Hash int32 numbers to int32; distinct numbers have distinct hashes."""
    numbers = (numbers ^ _shifted(numbers, 16)) * MIXING[0]
    numbers = (numbers ^ _shifted(numbers, 15)) * MIXING[1]
    return numbers ^ _shifted(numbers, 16)


def _shifted(numbers: Tensor, num_bits: int) -> Tensor:
    """Shift to the right and fill up with zeros; torch repeats the sign."""
    return (numbers >> num_bits) & ((1 << (32 - num_bits)) - 1)
