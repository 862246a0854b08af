"""Masked language modelling (MLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cskt.errors import CsktError
from cskt.losses.base import Loss, LossInputs, check_classes, cross_entropy, full_precision, register


@register("mlm")
@dataclass(eq=False)
class MLMLoss(Loss):
    """Masked language modelling; see `mlm`."""

    head: ClassVar = "interaction"
    by_row: ClassVar = True
    takes_pair_weights: ClassVar = True

    def num_terms(self, inputs: LossInputs) -> int | Tensor:
        """Return the number of masked words, or the sum of the weights of their pairs."""
        if inputs.mlm_weights is not None:
            return inputs.mlm_weights.sum()
        return 0 if inputs.mlm_labels is None else len(inputs.mlm_labels)

    def forward(self, inputs: LossInputs) -> Tensor:
        if inputs.mlm_logits is None or inputs.mlm_labels is None:
            raise CsktError("loss 'mlm' needs the logits of masked words; train with an interaction encoder or drop it")
        return mlm(inputs.mlm_logits, inputs.mlm_labels, weights=inputs.mlm_weights)


def mlm(logits: Tensor, labels: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Return the weighted mean of the cross-entropies of the masked words.

    Source: IRRA (Jiang and Ye, CVPR 2023), section 3.2, implicit relation reasoning.

    Args:
        logits: [M, V], one row per masked word of the batch.
        labels: [M] int64, its id.
        weights: [M], at least 0, that of its pair; None: all are 1.

    Returns:
        Scalar, at least 0, log(V) for uniform logits; 0 if no word was masked.

    Example:
        >>> round(mlm(torch.zeros(3, 10), torch.tensor([1, 2, 3])).item(), 4)  # log(10)
        2.3026
    """
    check_classes(logits, labels, "labels")
    with full_precision(logits):
        if not len(labels):
            return logits.float().sum()
        return cross_entropy(logits.float(), labels, weights, "mean")
