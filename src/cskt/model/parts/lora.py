"""Low-rank updates of the towers' linear layers: LoRA (Hu et al., ICLR 2022, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import ClipArchitecture, LoraConfig
from cskt.errors import CsktError
from cskt.model.parts.base import EmbedWords, Part, PartExtras, Side, register


class LowRank(nn.Module):
    """`scale * up @ down @ x`, added to the output of a frozen linear layer; a parameter as scale is learned."""

    def __init__(self, in_width: int, out_width: int, rank: int, scale: float | nn.Parameter) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(torch.empty(rank, in_width))
        self.up = nn.Parameter(torch.empty(out_width, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, in_width] -> [B, L, out_width]."""
        return self.scale * F.linear(F.linear(x, self.down), self.up)

    def delta(self) -> Tensor:
        """Return [out_width, in_width], which added to the layer's own weight has the same effect."""
        return self.scale * self.up @ self.down

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw `down` uniformly as PyTorch does for a linear layer, set `up` to zero: the update is zero at first."""
        bound = self.down.shape[1] ** -0.5
        self.down.uniform_(-bound, bound, generator=generator)
        self.up.zero_()


@register("lora")
class Lora(Part):
    """Low-rank updates of each block, by target, for each tower that `config.sides` names."""

    Config = LoraConfig

    def __init__(self, config: LoraConfig, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        towers = {
            "vision": (architecture.vision_layers, architecture.vision_width),
            "text": (architecture.text_layers, architecture.text_width),
        }
        for side, (layers, width) in towers.items():
            if config.sides in (side, "both"):
                if config.rank > width:
                    raise CsktError(f"lora.rank {config.rank} is above the {side} tower's width {width}")
                setattr(self, side, nn.ModuleList(_block_updates(config, width) for _ in range(layers)))

    @classmethod
    def is_active(cls, config: LoraConfig) -> bool:
        return config.sides != "none"

    def extras(self, side: Side) -> PartExtras:
        return PartExtras(low_rank=getattr(self, side, None))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, embed_words: EmbedWords | None = None) -> None:
        """Draw the initial values of all updates, in order."""
        for update in self.modules():
            if isinstance(update, LowRank):
                update.initialise(generator)


def _block_updates(config: LoraConfig, width: int) -> nn.ModuleDict:
    sizes = {"fc": (width, 4 * width), "proj": (4 * width, width)}
    scale = config.alpha / config.rank
    return nn.ModuleDict(
        {target: LowRank(*sizes.get(target, (width, width)), config.rank, scale) for target in config.targets}
    )
