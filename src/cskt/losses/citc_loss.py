"""Cyclic image-text contrast (C-ITC)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cskt.losses.base import Loss, LossInputs, check_pairs, cosines, full_precision, register


@register("citc")
@dataclass(eq=False)
class CITCLoss(Loss):
    """Cyclic image-text contrast; see `citc`."""

    within: float = 0.25
    across: float = 0.25

    def forward(self, inputs: LossInputs) -> Tensor:
        return citc(inputs.image_features, inputs.text_features, within=self.within, across=self.across)


def citc(image_features: Tensor, text_features: Tensor, *, within: float = 0.25, across: float = 0.25) -> Tensor:
    """Return how much the similarities of a batch change when images and captions change places.

    Two images shall be as similar as their captions, and an image to another's caption as its own caption to that
    image: within * mean((vv' - tt')^2) + across * mean((vt' - tv')^2) of the unit features.

    Source: CyCLIP (Goel et al., NeurIPS 2022), section 3.2; as in TBPS-CLIP (Cao et al., AAAI 2024).

    Args:
        image_features, text_features: [B, D], raw.
        within, across: weights of the two terms.

    Returns:
        Scalar, at least 0; 0 where every image has the direction of its caption.

    Example:
        >>> citc(torch.eye(4), torch.eye(4)).item()
        0.0
    """
    check_pairs(image_features, text_features)
    with full_precision(image_features):
        images, texts = (cosines(features, features) for features in (image_features, text_features))
        both = cosines(image_features, text_features)
        return within * torch.mean((images - texts) ** 2) + across * torch.mean((both - both.T) ** 2)
