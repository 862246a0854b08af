"""Low-rank updates of the towers' linear layers: LoRA (Hu et al., ICLR 2022, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import ClipArchitecture, LoraConfig
from cskt.errors import CsktError


class LowRank(nn.Module):
    """`scale * up @ down @ x`, added to what a frozen linear layer makes of x."""

    def __init__(self, in_width: int, out_width: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(torch.empty(rank, in_width))
        self.up = nn.Parameter(torch.empty(out_width, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, in_width] -> [B, L, out_width]."""
        return self.scale * F.linear(F.linear(x, self.down), self.up)

    def delta(self) -> Tensor:
        """[out_width, in_width], what the layer's own weight would have to gain for the same effect."""
        return self.scale * self.up @ self.down

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """`down` uniform as PyTorch starts a linear layer, `up` zero, so that the update starts silent; as released."""
        bound = self.down.shape[1] ** -0.5
        self.down.uniform_(-bound, bound, generator=generator)
        self.up.zero_()


def build_lora(config: LoraConfig, architecture: ClipArchitecture) -> nn.ModuleDict:
    """Per tower that `config.sides` names, one mapping target -> `LowRank` for each block.

    Raises:
        CsktError: a rank that is no reduction.
    """
    towers = {
        "vision": (architecture.vision_layers, architecture.vision_width),
        "text": (architecture.text_layers, architecture.text_width),
    }
    chosen = {side: tower for side, tower in towers.items() if config.sides in (side, "both")}
    for side, (_, width) in chosen.items():
        if config.rank > width:
            raise CsktError(f"lora.rank {config.rank} is above the {side} tower's width {width}")
    return nn.ModuleDict(
        {
            side: nn.ModuleList(_of_block(config, width) for _ in range(layers))
            for side, (layers, width) in chosen.items()
        }
    )


def _of_block(config: LoraConfig, width: int) -> nn.ModuleDict:
    sizes = {"fc": (width, 4 * width), "proj": (4 * width, width)}
    scale = config.alpha / config.rank
    return nn.ModuleDict(
        {target: LowRank(*sizes.get(target, (width, width)), config.rank, scale) for target in config.targets}
    )
