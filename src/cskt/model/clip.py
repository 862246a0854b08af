"""The two towers of CLIP (Radford et al. 2021, section 2.4), open at the places where a method joins in.

A tower takes prompts (tokens that hold fixed slots and are renewed block by block) and adapters (a module beside each
block's MLP) as arguments. It owns neither, and nothing here is trainable by itself: see `dual_encoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cskt.config import ClipArchitecture


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Attention(nn.Module):
    """Multi-head self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        """[B, L, width] -> [B, L, width]; with `causal` a token sees itself and what stands before it."""
        query, key, value = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers, four times the width between them."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    """A pre-norm transformer block; an adapter, where there is one, runs beside the MLP on the attention's output."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)

    def forward(self, x: Tensor, causal: bool, adapter: nn.Module | None) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        x = x + self.attn(self.ln_1(x), causal=causal)
        if adapter is None:
            return x + self.mlp(self.ln_2(x))
        return x + self.mlp(self.ln_2(x)) + adapter(x)


def run_blocks(
    blocks: nn.ModuleList,
    x: Tensor,
    *,
    causal: bool,
    slots: slice,
    prompts: Sequence[Tensor],
    adapters: nn.ModuleList | None,
    checkpoint_activations: bool,
) -> Tensor:
    """Pass `x` [B, L, width] through the blocks.

    Args:
        slots: token positions of the prompts; those of block 0 are already in `x`.
        prompts: one [P, width] per prompted block. From block `len(prompts)` on the slots keep what the previous
            block made of them.
        adapters: one per block, or none.
    """
    for index, block in enumerate(blocks):
        if 0 < index < len(prompts):
            renewed = prompts[index].expand(len(x), -1, -1)
            x = torch.cat([x[:, : slots.start], renewed, x[:, slots.stop :]], dim=1)
        adapter = None if adapters is None else adapters[index]
        if checkpoint_activations and torch.is_grad_enabled():
            x = checkpoint(block, x, causal, adapter, use_reentrant=False)
        else:
            x = block(x, causal, adapter)
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

    def forward(
        self, images: Tensor, *, prompts: Sequence[Tensor] = (), adapters: nn.ModuleList | None = None
    ) -> Tensor:
        """Hidden tokens `[class, patches, prompts]` after the last block.

        Args:
            images: [B, 3, H, W] float, normalised as CLIP does.
            prompts: one [P, vision_width] per prompted block; they stand last and carry no position.
            adapters: one per block, or none.

        Returns:
            [B, N + P, vision_width] with N = 1 + number of patches.
        """
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(images), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + self.positional_embedding
        num_tokens = x.shape[1]
        if prompts:
            x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
        return run_blocks(
            self.blocks,
            self.ln_pre(x),
            causal=False,
            slots=slice(num_tokens, x.shape[1]),
            prompts=prompts,
            adapters=adapters,
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

    def forward(
        self, placed: PlacedCaptions, *, prompts: Sequence[Tensor] = (), adapters: nn.ModuleList | None = None
    ) -> Tensor:
        """Hidden tokens `[start, prompts, words, end, padding]` after the last block.

        There is no padding mask: attention is causal, so nothing after the end token can reach it.

        Args:
            placed: captions with as many slots as the prompts have tokens.
            prompts: one [P, text_width] per prompted block; every slot keeps its position's embedding.
            adapters: one per block, or none.

        Returns:
            [B, L', text_width].
        """
        x = self.token_embedding(placed.ids)
        slots = slice(1, 1)
        if prompts:
            slots = slice(1, 1 + len(prompts[0]))
            x = torch.cat([x[:, :1], prompts[0].expand(len(x), -1, -1), x[:, slots.stop :]], dim=1)
        return run_blocks(
            self.blocks,
            x + self.positional_embedding[: x.shape[1]],
            causal=True,
            slots=slots,
            prompts=prompts,
            adapters=adapters,
            checkpoint_activations=self.checkpoint_activations,
        )

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden tokens [..., text_width] -> the shared space [..., D]."""
        return self.ln_final(hidden) @ self.proj
