"""Triplet ranking loss (TRL) on cosines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
from cskt.losses.tal_loss import positive_similarity


@register("trl")
@dataclass(eq=False)
class TRLLoss(PairLoss):
    """Triplet ranking; see `trl`."""

    negatives: ClassVar[Negatives] = "identities"
    reduction: ClassVar[Reduction] = "sum"

    temperature: float = 0.015
    margin: float = 0.1

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        return trl(
            inputs.image_features, inputs.text_features, inputs.pids, temperature=self.temperature, margin=self.margin,
            pair_weights=pair_weights, reduction=reduction,
        )  # fmt: skip


def trl(
    image_features: Tensor,
    text_features: Tensor,
    pids: Tensor,
    *,
    temperature: float = 0.015,
    margin: float = 0.1,
    pair_weights: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """Return a triplet loss with the hardest negative on cosines, which RDE compares with `tal`.

    Source: RDE (Qin et al., CVPR 2024), table 4, as in its released code: positives are weighted as in `tal`, and
    the hardest negative is that of the other identities, but at least 0.

    Args:
        image_features, text_features: [B, D], raw.
        pids: [B] identities.
        temperature: above 0, of the weights of the positives.
        margin: by which the cosine of the positives must be above that of the hardest negative.
        pair_weights: [B], at least 0; None: all are 1.
        reduction: of the losses of single pairs: mean (weighted), sum, or none.

    Returns:
        Scalar, or [B] with `none`; at least 0, both directions summed.

    Example:
        >>> trl(torch.eye(4), torch.eye(4), torch.arange(4)).item()
        0.0
    """
    check_pairs(image_features, text_features, pids)
    check_positive(temperature, "temperature")
    with full_precision(image_features):
        cosine_BB, same_BB = cosines(image_features, text_features), same(pids).bool()

        def of_rows(rows_BB: Tensor) -> Tensor:
            hardest_B = rows_BB.masked_fill(same_BB, 0).amax(dim=1)
            return F.relu(margin - positive_similarity(rows_BB, same_BB, temperature) + hardest_B)

        return both_directions(of_rows, cosine_BB, pair_weights, reduction)
