"""Identity classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cskt.errors import CsktError
from cskt.losses.base import (
    LossInputs,
    Negatives,
    PairLoss,
    Reduction,
    check_classes,
    check_pairs,
    cross_entropy,
    full_precision,
    register,
)


@register("id")
@dataclass(eq=False)
class IdentityLoss(PairLoss):
    """Identity classification; see `identity`."""

    head: ClassVar = "classifier"
    by_row: ClassVar = True
    negatives: ClassVar[Negatives] = "classes"

    def forward(self, inputs: LossInputs) -> Tensor:
        return self.value(inputs, inputs.row_weights, self.reduction)

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        if inputs.image_logits is None or inputs.text_logits is None or inputs.id_labels is None:
            raise CsktError("loss 'id' needs the logits of an identity classifier; give the model one or drop the loss")
        logits = inputs.image_logits, inputs.text_logits
        return identity(*logits, inputs.id_labels, pair_weights=pair_weights, reduction=reduction)


def identity(
    image_logits: Tensor,
    text_logits: Tensor,
    pids: Tensor,
    *,
    pair_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the mean of the cross-entropies of images and captions under one shared classifier.

    Source: Dual-Path (Zheng et al., TOMM 2020), the instance loss; the ID loss of IRRA.

    Args:
        image_logits, text_logits: [B, C].
        pids: [B] int64 in [0, C).
        pair_weights: [B], at least 0; None: all are 1.
        reduction: of the losses of single pairs: mean (weighted), sum, or none.

    Returns:
        Scalar, or [B] with `none`; at least 0; log(C) for uniform logits.

    Example:
        >>> round(identity(torch.zeros(4, 10), torch.zeros(4, 10), torch.arange(4)).item(), 4)  # log(10)
        2.3026
    """
    check_pairs(image_logits, text_logits, pids)
    check_classes(image_logits, pids, "pids")
    with full_precision(image_logits):
        of_images = cross_entropy(image_logits.float(), pids, pair_weights, reduction)
        of_texts = cross_entropy(text_logits.float(), pids, pair_weights, reduction)
        return (of_images + of_texts) / 2
