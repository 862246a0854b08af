"""Image-text contrast (ITC, InfoNCE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cskt.losses.base import (
    LossInputs,
    Negatives,
    PairLoss,
    Reduction,
    check_pairs,
    check_positive,
    cosines,
    cross_entropy,
    full_precision,
    register,
)


@register("itc")
@dataclass(eq=False)
class ITCLoss(PairLoss):
    """Image-text contrast; see `itc`."""

    negatives: ClassVar[Negatives] = "pairs"

    temperature: float = 0.02

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        features = inputs.image_features, inputs.text_features
        return itc(*features, temperature=self.temperature, pair_weights=pair_weights, reduction=reduction)


def itc(
    image_features: Tensor,
    text_features: Tensor,
    *,
    temperature: float = 0.02,
    pair_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the mean of the two cross-entropies of cosine / temperature against the diagonal.

    Source: CLIP (Radford et al., ICML 2021), figure 3. Only the own caption is right, whatever the identities.

    Args:
        image_features, text_features: [B, D], raw.
        temperature: above 0.
        pair_weights: [B], at least 0; None: all are 1.
        reduction: of the losses of single pairs: mean (weighted), sum, or none.

    Returns:
        Scalar, or [B] with `none`; at least 0; log(B) when all similarities are equal.

    Example:
        >>> round(itc(torch.eye(4), torch.eye(4), temperature=0.5).item(), 4)
        0.3408
    """
    check_pairs(image_features, text_features)
    check_positive(temperature, "temperature")
    with full_precision(image_features):
        logits_BB = cosines(image_features, text_features) / temperature
        diagonal = torch.arange(len(logits_BB), device=logits_BB.device)
        image_to_text = cross_entropy(logits_BB, diagonal, pair_weights, reduction)
        text_to_image = cross_entropy(logits_BB.T, diagonal, pair_weights, reduction)
        return (image_to_text + text_to_image) / 2
