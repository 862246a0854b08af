"""The blocks of CLIP's transformers (Radford et al. 2021, section 2.4), and what a method adds to them.

A block takes keys and values of tokens that the whole batch sees, an adapter beside its MLP and low-rank updates beside
its linear layers as arguments; it owns none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

QUICK = 1.702
"""Slope of the sigmoid in `quick_gelu`."""


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""
    # Through SiLU, autograd keeps one tensor where the formula as written would make it keep two.
    return F.silu(QUICK * x).div_(QUICK)


QUERY_KEY_VALUE = ("query", "key", "value")
"""Parts of an attention's joint projection, in its order."""
QUERY, KEY_VALUE = QUERY_KEY_VALUE[:1], QUERY_KEY_VALUE[1:]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def updated(layer: nn.Linear, x: Tensor, low_rank: nn.ModuleDict | None, target: str) -> Tensor:
    """What a linear layer makes of `x`, with its low-rank update where there is one."""
    if low_rank is None or target not in low_rank:
        return layer(x)
    return layer(x) + low_rank[target](x)


def pick(tokens: Tensor, positions: Tensor) -> Tensor:
    """One token of each sequence: [B, L, width] at [B] int64 -> [B, 1, width]."""
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
        asking: Tensor | None = None,
        seen: Tensor | None = None,
        mask: Tensor | None = None,
        low_rank: nn.ModuleDict | None = None,
    ) -> Tensor:
        """What the tokens that ask learn from all that they see.

        Args:
            x: [B, L, width], the tokens that give keys and values.
            asking: [B, A, width], those of them that ask; if empty, all do.
            seen: [1, S, 2 * width], keys and values of other tokens, common to the batch; they stand after those of x.
            mask: [A, L + S] or [B, 1, A, L + S], true where a token sees another; if empty, all see all.
            low_rank: updates of the projections.

        Returns:
            [B, A, width].
        """
        # Apart, so that the keys and values without `seen` need not be kept for the backward pass.
        query = self.project(x if asking is None else asking, QUERY, low_rank)
        key_value = self.project(x, KEY_VALUE, low_rank)
        if seen is not None:
            key_value = torch.cat([key_value, seen.expand(len(x), -1, -1)], dim=1)
        key, value = key_value.chunk(2, dim=-1)
        query, key, value = self._heads(query), self._heads(key), self._heads(value)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return updated(self.out_proj, attended.transpose(1, 2).flatten(2), low_rank, "out")

    def _heads(self, projected: Tensor) -> Tensor:
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
        return updated(self.c_proj, self.activation(updated(self.c_fc, x, low_rank, "fc")), low_rank, "proj")


class Block(nn.Module):
    """A pre-norm transformer block; an adapter, where there is one, runs beside the MLP on the attention's output."""

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
        seen: Tensor | None = None,
        mask: Tensor | None = None,
        asking: Tensor | None = None,
        adapter: nn.Module | None = None,
        low_rank: nn.ModuleDict | None = None,
    ) -> Tensor:
        """The tokens after this block.

        Args:
            x: [B, L, width].
            seen: [1, S, 2 * width], what `keys_and_values` made of tokens that the whole batch sees.
            mask: [L, L + S], true where a token sees another; if empty, all see all.
            asking: [B] int64, the one token of each sequence that is wanted; if empty, all are.
            adapter: takes tokens of mean 0 and variance 1.
            low_rank: updates by target.

        Returns:
            [B, L, width], or [B, 1, width] with `asking`.
        """
        normalised, queries = self.ln_1(x), None
        if asking is not None:
            x, queries = pick(x, asking), pick(normalised, asking)
            mask = None if mask is None else mask[asking][:, None, None]
        x = x + self.attn(normalised, asking=queries, seen=seen, mask=mask, low_rank=low_rank)
        if adapter is None:
            return x + self.mlp(self.ln_2(x), low_rank)
        # One normalisation serves both; each has its own affine map.
        normalised = F.layer_norm(x, x.shape[-1:], eps=self.ln_2.eps)
        return x + self.mlp(torch.addcmul(self.ln_2.bias, normalised, self.ln_2.weight), low_rank) + adapter(normalised)

    def keys_and_values(self, x: Tensor, low_rank: nn.ModuleDict | None = None) -> Tensor:
        """[B, S, width] tokens that stand before this block -> [B, S, 2 * width], side by side."""
        return self.attn.project(self.ln_1(x), KEY_VALUE, low_rank)


@dataclass(frozen=True)
class Additions:
    """What a method adds to one tower; by default nothing."""

    prompts: Sequence[Tensor] = ()
    """One [P, width] per prompted block."""
    adapters: nn.ModuleList | None = None
    """One adapter per block."""
    low_rank: nn.ModuleList | None = None
    """Per block, its low-rank updates by target."""

    def of_block(self, index: int) -> tuple[nn.Module | None, nn.ModuleDict | None]:
        """(adapter, low-rank updates) of a block."""
        adapter = None if self.adapters is None else self.adapters[index]
        if self.low_rank is None:
            return adapter, None
        updates = self.low_rank[index]
        assert isinstance(updates, nn.ModuleDict)
        return adapter, updates


NOTHING = Additions()


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    added: Additions,
    *,
    seen: Sequence[Tensor],
    joining: Tensor | None = None,
    mask: Tensor | None = None,
    asking: Tensor | None = None,
    checkpoint_activations: bool = False,
) -> Tensor:
    """Pass tokens through the blocks of a tower.

    Args:
        x: [B, L, width].
        added: adapters and low-rank updates of the blocks.
        seen: [1, S, 2 * width] per block, from the first: keys and values that the whole batch sees.
        joining: [P, width], tokens that stand last in every sequence from the first block without `seen` on.
        mask: [L, L + S], see `Block`.
        asking: [B] int64, the tokens that are wanted of the last block; if empty, all.
        checkpoint_activations: keep no activations for the backward pass, compute them again there.

    Returns:
        [B, L, width], with `joining` [B, L + P, width], with `asking` [B, 1, width].
    """
    for index, block in enumerate(blocks):
        if index == len(seen) and joining is not None:
            x = torch.cat([x, joining.expand(len(x), -1, -1)], dim=1)
        adapter, low_rank = added.of_block(index)
        run = partial(
            block,
            seen=seen[index] if index < len(seen) else None,
            mask=mask,
            asking=asking if index + 1 == len(blocks) else None,
            adapter=adapter,
            low_rank=low_rank,
        )
        x = (
            checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
            if checkpoint_activations and torch.is_grad_enabled()
            else run(x)
        )
    return x
