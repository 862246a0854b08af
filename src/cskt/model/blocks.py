"""Blocks of CLIP's transformers (Radford et al. 2021, section 2.4), which take the modules of a method as arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

QUICK_SLOPE = 1.702
"""Slope of the sigmoid in `quick_gelu`."""
QUERY_KEY_VALUE = ("query", "key", "value")
"""Parts of an attention's joint projection, in its order."""
QUERY, KEY_VALUE = QUERY_KEY_VALUE[:1], QUERY_KEY_VALUE[1:]


def quick_gelu(x: Tensor) -> Tensor:
    """Compute x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    # Through SiLU, autograd stores one tensor where the formula as written would store two.
    return F.silu(QUICK_SLOPE * x).div_(QUICK_SLOPE)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def block_deviations(width: int, depth: int) -> dict[str, float]:
    """Return the standard deviations with which CLIP's text tower draws its blocks: end of a weight's name -> value."""
    output_std = width**-0.5 * (2 * depth) ** -0.5
    return {
        "in_proj.weight": width**-0.5, "out_proj.weight": output_std, "c_fc.weight": (2 * width) ** -0.5,
        "c_proj.weight": output_std,
    }  # fmt: skip


def apply_linear(layer: nn.Linear, x: Tensor, low_rank: nn.ModuleDict | None, target: str) -> Tensor:
    """Apply a linear layer with its low-rank update, if it has one."""
    if low_rank is None or target not in low_rank:
        return layer(x)
    return layer(x) + low_rank[target](x)


def pick(tokens: Tensor, positions: Tensor) -> Tensor:
    """Pick one token of each sequence: [B, L, width] at [B] int64 -> [B, 1, width]."""
    return tokens.gather(1, positions[:, None, None].expand(-1, 1, tokens.shape[-1]))


class Attention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        *,
        query_tokens: Tensor | None = None,
        prefix_kv: Tensor | None = None,
        mask: Tensor | None = None,
        low_rank: nn.ModuleDict | None = None,
    ) -> Tensor:
        """Attend from the query tokens to `x` [B, L, width] and the prefix: -> [B, A, width].

        Args:
            query_tokens: [B, A, width], those tokens of x whose output is needed; None: all.
            prefix_kv: [1, S, 2 * width], keys and values of S more tokens for every sequence, placed after those of x.
            mask: [A, L + S] or [B, 1, A, L + S], true where a query attends to a token; None: to all.
            low_rank: updates of the projections.
        """
        # In two projections, so that keys and values without the prefix are not stored for the backward pass.
        query = self.project(x if query_tokens is None else query_tokens, QUERY, low_rank)
        key_value = self.project(x, KEY_VALUE, low_rank)
        if prefix_kv is not None:
            key_value = torch.cat([key_value, prefix_kv.expand(len(x), -1, -1)], dim=1)
        key, value = key_value.chunk(2, dim=-1)
        query, key, value = self._split_heads(query), self._split_heads(key), self._split_heads(value)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return apply_linear(self.out_proj, attended.transpose(1, 2).flatten(2), low_rank, "out")

    def _split_heads(self, projected: Tensor) -> Tensor:
        """[B, L, width] -> [B, heads, L, width / heads]."""
        batch, length, width = projected.shape
        return projected.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def project(self, x: Tensor, parts: Sequence[str], low_rank: nn.ModuleDict | None) -> Tensor:
        """[B, L, width] -> [B, L, len(parts) * width]; `parts` are neighbours in the joint projection."""
        width, first = self.in_proj.in_features, QUERY_KEY_VALUE.index(parts[0])
        rows = slice(first * width, (first + len(parts)) * width)
        projected = F.linear(x, self.in_proj.weight[rows], self.in_proj.bias[rows])
        if low_rank is None or not any(part in low_rank for part in parts):
            return projected
        updates = [low_rank[part](x) if part in low_rank else torch.zeros_like(x) for part in parts]
        return projected + torch.cat(updates, dim=-1)


class MLP(nn.Module):
    """Two linear layers, four times the width between them."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, low_rank: nn.ModuleDict | None = None) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        hidden = self.activation(apply_linear(self.c_fc, x, low_rank, "fc"))
        return apply_linear(self.c_proj, hidden, low_rank, "proj")


