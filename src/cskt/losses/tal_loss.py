"""Triplet alignment loss (TAL)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.losses.base import (
    LossInputs,
    Negatives,
    PairLoss,
    Reduction,
    both_directions,
    check_pairs,
    check_positive,
    cosines,
    full_precision,
    register,
    same,
)

MOST = 1e36
"""Upper limit of the sum of exponentials over negatives, as in the released code; float32 could overflow."""


@register("tal")
@dataclass(eq=False)
class TALLoss(PairLoss):
    """Triplet alignment; see `tal`."""

    negatives: ClassVar[Negatives] = "identities"
    reduction: ClassVar[Reduction] = "sum"

    temperature: float = 0.015
    margin: float = 0.1

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        return tal(
            inputs.image_features, inputs.text_features, inputs.pids, temperature=self.temperature, margin=self.margin,
            pair_weights=pair_weights, reduction=reduction,
        )  # fmt: skip


def tal(
    image_features: Tensor,
    text_features: Tensor,
    pids: Tensor,
    *,
    temperature: float = 0.015,
    margin: float = 0.1,
    pair_weights: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """Return a triplet loss whose hardest negative is a log-sum-exp over all negatives.

    Source: RDE (Qin et al., CVPR 2024), section 3.3, as in its released code: pairs of the same identity are
    positives, weighted by softmax(cosine / temperature) without gradient, the batch is summed, not averaged, and a
    sum of exponentials is at most 1e36, which has an effect only below a temperature of about 0.012.

    Args:
        image_features, text_features: [B, D], raw.
        pids: [B] identities.
        temperature: above 0. The smaller, the nearer is the log-sum-exp to the hardest negative, down to 0.012.
        margin: by which the cosine of the positives must be above that of the negatives.
        pair_weights: [B], at least 0; None: all are 1.
        reduction: of the losses of single pairs: mean (weighted), sum, or none.

    Returns:
        Scalar, or [B] with `none`; at least 0, both directions summed; 0 for a batch of one identity.

    Example:
        >>> tal(torch.eye(4), torch.eye(4), torch.arange(4)).item()
        0.0
    """
    check_pairs(image_features, text_features, pids)
    check_positive(temperature, "temperature")
    with full_precision(image_features):
        cosine_BB, same_BB = cosines(image_features, text_features), same(pids).bool()
        of_rows = partial(_one_direction, same_BB=same_BB, temperature=temperature, margin=margin)
        return both_directions(of_rows, cosine_BB, pair_weights, reduction)


def _one_direction(cosine_BB: Tensor, same_BB: Tensor, temperature: float, margin: float) -> Tensor:
    # The smallest number instead of minus infinity: a row without a negative then gives 0, and 0 as its gradient.
    logits_BB = (cosine_BB / temperature).masked_fill(same_BB, torch.finfo(cosine_BB.dtype).min)
    negative_B = temperature * logits_BB.logsumexp(dim=1).clamp(max=math.log(MOST))
    return F.relu(margin - positive_similarity(cosine_BB, same_BB, temperature) + negative_B)


def positive_similarity(cosine_BB: Tensor, same_BB: Tensor, temperature: float) -> Tensor:
    """Return the mean cosine of each row with its positives, [B], weighted by softmax(cosine / temperature) without
    gradient."""
    logits_BB = (cosine_BB / temperature).detach().masked_fill(~same_BB, -torch.inf)
    return (logits_BB.softmax(dim=1) * cosine_BB).sum(dim=1)
