"""UP-Person: prefixes, low-rank updates and adapters in both towers (Liu et al., TCSVT 2025), as in its released code.

- Prefix: learned keys and values that every token of a block attends to. After the softmax their weights are multiplied
  by a learned factor and not normalised again. The same factor on the prefix values gives the same output, so that one
  fused call computes the attention.
- Low-rank updates of keys and values, with a learned scale.
- Adapters that read the tokens before a norm and are added to the input of the attention or the MLP after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import ClipArchitecture, UpPersonConfig
from cskt.errors import CsktError
from cskt.model.parts.base import SIDES, EmbedWords, Part, PartExtras, Side, register
from cskt.model.parts.lora import LowRank

INITIAL_ONE = ("scale", "key_scale", "value_scale")
"""Scalars that are 1 at first."""


class KeyValuePrefix(nn.Module):
    """Keys and values of a block, their scales, and the factor of their attention weights."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.key, self.value = nn.Parameter(torch.empty(length, width)), nn.Parameter(torch.empty(length, width))
        self.key_scale, self.value_scale = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.factor = nn.Parameter(torch.empty(()))

    def forward(self) -> Tensor:
        """Return [length, 2 * width], see `PartExtras.prefix_kv`."""
        return torch.cat([self.key_scale * self.key, self.factor * self.value_scale * self.value], dim=1)


class InputAdapter(nn.Module):
    """`scale * up(relu(down(x)))` with a bottleneck of `width / reduction` and a learned scale."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // reduction)
        self.up = nn.Linear(width // reduction, width)
        self.scale = nn.Parameter(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        return F.linear(F.relu(self.down(x)), self.scale * self.up.weight, self.scale * self.up.bias)


@register("up_person")
class UpPerson(Part):
    """Prefixes, low-rank updates and adapters of UP-Person, in both towers."""

    Config = UpPersonConfig

    def __init__(self, config: UpPersonConfig, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        for side in SIDES:
            width, num_blocks = getattr(architecture, f"{side}_width"), getattr(architecture, f"{side}_layers")
            for name in ("rank", "reduction"):
                if getattr(config, name) > width:
                    raise CsktError(
                        f"parts.up_person.{name} {getattr(config, name)} is above the {side} tower's width {width}"
                    )
            num_plain = min(config.depth_adapter, num_blocks)
            self.add_module(
                side,
                nn.ModuleDict({
                    "prefix": nn.ModuleList(
                        KeyValuePrefix(config.prefix_length, width) for _ in range(min(config.depth_prefix, num_blocks))
                    ),
                    "low_rank": _per_block(
                        _updates(width, config.rank) if index < config.depth_lora else None
                        for index in range(num_blocks)
                    ),
                    "before_attention": _adapters(num_plain, num_blocks, width, config.reduction),
                    "before_mlp": _adapters(num_plain, num_blocks, width, config.reduction),
                }),
            )  # fmt: skip

    def extras(self, side: Side) -> PartExtras:
        added = cast(dict[str, nn.ModuleList], self.get_submodule(side))
        low_rank, before_attention, before_mlp = (
            added[kind] if any(added[kind]) else None for kind in ("low_rank", "before_attention", "before_mlp")
        )
        return PartExtras(
            prefix_kv=[prefix() for prefix in added["prefix"]],
            low_rank=low_rank,
            before_attention=before_attention,
            before_mlp=before_mlp,
        )

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, embed_words: EmbedWords | None = None) -> None:
        """Draw the initial values as the released code does.

        Prefix tokens are uniform in [0, prefix_init], which is small beside CLIP's keys and values: yet they take a
        share of the softmax, so that training does not start at CLIP. Updates and adapters start at zero.
        """
        for name, parameter in self.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf in INITIAL_ONE:
                parameter.fill_(1.0)
            elif leaf == "factor":
                parameter.fill_(self.config.prefix_factor)
            elif leaf in ("key", "value"):
                parameter.uniform_(0, self.config.prefix_init, generator=generator)
            elif name.endswith((".down", ".down.weight")):
                bound = parameter.shape[1] ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()


def _updates(width: int, rank: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {target: LowRank(width, width, rank, nn.Parameter(torch.empty(()))) for target in ("key", "value")}
    )


def _adapters(num_plain: int, num_blocks: int, width: int, reduction: int) -> nn.ModuleList:
    """Return one adapter per block, None for the first `num_plain`."""
    return _per_block(None if index < num_plain else InputAdapter(width, reduction) for index in range(num_blocks))


def _per_block(modules: Iterable[nn.Module | None]) -> nn.ModuleList:
    # PyTorch accepts None in a list of modules, its annotations do not.
    return nn.ModuleList(modules)  # type: ignore[arg-type]
