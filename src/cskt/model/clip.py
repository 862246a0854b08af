"""The two towers of CLIP (Radford et al. 2021, section 2.4), open at the places where a method joins in.

A tower takes prompts (tokens that hold fixed slots and are renewed block by block), adapters (a module beside each
block's MLP) and low-rank updates (a module beside a linear layer) as arguments. It owns none of them, and nothing here
is trainable by itself: see `dual_encoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cskt.config import ClipArchitecture


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


QUERY_KEY_VALUE = ("query", "key", "value")
"""Parts of an attention's joint projection, in its order."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def updated(layer: nn.Linear, x: Tensor, low_rank: nn.ModuleDict | None, target: str) -> Tensor:
    """What a linear layer makes of `x`, with its low-rank update where there is one."""
    if low_rank is None or target not in low_rank:
        return layer(x)
    return layer(x) + low_rank[target](x)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, causal: bool, low_rank: nn.ModuleDict | None = None) -> Tensor:
        """[B, L, width] -> [B, L, width]; with `causal` a token sees itself and what stands before it."""
        projected: Any = self._project(x, low_rank)  # torch types `unflatten` not at all
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return updated(self.out_proj, attended.transpose(1, 2).flatten(2), low_rank, "out")

    def _project(self, x: Tensor, low_rank: nn.ModuleDict | None) -> Tensor:
        """[B, L, 3 * width]: queries, keys and values side by side."""
        projected: Tensor = self.in_proj(x)
        if low_rank is None or not any(part in low_rank for part in QUERY_KEY_VALUE):
            return projected
        updates = [low_rank[part](x) if part in low_rank else torch.zeros_like(x) for part in QUERY_KEY_VALUE]
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
        self.mlp = MLP(width, activation)

    def forward(
        self, x: Tensor, causal: bool, adapter: nn.Module | None = None, low_rank: nn.ModuleDict | None = None
    ) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        x = x + self.attn(self.ln_1(x), causal=causal, low_rank=low_rank)
        if adapter is None:
            return x + self.mlp(self.ln_2(x), low_rank)
        return x + self.mlp(self.ln_2(x), low_rank) + adapter(x)


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
    *,
    causal: bool,
    slots: slice,
    added: Additions,
    checkpoint_activations: bool,
) -> Tensor:
    """Pass `x` [B, L, width] through the blocks.

    Args:
        slots: token positions of the prompts; those of block 0 are already in `x`. From the first block without
            prompts of its own on, the slots keep what the previous block made of them.
        added: prompts, adapters, low-rank updates.
    """
    for index, block in enumerate(blocks):
        if 0 < index < len(added.prompts):
            renewed = added.prompts[index].expand(len(x), -1, -1)
            x = torch.cat([x[:, : slots.start], renewed, x[:, slots.stop :]], dim=1)
        adapter, low_rank = added.of_block(index)
        if checkpoint_activations and torch.is_grad_enabled():
            x = checkpoint(block, x, causal, adapter, low_rank, use_reentrant=False)
        else:
            x = block(x, causal, adapter, low_rank)
    return x


