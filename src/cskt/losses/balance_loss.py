"""Balance of experts: the auxiliary loss of mixtures, which keeps a router from using few of its experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cskt.errors import CsktError
from cskt.losses.base import Loss, LossInputs, full_precision, register

ROUTING = ".routing"
"""End of the names of `LossInputs.extra` that this loss reads."""


def balance(routing: Tensor) -> Tensor:
    """Return the balance of the experts of several blocks, summed over the blocks.

    That of a block is E * mean_e(P_e * C_e) over its E experts, with the mean probability P of an expert and the share
    C of the tokens that it computes. If all experts are used alike it is the number of experts of a token divided by E.
    Source: DM-Adapter (Liu et al., AAAI 2025), after Shazeer et al. (ICLR 2017) and Fedus et al. (JMLR 2022, equation
    4).

    Args:
        routing: [B, blocks, 2, E]: P and C of every image or caption.

    Example:
        >>> alike = torch.stack([torch.full((4, 12, 6), 1 / 6), torch.full((4, 12, 6), 2 / 6)], dim=2)
        >>> round(balance(alike).item(), 4)  # 12 blocks, 2 of 6 experts
        4.0
    """
    if routing.ndim != 4 or routing.shape[2] != 2:
        raise CsktError(f"routing has shape {list(routing.shape)}; give [B, blocks, 2, E]")
    with full_precision(routing):
        probability, share = routing.float().mean(dim=0).unbind(dim=1)
        return (probability * share).sum()


@register("balance")
@dataclass(eq=False)
class BalanceLoss(Loss):
    """Balanced use of experts, summed over all towers and parts that have them; see `balance`."""

    takes_pair_weights: ClassVar = True

    def forward(self, inputs: LossInputs) -> Tensor:
        routing = [value for name, value in inputs.extra.items() if name.endswith(ROUTING)]
        if not routing:
            raise CsktError("the loss 'balance' needs a method part with experts, such as parts.dm_adapter")
        return torch.stack([balance(value) for value in routing]).sum()
