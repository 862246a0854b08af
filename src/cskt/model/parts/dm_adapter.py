"""DM-Adapter: a mixture of adapters beside the MLP of every block, with a router that knows the task (Liu et al., AAAI
2025), as in its released code.

The router gives every token z of a block logits over the adapters of the block, the experts:
`(1 - alpha) * G z + alpha * T p`, with a learned vector p of the block and a learned alpha. The `topk` experts with the
largest logits compute the token, weighted by the softmax of these logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import ClipArchitecture, DMAdapterConfig
from cskt.errors import CsktError
from cskt.model.parts.base import SIDES, EmbedWords, Part, PartExtras, Side, register


class Mixture(nn.Module):
    """Router and experts of a block for inference: tokens of mean 0 and variance 1 -> what the residual stream adds.

    The affine map of the norm, alpha, the task vector and the scale are folded into the weights.

    Args:
        topk: number of experts that compute a token.
        gate, gate_bias: [E, width] and [E].
        down, down_bias: [E, bottleneck, width] and [E, bottleneck].
        up, up_bias: [E, width, bottleneck] and [E, width].
    """

    def __init__(self, topk: int, **weights: Tensor) -> None:
        super().__init__()
        self.topk = topk
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        return mixture(x, self.topk, **dict(self.named_parameters()))


def router_logits(x: Tensor, gate: Tensor, gate_bias: Tensor) -> Tensor:
    """[..., width] -> [..., E], in float32 or better: the difference of two logits decides which expert computes."""
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(dtype), gate.to(dtype), gate_bias.to(dtype))


def mixture(
    x: Tensor,
    topk: int,
    *,
    gate: Tensor,
    gate_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
) -> Tensor:
    """Apply its experts to every token: [B, L, width] -> [B, L, width]; see `Mixture`.

    On a CPU tokens are sorted by expert, so that each expert computes its own tokens alone, in one product.
    """
    top, chosen = router_logits(x, gate, gate_bias).topk(topk, dim=-1)
    shares = top.softmax(dim=-1).to(x.dtype)
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        # In a graph the number of an expert's tokens is unknown, and on a GPU the host would wait for it in every
        # block: all experts, in two products, with a share of 0 where one is not chosen.
        shares = torch.zeros_like(x[..., :1]).expand(*x.shape[:-1], len(gate)).scatter(-1, chosen, shares)
        hidden = F.relu(F.linear(x, down.flatten(0, 1), down_bias.flatten())).view(*shares.shape, -1)
        hidden = (hidden * shares[..., None]).flatten(-2)
        return F.linear(hidden, up.transpose(0, 1).flatten(1)) + shares @ up_bias
    tokens = x.flatten(0, 1)
    order = chosen.flatten().argsort(stable=True)
    rows, share = order // topk, shares.flatten()[order, None]
    sizes: list[int] = chosen.flatten().bincount(minlength=len(gate)).tolist()
    groups, parts, computed = torch.split(tokens[rows], sizes), torch.split(share, sizes), []
    for index, (group, part) in enumerate(zip(groups, parts, strict=True)):
        hidden = F.relu(F.linear(group, down[index], down_bias[index]))
        computed.append(torch.addmm(part * up_bias[index], part * hidden, up[index].T))
    added = torch.cat(computed).to(x.dtype)  # autocast computes the products in fewer bits
    return torch.zeros_like(tokens).index_add(0, rows, added).view_as(x)


class Expert(nn.Module):
    """`up(relu(down(z)))` with a bottleneck of `width / reduction`."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // reduction)
        self.up = nn.Linear(width // reduction, width)


class ExpertAdapters(nn.Module):
    """Norm, router and experts of a block."""

    def __init__(self, config: DMAdapterConfig, width: int, scale: float) -> None:
        super().__init__()
        self.topk, self.scale = config.topk, scale
        self.norm = nn.LayerNorm(width)
        self.task = nn.Parameter(torch.empty(width))
        self.alpha = nn.Parameter(torch.empty(()))
        self.input_gate = nn.Linear(width, config.num_experts, bias=False)
        self.task_gate = nn.Linear(width, config.num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(width, config.reduction) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of mean 0 and variance 1 [B, L, width] -> [B, L, width], which the residual stream adds."""
        return mixture(x, self.topk, **self.gates(), **self.expert_weights())

    def record(self, x: Tensor) -> Tensor:
        """The same tokens -> [B, L, E], the logits of the router."""
        return router_logits(x, **self.gates())

    def for_inference(self) -> Mixture:
        """Return the same function, with its weights computed once."""
        return Mixture(self.topk, **self.gates(), **self.expert_weights())

    def gates(self) -> dict[str, Tensor]:
        """Return the weights of the router, with the affine map of the norm in them.

        As everywhere, products of small matrices once per batch replace a pass over all tokens.
        """
        gate = (1 - self.alpha) * self.input_gate.weight
        bias = gate @ self.norm.bias + self.alpha * (self.task_gate.weight @ self.task)
        return {"gate": gate * self.norm.weight, "gate_bias": bias}

    def expert_weights(self) -> dict[str, Tensor]:
        """Return the weights of the experts, with the affine map of the norm in the first layer, the scale in the
        second."""
        experts = cast(Sequence[Expert], self.experts)
        down = torch.stack([expert.down.weight for expert in experts])
        return {
            "down": down * self.norm.weight,
            "down_bias": torch.stack([expert.down.bias for expert in experts]) + down @ self.norm.bias,
            "up": self.scale * torch.stack([expert.up.weight for expert in experts]),
            "up_bias": self.scale * torch.stack([expert.up.bias for expert in experts]),
        }


@register("dm_adapter")
class DMAdapter(Part):
    """Mixtures of adapters with a router: one for every block of both towers."""

    Config = DMAdapterConfig

    def __init__(self, config: DMAdapterConfig, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        for side, scale in zip(SIDES, (config.vision_scale, config.text_scale), strict=True):
            width, num_blocks = getattr(architecture, f"{side}_width"), getattr(architecture, f"{side}_layers")
            if config.reduction > width:
                raise CsktError(
                    f"parts.dm_adapter.reduction {config.reduction} is above the {side} tower's width {width}"
                )
            self.add_module(side, nn.ModuleList(ExpertAdapters(config, width, scale) for _ in range(num_blocks)))

    def extras(self, side: Side) -> PartExtras:
        return PartExtras(beside_mlp=getattr(self, side))

    def outputs(self, side: Side, records: Sequence[Tensor], mask: Tensor) -> Mapping[str, Tensor]:
        """Return `routing` [B, blocks, 2, E]: for every expert the mean, over all tokens of an image or caption, of its
        softmax over all experts, and the share of the tokens that it computes (their sum is `topk`).

        Padding counts, as in the released code.
        """
        logits = torch.stack(list(records), dim=1)
        chosen = torch.zeros_like(logits).scatter(-1, logits.topk(self.config.topk, dim=-1).indices, 1.0)
        return {"routing": torch.stack([logits.softmax(dim=-1).mean(dim=2), chosen.mean(dim=2)], dim=2)}

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, embed_words: EmbedWords | None = None) -> None:
        """Draw the initial values as the released code does; the output is zero, so training starts at CLIP."""
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".alpha"):
                parameter.fill_(self.config.task_share)
            elif name.endswith("gate.weight"):
                parameter.normal_(std=self.config.gate_std, generator=generator)
            elif name.endswith(".task"):
                parameter.normal_(generator=generator)
            elif name.endswith(".down.weight"):
                bound = parameter.shape[1] ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()
