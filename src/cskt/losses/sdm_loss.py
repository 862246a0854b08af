"""Similarity distribution matching (SDM)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.errors import CsktError
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
    reduced,
    register,
    same,
)


@register("sdm")
@dataclass(eq=False)
class SDMLoss(PairLoss):
    """Similarity distribution matching; see `sdm`."""

    temperature: float = 0.02
    other_image: float = 1.0

    @property
    def negatives(self) -> Negatives:
        """Other images of the same person are negatives too where `other_image` is below 1."""
        return "images" if self.other_image < 1 else "identities"

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        return sdm(
            inputs.image_features, inputs.text_features, inputs.pids,
            temperature=self.temperature, image_ids=inputs.image_ids, other_image=self.other_image,
            pair_weights=pair_weights, reduction=reduction,
        )  # fmt: skip


def sdm(
    image_features: Tensor,
    text_features: Tensor,
    pids: Tensor,
    *,
    temperature: float = 0.02,
    epsilon: float = 1e-8,
    image_ids: Tensor | None = None,
    other_image: float = 1.0,
    pair_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return KL(softmax(cosine / temperature) || identity labels), both directions summed.

    Source: IRRA (Jiang and Ye, CVPR 2023), equations 5 to 8.

    Args:
        image_features, text_features: [B, D], raw.
        pids: [B] identities; the label of a row is spread evenly over the pairs of its identity.
        temperature: above 0.
        epsilon: added to the labels inside the logarithm; a wrong match costs -log(epsilon).
        image_ids: [B], needed where `other_image` is not 1.
        other_image: label, before each row is divided by its sum, of another image of the same person; the image itself
            has 1. The released code of IRRA offers 0.3 and divides by the sums of the columns by mistake, which
            changes the labels where people have different numbers of images.
        pair_weights: [B], at least 0; None: all are 1.
        reduction: of the losses of single pairs: mean (weighted), sum, or none.

    Returns:
        Scalar, or [B] with `none`. The minimum is about 0 (epsilon lets it fall slightly below).

    Example:
        >>> bool(sdm(torch.eye(4), torch.eye(4), torch.arange(4)) < 1e-3)
        True
    """
    check_pairs(image_features, text_features, pids)
    check_positive(temperature, "temperature")
    check_positive(epsilon, "epsilon")
    with full_precision(image_features):
        labels_BB = _labels(pids, image_ids, other_image)
        logits_BB = cosines(image_features, text_features) / temperature
        of_rows = partial(divergence, labels=labels_BB, epsilon=epsilon)
        return both_directions(of_rows, logits_BB, pair_weights, reduction)


def sdm_at_collapse(
    pids: Tensor,
    *,
    epsilon: float = 1e-8,
    image_ids: Tensor | None = None,
    other_image: float = 1.0,
    pair_weights: Tensor | None = None,
) -> Tensor:
    """Return the value of `sdm` when every image is equally similar to every caption of the batch.

    SDM can be trapped there with weak features and a high learning rate: 27.95 at 64 pairs of as many people. A loss
    that stays at this value has collapsed. For a batch of one identity the value is 0 and says nothing.

    Args:
        pids: [B] identities.
        epsilon, image_ids, other_image, pair_weights: as for `sdm`.

    Returns:
        Scalar, independent of the temperature.

    Example:
        >>> round(sdm_at_collapse(torch.arange(64)).item(), 2)
        27.95
    """
    check_positive(epsilon, "epsilon")
    labels_BB = _labels(pids, image_ids, other_image)
    return 2 * reduced(divergence(torch.zeros_like(labels_BB), labels_BB, epsilon), pair_weights, "mean")


def _labels(pids: Tensor, image_ids: Tensor | None, other_image: float) -> Tensor:
    """Return the targets of SDM, [B, B], whose rows sum to 1."""
    if pids.ndim != 1 or not len(pids):
        raise CsktError(f"identities have shape {list(pids.shape)}; give [B], one for each pair")
    same_BB = same(pids)
    if other_image != 1:
        if image_ids is None or image_ids.shape != pids.shape:
            raise CsktError(f"other_image {other_image} needs image_ids [B]: which pairs show the same image")
        same_BB = torch.where(same(image_ids) > 0, 1.0, other_image * same_BB)
    return F.normalize(same_BB, p=1, dim=1)
