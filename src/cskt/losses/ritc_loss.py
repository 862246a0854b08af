"""Reversed image-text contrast (R-ITC)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
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
    divergence,
    full_precision,
    register,
    same,
)


@register("ritc")
@dataclass(eq=False)
class RITCLoss(PairLoss):
    """Reversed image-text contrast; see `ritc`."""

    head: ClassVar = "logit_scale"
    negatives: ClassVar[Negatives] = "identities"

    epsilon: float = 0.01

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        return ritc(
            inputs.image_features, inputs.text_features, inputs.pids, scale=inputs.scale, epsilon=self.epsilon,
            pair_weights=pair_weights, reduction=reduction,
        )  # fmt: skip


def ritc(
    image_features: Tensor,
    text_features: Tensor,
    pids: Tensor,
    *,
    scale: Tensor | float,
    epsilon: float = 0.01,
    pair_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return KL(softmax(scale * cosine) || identity labels + epsilon), the mean of both directions.

    Source: TBPS-CLIP (Cao et al., AAAI 2024), section 3.3. It is half of SDM with another epsilon, which is much larger
    and is added without normalising again.

    Args:
        image_features, text_features: [B, D], raw.
        pids: [B] identities; the label of a row is spread evenly over the pairs of its identity.
        scale: factor of the cosines, above 0.
        epsilon: added to the labels; above 0.
        pair_weights: [B], at least 0; None: all are 1.
        reduction: of the losses of single pairs: mean (weighted), sum, or none.

    Returns:
        Scalar, or [B] with `none`; may fall slightly below 0.

    Example:
        >>> round(ritc(torch.eye(4), torch.eye(4), torch.arange(4), scale=100.0).item(), 4)
        -0.01
    """
    check_pairs(image_features, text_features, pids)
    check_positive(epsilon, "epsilon")
    with full_precision(image_features):
        labels_BB = F.normalize(same(pids), p=1, dim=1)
        logits_BB = scale * cosines(image_features, text_features)
        of_rows = partial(divergence, labels=labels_BB, epsilon=epsilon)
        return both_directions(of_rows, logits_BB, pair_weights, reduction) / 2
