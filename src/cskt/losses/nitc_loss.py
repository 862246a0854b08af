"""Normalised image-text contrast with soft targets (N-ITC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from cskt.errors import CsktError
from cskt.losses.base import (
    LossInputs,
    Negatives,
    PairLoss,
    Reduction,
    check_pairs,
    cosines,
    cross_entropy,
    full_precision,
    register,
    same,
)


@register("nitc")
@dataclass(eq=False)
class NITCLoss(PairLoss):
    """Normalised image-text contrast; see `nitc`."""

    head: ClassVar = "logit_scale"
    needs_targets: ClassVar = True
    negatives: ClassVar[Negatives] = "identities"

    soft_share: float = 0.5
    ramp_epochs: float = 1.0
    second_view: str = ""

    @property
    def views(self) -> tuple[str, ...]:
        return (self.second_view,) if self.second_view else ()

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        soft_share = self.soft_share_at(inputs.step, inputs.steps_per_epoch)

        def of_images(image_features: Tensor) -> Tensor:
            return nitc(
                image_features, inputs.text_features, inputs.pids, scale=inputs.scale, soft_share=soft_share,
                target_text_features=inputs.target_text_features, pair_weights=pair_weights, reduction=reduction,
            )  # fmt: skip

        first = of_images(inputs.image_features)
        return (first + of_images(inputs.view(self.second_view))) / 2 if self.second_view else first

    def soft_share_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the share of the soft targets at a step from 0: it rises from 0 over the first `ramp_epochs`."""
        num_steps = self.ramp_epochs * steps_per_epoch
        return self.soft_share * (min(1.0, step / num_steps) if num_steps else 1.0)


def nitc(
    image_features: Tensor,
    text_features: Tensor,
    pids: Tensor,
    *,
    scale: Tensor | float,
    soft_share: float = 0.0,
    target_text_features: Tensor | None = None,
    pair_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the mean of the two cross-entropies of scale * cosine against identities and the model's own answers.

    The target of a row is (1 - soft_share) times its identity labels, which sum to 1, plus soft_share times the softmax
    of its own similarities, without gradient.

    Source: TBPS-CLIP (Cao et al., AAAI 2024), section 3.3.

    Args:
        image_features, text_features: [B, D], raw.
        pids: [B] identities; the label of a row is spread evenly over the pairs of its identity.
        scale: factor of the cosines, above 0.
        soft_share: from 0 to 1.
        target_text_features: [B, D], raw: captions from a further pass, of which the soft targets are computed; None:
            `text_features`.
        pair_weights: [B], at least 0; None: all are 1.
        reduction: of the losses of single pairs: mean (weighted), sum, or none.

    Returns:
        Scalar, or [B] with `none`; at least 0.

    Example:
        >>> round(nitc(torch.eye(4), torch.eye(4), torch.arange(4), scale=2.0).item(), 4)
        0.3408
    """
    check_pairs(image_features, text_features, pids)
    if not 0 <= soft_share <= 1:
        raise CsktError(f"soft_share is {soft_share}; give a share from 0 to 1")
    with full_precision(image_features):
        labels_BB = F.normalize(same(pids), p=1, dim=1)
        logits_BB = scale * cosines(image_features, text_features)
        soft_BB = logits_BB.detach()
        if target_text_features is not None and soft_share:
            check_pairs(image_features, target_text_features)
            soft_BB = (scale * cosines(image_features, target_text_features)).detach()

        def of_rows(logits: Tensor, soft: Tensor) -> Tensor:
            targets = soft_share * soft.softmax(dim=1) + (1 - soft_share) * labels_BB
            return cross_entropy(logits, targets, pair_weights, reduction)

        return (of_rows(logits_BB, soft_BB) + of_rows(logits_BB.T, soft_BB.T)) / 2
