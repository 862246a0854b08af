"""Image-text contrast (ITC, InfoNCE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.losses.base import (
    Loss,
    LossInputs,
    Negatives,
    check_pairs,
    check_positive,
    cosines,
    full_precision,
    register,
)


@register("itc")
@dataclass(eq=False)
class ITCLoss(Loss):
    """Image-text contrast; see `itc`."""

    negatives: ClassVar[Negatives] = "pairs"

    temperature: float = 0.02

    def forward(self, inputs: LossInputs) -> Tensor:
        return itc(inputs.image_features, inputs.text_features, temperature=self.temperature)


def itc(image_features: Tensor, text_features: Tensor, *, temperature: float = 0.02) -> Tensor:
    """Return the mean of the two cross-entropies of cosine / temperature against the diagonal.

    Source: CLIP (Radford et al., ICML 2021), figure 3. Only the own caption is right, whatever the identities.

    Args:
        image_features, text_features: [B, D], raw.
        temperature: above 0.

    Returns:
        Scalar, at least 0; log(B) when all similarities are equal.

    Example:
        >>> round(itc(torch.eye(4), torch.eye(4), temperature=0.5).item(), 4)
        0.3408
    """
    check_pairs(image_features, text_features)
    check_positive(temperature, "temperature")
    with full_precision(image_features):
        logits_BB = cosines(image_features, text_features) / temperature
        diagonal = torch.arange(len(logits_BB), device=logits_BB.device)
        return (F.cross_entropy(logits_BB, diagonal) + F.cross_entropy(logits_BB.T, diagonal)) / 2
