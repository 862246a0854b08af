"""The weighted losses of a batch and the one head they may need. Training only: no checkpoint for inference has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cskt import losses
from cskt.config import LossConfig


class Objective(nn.Module):
    """Losses by name on raw features.

    Args:
        config: which losses, their weights and constants.
        embed_dim: width D of the features.
        num_identities: classes of the `id` loss.
    """

    def __init__(self, config: LossConfig, embed_dim: int, num_identities: int) -> None:
        super().__init__()
        self.config = config
        self.classifier = nn.Linear(embed_dim, num_identities) if "id" in config.weights else None

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """The classifier starts near zero, N(0, 0.001), as in IRRA (Jiang & Ye 2023, released code)."""
        if self.classifier is not None:
            self.classifier.weight.normal_(std=0.001, generator=generator)
            self.classifier.bias.zero_()

    def forward(self, image_features: Tensor, text_features: Tensor, pids: Tensor) -> dict[str, Tensor]:
        """Unweighted losses of a batch: features [B, D], pids [B] -> scalars by name."""
        inputs = losses.LossInputs(
            image_features=image_features.float(),
            text_features=text_features.float(),
            pids=pids,
            image_logits=None if self.classifier is None else self.classifier(image_features),
            text_logits=None if self.classifier is None else self.classifier(text_features),
            temperature=self.config.temperature,
            margin=self.config.margin,
        )
        return losses.compute(inputs, self.config.weights)
