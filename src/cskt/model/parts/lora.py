"""Low-rank updates of the towers' linear layers: LoRA (Hu et al., ICLR 2022, section 4.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import ClipArchitecture, LoraConfig
from cskt.errors import CsktError
from cskt.model.blocks import QUERY_KEY_VALUE

NO_LORA = LoraConfig()
LAYERS = {
    "query": "attn.in_proj", "key": "attn.in_proj", "value": "attn.in_proj", "out": "attn.out_proj",
    "fc": "mlp.c_fc", "proj": "mlp.c_proj",
}  # fmt: skip
"""Target of a low-rank update -> the layer of a block that it updates."""


class LowRank(nn.Module):
    """`scale * up @ down @ x`, added to the output of a frozen linear layer."""

    def __init__(self, in_width: int, out_width: int, rank: int, scale: float) -> None:
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


def build_lora(config: LoraConfig, architecture: ClipArchitecture) -> nn.ModuleDict:
    """Return, per tower that `config.sides` names, the `LowRank` updates of each block by target."""
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
            side: nn.ModuleList(_block_updates(config, width) for _ in range(layers))
            for side, (layers, width) in chosen.items()
        }
    )


def _block_updates(config: LoraConfig, width: int) -> nn.ModuleDict:
    sizes = {"fc": (width, 4 * width), "proj": (4 * width, width)}
    scale = config.alpha / config.rank
    return nn.ModuleDict(
        {target: LowRank(*sizes.get(target, (width, width)), config.rank, scale) for target in config.targets}
    )


def initialise_lora(lora: nn.ModuleDict, generator: torch.Generator) -> None:
    """Draw the initial values of all low-rank updates, in order."""
    for update in lora.modules():
        if isinstance(update, LowRank):
            update.initialise(generator)


@torch.no_grad()
def fold_lora(blocks: nn.ModuleList, low_rank: nn.ModuleList | None) -> None:
    """Add the low-rank updates of a tower to the weights of its blocks."""
    for block, updates in zip(blocks, low_rank or (), strict=False):
        assert isinstance(updates, nn.ModuleDict)
        for target, update in updates.items():
            assert isinstance(update, LowRank)
            layer = block.get_submodule(LAYERS[target])
            assert isinstance(layer, nn.Linear)
            delta, whole = update.delta(), layer.weight.clone()
            first = len(delta) * QUERY_KEY_VALUE.index(target) if target in QUERY_KEY_VALUE else 0
            whole[first : first + len(delta)] += delta
            layer.weight = nn.Parameter(whole, layer.weight.requires_grad)
