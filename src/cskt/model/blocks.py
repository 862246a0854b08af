"""Blocks of CLIP's transformers (Radford et al. 2021, section 2.4), which take the modules of a method as arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cskt.model.attention import (
    KEY_VALUE,
    QUERY_KEY_VALUE,
    Attention,
    Packing,
    Updates,
    apply_linear,
    pick,
)
from cskt.model.dropout import AttentionDropout

QUICK_SLOPE = 1.702
"""Slope of the sigmoid in `quick_gelu`."""
LAYERS = {
    "query": "attn.in_proj", "key": "attn.in_proj", "value": "attn.in_proj", "out": "attn.out_proj",
    "fc": "mlp.c_fc", "proj": "mlp.c_proj",
}  # fmt: skip
"""Target of a low-rank update -> the layer of a block that it updates."""


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


class BlockExtras(NamedTuple):
    """Modules that a method adds to one block; none by default. Each kind is given in the order of the parts."""

    before_attention: tuple[nn.Module, ...] = ()
    """x [B, L, width] before the first norm -> [B, L, width], added to the input of the attention."""
    before_mlp: tuple[nn.Module, ...] = ()
    """x before the second norm, likewise, added to the input of the MLP."""
    beside_mlp: tuple[nn.Module, ...] = ()
    """Tokens of mean 0 and variance 1 [B, L, width] -> [B, L, width], added to the residual stream with the MLP.

    One with `record(tokens) -> [B, L, K]` makes a record of every token in training (`Observed`)."""
    low_rank: tuple[nn.ModuleDict, ...] = ()
    """Updates of linear layers by target (`LAYERS`)."""

    @property
    def modules(self) -> list[nn.Module]:
        """All of them."""
        return [module for kind in self for module in kind]


NO_BLOCK_EXTRAS = BlockExtras()


def add(x: Tensor, branches: Iterable[nn.Module], branch_input: Tensor) -> Tensor:
    """Return x plus the output of every branch."""
    for branch in branches:
        x = x + branch(branch_input)
    return x


class MLP(nn.Module):
    """Two linear layers, four times the width between them."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, low_rank: Updates = ()) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        hidden = self.activation(apply_linear(self.c_fc, x, low_rank, "fc"))
        return apply_linear(self.c_proj, hidden, low_rank, "proj")


class Block(nn.Module):
    """Pre-norm transformer block, with the modules that a method adds as an argument."""

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
        extras: BlockExtras = NO_BLOCK_EXTRAS,
        records: bool = False,
        dropout: AttentionDropout | None = None,
        packing: Packing | None = None,
    ) -> Any:
        """Compute the tokens after this block: [B, L, width] -> the same, or [B, 1, width] with `query_positions`.

        Args:
            prefix_kv: [1, S, 2 * width], see `Attention` and `keys_and_values`.
            mask: [L, L + S], true where a token attends to another; None: to all.
            query_positions: [B] int64, the one token of each sequence that is needed; None: all.
            extras: modules of a method.
            records: return the tokens and a list of the records of the branches that make one (`recording`).
            dropout: of the attention of this block.
            packing: x is [1, T, width], and so is the result without `query_positions`; see `Attention`.
        """
        normalised, queries = add(self.ln_1(x), extras.before_attention, x), None
        if query_positions is not None:
            x, queries = pick(x, query_positions, packing), pick(normalised, query_positions, packing)
            mask = None if mask is None else mask[query_positions][:, None, None]
        low_rank = extras.low_rank
        x = x + self.attn(
            normalised, query_tokens=queries, prefix_kv=prefix_kv, mask=mask, low_rank=low_rank,
            dropout=dropout, query_positions=query_positions, packing=packing,
        )  # fmt: skip
        if not extras.beside_mlp:
            return x + self.mlp(add(self.ln_2(x), extras.before_mlp, x), low_rank)
        # Normalised once for MLP and branches, which have affine maps of their own.
        normalised = F.layer_norm(x, x.shape[-1:], eps=self.ln_2.eps)
        mlp_input = add(torch.addcmul(self.ln_2.bias, normalised, self.ln_2.weight), extras.before_mlp, x)
        out = add(x + self.mlp(mlp_input, low_rank), extras.beside_mlp, normalised)
        return (out, [branch.record(normalised) for branch in recording(extras)]) if records else out

    def attention_weights(
        self,
        x: Tensor,
        positions: Tensor,
        *,
        prefix_kv: Tensor | None = None,
        mask: Tensor | None = None,
        extras: BlockExtras = NO_BLOCK_EXTRAS,
    ) -> Tensor:
        """Compute the weights with which the tokens at `positions` [B] attend: [B, L + S], the mean over the heads."""
        normalised = add(self.ln_1(x), extras.before_attention, x)
        mask = None if mask is None else mask[positions][:, None, None]
        return self.attn.attention_weights(
            normalised, pick(normalised, positions), prefix_kv=prefix_kv, mask=mask, low_rank=extras.low_rank
        )

    def keys_and_values(self, x: Tensor, extras: BlockExtras = NO_BLOCK_EXTRAS) -> Tensor:
        """[B, S, width] tokens before this block -> [B, S, 2 * width]."""
        return self.attn.project(add(self.ln_1(x), extras.before_attention, x), KEY_VALUE, extras.low_rank)

    @torch.no_grad()
    def fold(self, low_rank: Updates) -> None:
        """Add low-rank updates, each with `delta()` [out_width, in_width], to the weights of the layers."""
        for updates in low_rank:
            for target, update in updates.items():
                layer = self.get_submodule(LAYERS[target])
                assert isinstance(layer, nn.Linear)
                delta, whole = update.delta(), layer.weight.clone()  # type: ignore[operator]
                first = len(delta) * QUERY_KEY_VALUE.index(target) if target in QUERY_KEY_VALUE else 0
                whole[first : first + len(delta)] += delta
                layer.weight = nn.Parameter(whole, layer.weight.requires_grad)


