"""A plug-in of the tests: two embedding heads, one of which looks at the whole batch, a mixture of experts with a
balance over all blocks, and their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import ClipArchitecture
from cskt.losses import Loss, LossInputs, register, sdm
from cskt.model.parts import Part, PartExtras, Side, part_config
from cskt.model.parts import register as register_part


@register_part("chosen")
class Chosen(Part):
    """Maximum over an MLP, with batch normalisation, of the tokens that the class or end token attends to most: the
    token selection embedding of RDE (Qin et al., CVPR 2024)."""

    needs_attention = True
    by_row = False

    @part_config
    class Config:
        ratio: float = 0.3
        width: int = 6

    def __init__(self, config: Any, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        self.embedding_width, dim = config.width, architecture.embed_dim
        sides = ("vision", "text")
        self.direct = nn.ModuleDict({side: nn.Linear(dim, config.width) for side in sides})
        self.first = nn.ModuleDict({side: nn.Linear(dim, dim) for side in sides})
        self.norm = nn.ModuleDict({side: nn.BatchNorm1d(dim) for side in sides})
        self.second = nn.ModuleDict({side: nn.Linear(dim, config.width) for side in sides})

    def embed(self, side: Side, tokens: Tensor, attention: Tensor | None, mask: Tensor) -> Tensor:
        assert attention is not None
        ends = mask.sum(dim=1, keepdim=True) - 1 if side == "text" else torch.zeros_like(mask[:, :1], dtype=torch.int64)
        is_word = mask.scatter(1, ends, False) & (torch.arange(mask.shape[1], device=mask.device) > 0)
        # Columns of zeros, so that short captions have enough to choose from: an export cannot branch on their length.
        num_chosen = int(self.config.ratio * 75)
        tokens, is_word = F.pad(tokens, (0, 0, 0, num_chosen)), F.pad(is_word, (0, num_chosen))
        scores = F.pad(attention.detach(), (0, num_chosen)).masked_fill(~is_word, -1.0)
        chosen = scores.topk(num_chosen, dim=1).indices
        x = tokens.gather(1, chosen[:, :, None].expand(-1, -1, tokens.shape[2]))
        x = x / (x.norm(dim=2, keepdim=True) + 1e-8)
        hidden = self.norm[side](self.first[side](x).flatten(0, 1)).view_as(x)
        y = self.second[side](F.relu(hidden)) + self.direct[side](x)
        return y.masked_fill(~is_word.gather(1, chosen)[:, :, None], -torch.inf).amax(dim=1)


@register_part("mean_token")
class MeanToken(Part):
    """A projection of the mean of all tokens, and a prompt of the text tower."""

    @part_config
    class Config:
        width: int = 4

    def __init__(self, config: Any, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        self.embedding_width = config.width
        self.project = nn.Linear(architecture.embed_dim, config.width)
        self.prompt = nn.Parameter(torch.zeros(1, architecture.text_width))
        self.register_buffer("scale", torch.full((1,), 2.0))

    def extras(self, side: Side) -> PartExtras:
        return PartExtras(prompts=[self.prompt] if side == "text" else [])

    def embed(self, side: Side, tokens: Tensor, attention: Tensor | None, mask: Tensor) -> Tensor:
        assert attention is None or len(attention) == len(tokens)
        weights = mask.to(tokens.dtype)[:, :, None]
        return self.project(self.get_buffer("scale") * (tokens * weights).sum(dim=1) / weights.sum(dim=1))


class Experts(nn.Module):
    """The sum of the two experts that a token chooses, weighted by a softmax; a domain vector moves the choice
    (DM-Adapter, AAAI 2025)."""

    def __init__(self, width: int, num_experts: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.norm = nn.LayerNorm(width)
        self.input_gate = nn.Linear(width, num_experts, bias=False)
        self.task_gate = nn.Linear(width, num_experts, bias=False)
        self.task_param = nn.Parameter(torch.empty(width))
        self.alpha = nn.Parameter(torch.empty(()))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width // 8), nn.ReLU(), nn.Linear(width // 8, width))
            for _ in range(num_experts)
        )

    def logits(self, z: Tensor) -> Tensor:
        return (1 - self.alpha) * self.input_gate(z) + self.alpha * self.task_gate(self.task_param)

    def affine(self, x: Tensor) -> Tensor:
        """The norm without its division, which the block has done."""
        return torch.addcmul(self.norm.bias, x, self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        z = self.affine(x)
        values, chosen = self.logits(z).topk(2, dim=-1)
        weights = values.softmax(dim=-1)
        out = torch.zeros_like(z)
        for index, expert in enumerate(self.experts):
            is_chosen = chosen == index
            if is_chosen.any():  # so an expert has no gradient where no token chose it
                rows = is_chosen.any(dim=-1)
                share = (weights * is_chosen).sum(dim=-1)[rows]
                out[rows] = out[rows] + share[:, None] * expert(z[rows])
        return self.scale * out

    def record(self, x: Tensor) -> Tensor:
        """Probabilities of all experts and the 0/1 choice, [B, L, 2 * E]."""
        logits = self.logits(self.affine(x))
        choice = torch.zeros_like(logits).scatter(-1, logits.topk(2, dim=-1).indices, 1.0)
        return torch.cat([logits.softmax(dim=-1), choice], dim=-1)


@register_part("experts")
class MixtureOfExperts(Part):
    """`Experts` in every block of both towers."""

    @part_config
    class Config:
        num_experts: int = 4

    def __init__(self, config: Any, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        for side, scale in (("vision", 0.1), ("text", 4.0)):
            layers, width = (getattr(architecture, f"{side}_{name}") for name in ("layers", "width"))
            self.add_module(side, nn.ModuleList(Experts(width, config.num_experts, scale) for _ in range(layers)))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, embed_words: Any = None) -> None:
        super().initialise(generator, embed_words)
        for experts in self.modules():
            if isinstance(experts, Experts):
                experts.alpha.fill_(0.5)
                experts.task_param.normal_(generator=generator)

    def extras(self, side: Side) -> PartExtras:
        return PartExtras(beside_mlp=list(self.get_submodule(side).children()))

    def outputs(self, side: Side, records: Sequence[Tensor], mask: Tensor) -> Mapping[str, Tensor]:
        return {"means": torch.stack([record.mean(dim=1) for record in records], dim=1)}


@register("heads_sdm")
@dataclass(eq=False)
class HeadsSDM(Loss):
    """SDM of every embedding head."""

    temperature: float = 0.05

    def forward(self, inputs: LossInputs) -> Tensor:
        losses = []
        for name in inputs.embeddings:
            of_head = inputs.of_head(name)
            losses.append(sdm(of_head.image_features, of_head.text_features, inputs.pids, temperature=self.temperature))
        return torch.stack(losses).sum()


@register("spread")
@dataclass(eq=False)
class Balance(Loss):
    """E times the sum over experts of mean probability and mean choice, summed over all blocks of both towers."""

    def forward(self, inputs: LossInputs) -> Tensor:
        total = torch.zeros(())
        for side in ("vision", "text"):
            means = inputs.extra[f"experts.{side}.means"].mean(dim=0)  # [blocks, 2 * E]
            probability, choice = means.chunk(2, dim=1)
            total = total + probability.shape[1] * (probability * choice).sum()
        return total
