"""Contrast of two views of the same image (SimCLR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.losses.base import (
    Loss,
    LossInputs,
    Negatives,
    Sizes,
    check_pairs,
    check_positive,
    cosines,
    full_precision,
    register,
)


@register("simclr")
@dataclass(eq=False)
class SimCLRLoss(Loss):
    """Contrast of two views of the images, each through an MLP of its own; see `simclr`."""

    negatives: ClassVar[Negatives] = "pairs"
    takes_pair_weights: ClassVar = True  # it compares images alone: a wrong caption makes no difference

    temperature: float = 0.1
    width: int = 128
    view_pair: tuple[str, str] = ("simclr_1", "simclr_2")

    @property
    def views(self) -> tuple[str, ...]:
        return self.view_pair

    def setup(self, sizes: Sizes) -> None:
        """Make the MLP, D -> width -> D."""
        width = self.width
        self.mlp = nn.Sequential(nn.Linear(sizes.embed_dim, width), nn.ReLU(), nn.Linear(width, sizes.embed_dim))

    def forward(self, inputs: LossInputs) -> Tensor:
        with full_precision(inputs.image_features):
            embeddings = [self.mlp(inputs.view(name).float()) for name in self.views]
        return simclr(*embeddings, temperature=self.temperature)


def simclr(first_view: Tensor, second_view: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Return the cross-entropy with which each view finds the other view of its image among the views of all images.

    Source: SimCLR (Chen et al., ICML 2020), equation 1 (NT-Xent); as in SLIP (Mu et al., ECCV 2022) and TBPS-CLIP (Cao
    et al., AAAI 2024). Of the 2B views, a view's own similarity is left out; other pairs of the same person, and of the
    same image, are negatives.

    Args:
        first_view, second_view: [B, D] embeddings of the views of B images, raw.
        temperature: above 0.

    Returns:
        Scalar, at least 0; log(2B - 1) when all similarities are equal.

    Example:
        >>> round(simclr(torch.ones(4, 2), torch.ones(4, 2)).item(), 4)  # log(7)
        1.9459
    """
    check_pairs(first_view, second_view)
    check_positive(temperature, "temperature")
    with full_precision(first_view):
        both = torch.cat([first_view, second_view])
        logits = (cosines(both, both) / temperature).fill_diagonal_(-torch.inf)
        partner = torch.arange(len(both), device=both.device).roll(len(first_view))
        return F.cross_entropy(logits, partner)