class Block(nn.Module):
    """Pre-norm transformer block, with an optional adapter beside the MLP on the attention's output."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp: nn.Module = MLP(width, activation)

    def forward(
        self,
        x: Tensor,
        *,
        prefix_kv: Tensor | None = None,
        mask: Tensor | None = None,
        query_positions: Tensor | None = None,
        adapter: nn.Module | None = None,
        low_rank: nn.ModuleDict | None = None,
    ) -> Tensor:
        """Compute the tokens after this block: [B, L, width] -> the same, or [B, 1, width] with `query_positions`.

        Args:
            prefix_kv: [1, S, 2 * width], see `Attention` and `keys_and_values`.
            mask: [L, L + S], true where a token attends to another; None: to all.
            query_positions: [B] int64, the one token of each sequence that is needed; None: all.
            adapter: takes tokens of mean 0 and variance 1.
            low_rank: updates by target.
        """
        normalised, queries = self.ln_1(x), None
        if query_positions is not None:
            x, queries = pick(x, query_positions), pick(normalised, query_positions)
            mask = None if mask is None else mask[query_positions][:, None, None]
        x = x + self.attn(normalised, query_tokens=queries, prefix_kv=prefix_kv, mask=mask, low_rank=low_rank)
        if adapter is None:
            return x + self.mlp(self.ln_2(x), low_rank)
        # Normalised once for both, which have affine maps of their own.
        normalised = F.layer_norm(x, x.shape[-1:], eps=self.ln_2.eps)
        return x + self.mlp(torch.addcmul(self.ln_2.bias, normalised, self.ln_2.weight), low_rank) + adapter(normalised)

    def keys_and_values(self, x: Tensor, low_rank: nn.ModuleDict | None = None) -> Tensor:
        """[B, S, width] tokens before this block -> [B, S, 2 * width]."""
        return self.attn.project(self.ln_1(x), KEY_VALUE, low_rank)


@dataclass(frozen=True)
class TowerExtras:
    """Modules and tensors that a method adds to one tower; none by default."""

    prompts: Sequence[Tensor] = ()
    """One [P, width] per prompted block."""
    adapters: nn.ModuleList | None = None
    """One adapter per block."""
    low_rank: nn.ModuleList | None = None
    """Per block, its low-rank updates by target."""

    def of_block(self, index: int) -> tuple[nn.Module | None, nn.ModuleDict | None]:
        """Return adapter and low-rank updates of a block."""
        adapter = None if self.adapters is None else self.adapters[index]
        if self.low_rank is None:
            return adapter, None
        return adapter, cast(nn.ModuleDict, self.low_rank[index])


NO_EXTRAS = TowerExtras()


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    extras: TowerExtras,
    *,
    prefix_kv: Sequence[Tensor],
    appended: Tensor | None = None,
    mask: Tensor | None = None,
    query_positions: Tensor | None = None,
    checkpoint_activations: bool = False,
) -> Tensor:
    """Pass tokens [B, L, width] through the blocks of a tower.

    Args:
        prefix_kv: [1, S, 2 * width] for each of the first blocks, see `Attention`.
        appended: [P, width], tokens at the end of every sequence from the first block without `prefix_kv` on.
        mask: [L, L + S], see `Block`.
        query_positions: [B] int64, the tokens that are needed of the last block; None: all.
        checkpoint_activations: compute activations again in the backward pass instead of storing them.

    Returns:
        [B, L, width], with `appended` [B, L + P, width], with `query_positions` [B, 1, width].
    """
    for index, block in enumerate(blocks):
        if index == len(prefix_kv) and appended is not None:
            x = torch.cat([x, appended.expand(len(x), -1, -1)], dim=1)
        adapter, low_rank = extras.of_block(index)
        run = partial(
            block,
            prefix_kv=prefix_kv[index] if index < len(prefix_kv) else None,
            mask=mask,
            query_positions=query_positions if index + 1 == len(blocks) else None,
            adapter=adapter,
            low_rank=low_rank,
        )
        is_checkpointed = checkpoint_activations and torch.is_grad_enabled()
        x = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False) if is_checkpointed else run(x)
    return x
