"""Bottleneck adapters beside the MLP: DAT, dual adapters transferring (CSKT section 2.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import AdapterConfig, ClipArchitecture
from cskt.errors import CsktError
from cskt.model.parts.base import EmbedWords, Part, PartExtras, Side, register


class Adapter(nn.Module):
    """`scale * up(relu(down(norm(x))))` with a bottleneck of `width / reduction`."""

    def __init__(self, width: int, reduction: int, scale: float) -> None:
        super().__init__()
        if reduction > width:
            raise CsktError(f"adapters.reduction {reduction} is above the tower's width {width}")
        self.scale = scale
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, width // reduction)
        self.up = nn.Linear(width // reduction, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of mean 0 and variance 1 [B, L, width] -> [B, L, width], which the residual stream adds."""
        down, up = self.folded()
        return F.linear(F.relu(F.linear(x, *down)), *up)

    def folded(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return (weight, bias) of two layers, the affine map of the norm in the first, the scale in the second.

        A product of small matrices once per batch replaces a pass over all tokens; gradients reach all five factors.
        """
        down = self.down.weight * self.norm.weight, self.down.bias + self.down.weight @ self.norm.bias
        return down, (self.scale * self.up.weight, self.scale * self.up.bias)

    @torch.no_grad()
    def initialise(self, config: AdapterConfig, generator: torch.Generator) -> None:
        """Draw linear weights from N(0, init_std), biases zero; with init `zero` the up-projection is zero too."""
        for layer in (self.down, self.up):
            layer.weight.normal_(std=config.init_std, generator=generator)
            layer.bias.zero_()
        if config.init == "zero":
            self.up.weight.zero_()


@register("adapters")
class Adapters(Part):
    """Bottleneck adapters: one per block for each tower that `config.sides` names."""

    Config = AdapterConfig

    def __init__(self, config: AdapterConfig, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        towers = {
            "vision": (architecture.vision_layers, architecture.vision_width, config.vision_scale),
            "text": (architecture.text_layers, architecture.text_width, config.text_scale),
        }
        for side, (layers, width, scale) in towers.items():
            if config.sides in (side, "both"):
                setattr(self, side, nn.ModuleList(Adapter(width, config.reduction, scale) for _ in range(layers)))

    @classmethod
    def is_active(cls, config: AdapterConfig) -> bool:
        return config.sides != "none"

    def extras(self, side: Side) -> PartExtras:
        return PartExtras(beside_mlp=getattr(self, side, None))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, embed_words: EmbedWords | None = None) -> None:
        """Draw the initial values of all adapters, in order."""
        for adapter in self.modules():
            if isinstance(adapter, Adapter):
                adapter.initialise(self.config, generator)
