"""Cross-modal projection matching (CMPM)."""

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
    check_pairs,
    check_positive,
    divergence,
    full_precision,
    reduced,
    register,
    same,
)


@register("cmpm")
@dataclass(eq=False)
class CMPMLoss(PairLoss):
    """Cross-modal projection matching; see `cmpm`."""

    negatives: ClassVar[Negatives] = "identities"

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        features = inputs.image_features, inputs.text_features
        return cmpm(*features, inputs.pids, pair_weights=pair_weights, reduction=reduction)


def cmpm(
    image_features: Tensor,
    text_features: Tensor,
    pids: Tensor,
    *,
    epsilon: float = 1e-8,
    pair_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the divergence of `sdm`, with scalar products of a feature and a normalised feature in place of cosines.

    Source: Zhang and Lu, ECCV 2018, equations 1 to 5. As in the released code the labels of a row are divided by
    their L2 norm, where the paper makes them a distribution. So a perfect match has the value -log(n) if each person
    has n pairs.

    Args:
        image_features, text_features: [B, D], raw: their lengths act as the inverse temperature.
        pids: [B] identities.
        epsilon: added to the labels inside the logarithm.
        pair_weights: [B], at least 0; None: all are 1.
        reduction: of the losses of single pairs: mean (weighted), sum, or none.

    Returns:
        Scalar, or [B] with `none`; both directions summed.

    Example:
        >>> bool(cmpm(100 * torch.eye(4), 100 * torch.eye(4), torch.arange(4)) < 1e-3)
        True
    """
    check_pairs(image_features, text_features, pids)
    check_positive(epsilon, "epsilon")
    with full_precision(image_features):
        images, texts = image_features.float(), text_features.float()
        labels_BB = F.normalize(same(pids), p=2, dim=1)
        image_to_text = divergence(images @ F.normalize(texts, dim=1).T, labels_BB, epsilon)
        text_to_image = divergence(texts @ F.normalize(images, dim=1).T, labels_BB, epsilon)
        return reduced(image_to_text, pair_weights, reduction) + reduced(text_to_image, pair_weights, reduction)