class VisionTower(nn.Module):
    """Vision transformer: patches, a class token, positions, blocks, projection."""

    def __init__(self, architecture: ClipArchitecture) -> None:
        super().__init__()
        width, (rows, columns) = architecture.vision_width, architecture.grid
        self.checkpoint_activations = False
        self.conv1 = nn.Conv2d(3, width, architecture.patch_size, stride=architecture.stride, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + rows * columns, width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, architecture.vision_heads, architecture.activation) for _ in range(architecture.vision_layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim))

    def forward(self, images: Tensor, added: Additions = NOTHING) -> Tensor:
        """Hidden tokens `[class, patches, prompts]` after the last block.

        Args:
            images: [B, 3, H, W] float, normalised as CLIP does.
            added: what the method adds; prompts stand last and carry no position.

        Returns:
            [B, N + P, vision_width] with N = 1 + number of patches.
        """
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(images), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + self.positional_embedding
        num_tokens = x.shape[1]
        if added.prompts:
            x = torch.cat([x, added.prompts[0].expand(len(x), -1, -1)], dim=1)
        return run_blocks(
            self.blocks,
            self.ln_pre(x),
            causal=False,
            slots=slice(num_tokens, x.shape[1]),
            added=added,
            checkpoint_activations=self.checkpoint_activations,
        )

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden tokens [..., vision_width] -> the shared space [..., D]."""
        return self.ln_post(hidden) @ self.proj


class PlacedCaptions(NamedTuple):
    """Captions with room for prompts after the start token."""

    ids: Tensor
    """[B, L'] int64, zeros in the prompt slots."""
    end_positions: Tensor
    """[B] int64, where each end token stands now."""


def place_prompts(caption_ids: Tensor, num_slots: int, *, end_id: int, context_length: int) -> PlacedCaptions:
    """Open `num_slots` prompt slots after the start token; words that no longer fit fall away before the end token.

    Args:
        caption_ids: [B, L] int64 with start and end tokens, anything after the end. Not changed.
        num_slots: prompt tokens P to make room for.
        end_id: id of the end token, the largest of the vocabulary.
        context_length: most tokens that may come out.

    Returns:
        ids [B, min(L + P, context_length)] and the position of each row's end token.
    """
    head, words = caption_ids[:, :1], caption_ids[:, 1:]
    slots = caption_ids.new_zeros(len(caption_ids), num_slots)
    ids = torch.cat([head, slots, words], dim=1)[:, :context_length]
    # argmax finds the first of equal values, so a second end token in the padding does no harm.
    end_positions = (caption_ids.argmax(dim=1) + num_slots).clamp_max(context_length - 1)
    return PlacedCaptions(ids.scatter(1, end_positions[:, None], end_id), end_positions)


class TextTower(nn.Module):
    """Causal text transformer; a caption's feature is read at its end token."""

    def __init__(self, architecture: ClipArchitecture) -> None:
        super().__init__()
        width = architecture.text_width
        self.context_length = architecture.context_length
        self.end_id = architecture.vocab_size - 1
        self.checkpoint_activations = False
        # Unset, as the rest: drawing 25 million numbers that nobody keeps would take longer than all else here.
        unset = torch.empty(architecture.vocab_size, width)
        self.token_embedding = nn.Embedding.from_pretrained(unset, freeze=False)  # type: ignore[no-untyped-call]
        self.positional_embedding = nn.Parameter(torch.empty(architecture.context_length, width))
        self.blocks = nn.ModuleList(
            Block(width, architecture.text_heads, architecture.activation) for _ in range(architecture.text_layers)
        )
        self.ln_final = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim))

    def place(self, caption_ids: Tensor, num_slots: int) -> PlacedCaptions:
        """`place_prompts` with this tower's vocabulary and context."""
        return place_prompts(caption_ids, num_slots, end_id=self.end_id, context_length=self.context_length)

    def forward(self, placed: PlacedCaptions, added: Additions = NOTHING) -> Tensor:
        """Hidden tokens `[start, prompts, words, end, padding]` after the last block.

        There is no padding mask: attention is causal, so nothing after the end token can reach it.

        Args:
            placed: captions with as many slots as the prompts have tokens.
            added: what the method adds; every prompt slot keeps its position's embedding.

        Returns:
            [B, L', text_width].
        """
        x = self.token_embedding(placed.ids)
        slots = slice(1, 1)
        if added.prompts:
            slots = slice(1, 1 + len(added.prompts[0]))
            x = torch.cat([x[:, :1], added.prompts[0].expand(len(x), -1, -1), x[:, slots.stop :]], dim=1)
        return run_blocks(
            self.blocks,
            x + self.positional_embedding[: x.shape[1]],
            causal=True,
            slots=slots,
            added=added,
            checkpoint_activations=self.checkpoint_activations,
        )

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden tokens [..., text_width] -> the shared space [..., D]."""
        return self.ln_final(hidden) @ self.proj
