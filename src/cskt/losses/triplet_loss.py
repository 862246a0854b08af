"""Triplet loss with hardest negatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.losses.base import (
    LossInputs,
    Negatives,
    PairLoss,
    Reduction,
    check_pairs,
    full_precision,
    reduced,
    register,
)


@register("triplet")
@dataclass(eq=False)
class TripletLoss(PairLoss):
    """Triplet loss; see `triplet`."""

    negatives: ClassVar[Negatives] = "pairs"

    margin: float = 1.0

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        features = inputs.image_features, inputs.text_features
        return triplet(*features, margin=self.margin, pair_weights=pair_weights, reduction=reduction)


def triplet(
    image_features: Tensor,
    text_features: Tensor,
    *,
    margin: float = 1.0,
    pair_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the triplet loss with the hardest negative of each image and of each caption, on Euclidean distances.

    Source: VSE++ (Faghri et al., BMVC 2018), equation 6, as in the released code: only the pair itself is right, so
    that another image of the same person is a negative.

    Args:
        image_features, text_features: [B, D], raw.
        margin: by which a negative must be farther away than the positive.
        pair_weights: [B], at least 0; None: all are 1.
        reduction: of the losses of single pairs: mean (weighted), sum, or none.

    Returns:
        Scalar, or [B] with `none`; at least 0: mean over images plus mean over captions. It is 0 for a batch of one,
        which has no negative.

    Example:
        >>> triplet(torch.eye(4), torch.eye(4)).item()  # the margin is 1, the distances are sqrt(2)
        0.0
    """
    check_pairs(image_features, text_features)
    with full_precision(image_features):
        # Differences rather than the expanded square, which loses the small distances of hard negatives.
        distance_BB = torch.cdist(
            image_features.float(), text_features.float(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        positive_B = distance_BB.diagonal()
        own = torch.eye(len(distance_BB), dtype=torch.bool, device=distance_BB.device)
        negative_BB = distance_BB.masked_fill(own, torch.inf)
        from_images = F.relu(margin + positive_B - negative_BB.amin(dim=1))
        from_texts = F.relu(margin + positive_B - negative_BB.amin(dim=0))
        return reduced(from_images, pair_weights, reduction) + reduced(from_texts, pair_weights, reduction)