@dataclass(frozen=True)
class TowerExtras:
    """Tensors and modules that a method adds to one tower; none by default."""

    prompts: Sequence[Tensor] = ()
    """One [P, width] per prompted block, from the first."""
    prefix_kv: Sequence[Tensor] = ()
    """One [S, 2 * width] per block, from the first: keys and values of S more tokens, which every token attends to."""
    blocks: Sequence[BlockExtras] = ()
    """One per block, or none at all."""

    @property
    def batched_prefix_kv(self) -> list[Tensor]:
        """`prefix_kv` with a first dimension of 1, as towers take it."""
        return [added[None] for added in self.prefix_kv]

    def of_block(self, index: int) -> BlockExtras:
        """Return the modules of a block."""
        return self.blocks[index] if self.blocks else NO_BLOCK_EXTRAS


NO_EXTRAS = TowerExtras()


def recording(extras: BlockExtras) -> list[Any]:
    """Return the branches of a block that record their tokens."""
    return [branch for branch in extras.beside_mlp if hasattr(branch, "record")]


@dataclass
class Observed:
    """Facts about a pass through a tower that heads and losses need beside the tokens; `run_blocks` fills it in."""

    needs_attention: bool = False
    """True if the attention of the query token in the last block is needed."""
    needs_records: bool = False
    """True if the records of the branches are needed."""
    attention: Tensor | None = None
    """[B, L], weights with which the class or end token attends to the tokens, in the order of these."""
    records_by_block: list[dict[nn.Module, Tensor]] = field(default_factory=list)
    """Per block its branches -> their records, [B, L, K]."""


NOTHING_OBSERVED = Observed()


def with_prefix(own: Sequence[Tensor], extras: TowerExtras) -> list[Tensor]:
    """Return keys and values that a tower has cached, [1, S, 2 * width] per block from the first, and those that the
    method adds to them."""
    added = extras.prefix_kv
    joined = [torch.cat([cached, more[None]], dim=1) for cached, more in zip(own, added, strict=False)]
    return [*joined, *own[len(joined) :], *(more[None] for more in added[len(joined) :])]


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    extras: TowerExtras,
    *,
    prefix_kv: Sequence[Tensor],
    appended: Tensor | None = None,
    append_at: int = 0,
    mask: Tensor | None = None,
    query_positions: Tensor | None = None,
    checkpoint_activations: bool = False,
    observed: Observed = NOTHING_OBSERVED,
    observed_positions: Tensor | None = None,
    dropout: AttentionDropout | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Pass tokens [B, L, width] through the blocks of a tower.

    Args:
        prefix_kv: [1, S, 2 * width] for each of the first blocks, see `Attention`; S may differ between blocks.
        appended: [P, width], tokens at the end of every sequence from block `append_at` on.
        append_at: index of a block.
        mask: [L, L], true where a token attends to another; None: to all. Every token attends to the prefix.
        query_positions: [B] int64, the tokens that are needed of the last block; None: all.
        checkpoint_activations: compute activations again in the backward pass instead of storing them.
        observed: receives what it asks for: the attention as [B, L + S], of the tokens at `observed_positions` [B].
        dropout: of the attention of all blocks.
        packing: x is [1, T, width], with the tokens of all sequences. Only modules that see one token at a time can be
            among the extras then, and nothing is observed.

    Returns:
        [B, L, width], with `appended` [B, L + P, width], with `query_positions` [B, 1, width].
    """
    masks: dict[int, Tensor | None] = {}
    for index, block in enumerate(blocks):
        if index == append_at and appended is not None:
            x = torch.cat([x, appended.expand(len(x), -1, -1)], dim=1)
        cached = prefix_kv[index] if index < len(prefix_kv) else None
        num_cached = 0 if cached is None else cached.shape[1]
        if num_cached not in masks:
            masks[num_cached] = widened(mask, num_cached)
        added, is_last = extras.of_block(index), index + 1 == len(blocks)
        given: dict[str, Any] = {"prefix_kv": cached, "mask": masks[num_cached], "extras": added}
        if is_last and observed.needs_attention:
            assert isinstance(block, Block) and observed_positions is not None
            observed.attention = block.attention_weights(x, observed_positions, **given)
        branches = recording(added) if observed.needs_records else []
        if dropout is not None:
            given["dropout"] = dropout.of_block(index)
        if packing is not None:
            given["packing"] = packing
        run = partial(block, query_positions=query_positions if is_last else None, records=bool(branches), **given)
        is_checkpointed = checkpoint_activations and torch.is_grad_enabled()
        x = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False) if is_checkpointed else run(x)
        if observed.needs_records:
            x, found = x if branches else (x, [])
            observed.records_by_block.append(dict(zip(branches, found, strict=True)))
    return x


def widened(mask: Tensor | None, num_cached: int) -> Tensor | None:
    """Add columns for a prefix that every token attends to: [L, L] -> [L, L + num_cached]."""
    return None if mask is None else torch.cat([mask, mask.new_ones(len(mask), num_cached)], dim=1)
