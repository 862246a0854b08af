"""The two towers of CLIP (Radford et al. 2021, section 2.4), open at the places where a method joins in.

A tower takes prompts (tokens that are renewed block by block), adapters (a module beside each block's MLP) and low-rank
updates (a module beside a linear layer) as arguments. It owns none of them, and nothing here is trainable by itself:
see `dual_encoder`.

What does not depend on the image or the caption is computed once for a whole batch: prompts, and in the causal text
tower the start token before them, are keys and values that every sequence sees. Where only a tower's feature is asked
for, the last block computes the one token that carries it. Both give the numbers of the plain wiring, in which all
tokens pass all blocks, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cskt.config import ClipArchitecture
from cskt.model.blocks import NOTHING, Additions, Block, run_blocks


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

    def seen(self, added: Additions) -> list[Tensor]:
        """Keys and values of the prompts, for every block after which they are renewed or no longer needed.

        Such prompts are asked nothing, so nothing else of them is computed. The last ones of a tower that has blocks
        without prompts of their own are not among them: these become tokens like all others.

        Returns:
            [1, P, 2 * vision_width] per block, from the first.
        """
        depth = len(added.prompts)
        blocks = self.blocks[: depth if depth == len(self.blocks) else max(depth - 1, 0)]
        return [
            block.keys_and_values(self._before(index, added)[None], added.of_block(index)[1])  # type: ignore[operator]
            for index, block in enumerate(blocks)
        ]

    def forward(self, images: Tensor, added: Additions = NOTHING) -> Tensor:
        """Hidden tokens `[class, patches]` after the last block.

        Args:
            images: [B, 3, H, W] float, normalised with the architecture's mean and std.
            added: what the method adds; prompts carry no position.

        Returns:
            [B, N, vision_width] with N = 1 + number of patches.
        """
        return self._run(images, added, self.seen(added), asking=None)[:, : len(self.positional_embedding)]

    def class_token(self, images: Tensor, added: Additions = NOTHING, seen: Sequence[Tensor] | None = None) -> Tensor:
        """The hidden token that carries an image's feature; see `forward`.

        Args:
            seen: what `self.seen(added)` gives, where it is known already.

        Returns:
            [B, vision_width].
        """
        first = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        return self._run(images, added, self.seen(added) if seen is None else seen, asking=first)[:, 0]

    def _run(self, images: Tensor, added: Additions, seen: Sequence[Tensor], asking: Tensor | None) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(images), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + self.positional_embedding
        depth = len(added.prompts)
        return run_blocks(
            self.blocks,
            self.ln_pre(x),
            added,
            seen=seen,
            joining=self._before(depth - 1, added) if len(seen) < depth else None,
            asking=asking,
            checkpoint_activations=self.checkpoint_activations,
        )

    def _before(self, index: int, added: Additions) -> Tensor:
        """[P, vision_width], the prompts as they stand before a block."""
        return self.ln_pre(added.prompts[index]) if index == 0 else added.prompts[index]

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


class Prefix(NamedTuple):
    """What all captions have in common: the start token and the prompts. Nothing that follows can reach them."""

    seen: list[Tensor]
    """[1, 1 + P, 2 * text_width] per block: their keys and values."""
    hidden: Tensor
    """[1, 1 + P, text_width] after the last block."""


class TextTower(nn.Module):
    """Causal text transformer; a caption's feature is read at its end token."""

    def __init__(self, architecture: ClipArchitecture) -> None:
        super().__init__()
        width = architecture.text_width
        self.context_length = architecture.context_length
        self.start_id, self.end_id = architecture.vocab_size - 2, architecture.vocab_size - 1
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

    def prefix(self, added: Additions) -> Prefix:
        """The start token and the prompts, passed through the blocks; every prompt slot keeps its position."""
        x = self.token_embedding.weight[self.start_id][None]
        if added.prompts:
            x = torch.cat([x, added.prompts[0]])
        x = (x + self.positional_embedding[: len(x)])[None]
        causal, seen = _causal(x.shape[1], x.device), []
        for index, block in enumerate(self.blocks):
            adapter, low_rank = added.of_block(index)
            if 0 < index < len(added.prompts):
                x = torch.cat([x[:, :1], added.prompts[index][None]], dim=1)
            seen.append(block.keys_and_values(x, low_rank))  # type: ignore[operator]
            x = block(x, mask=causal, adapter=adapter, low_rank=low_rank)
        return Prefix(seen, x)

    def forward(self, placed: PlacedCaptions, added: Additions = NOTHING) -> Tensor:
        """Hidden tokens `[start, words, end, padding]` after the last block.

        There is no padding mask: attention is causal, so nothing after the end token can reach it.

        Args:
            placed: captions with as many slots as the prompts have tokens.
            added: what the method adds.

        Returns:
            [B, L' - P, text_width].
        """
        prefix = self.prefix(added)
        start = prefix.hidden[:, :1].expand(len(placed.ids), -1, -1)
        return torch.cat([start, self._run(placed.ids, added, prefix.seen, asking=None)], dim=1)

    def end_token(
        self, placed: PlacedCaptions, added: Additions = NOTHING, seen: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The hidden token that carries a caption's feature; see `forward`.

        Args:
            seen: what `self.prefix(added)` gives, where it is known already.

        Returns:
            [B, text_width].
        """
        seen = self.prefix(added).seen if seen is None else seen
        return self._run(placed.ids, added, seen, asking=placed.end_positions - seen[0].shape[1])[:, 0]

    def _run(self, ids: Tensor, added: Additions, seen: Sequence[Tensor], asking: Tensor | None) -> Tensor:
        """What follows the prefix: [B, L'] -> [B, L' - 1 - P, text_width]."""
        num_seen = seen[0].shape[1]
        words = ids[:, num_seen:]
        causal = _causal(words.shape[1], ids.device)
        return run_blocks(
            self.blocks,
            self.token_embedding(words) + self.positional_embedding[num_seen : ids.shape[1]],
            added,
            seen=seen,
            mask=torch.cat([causal, causal.new_ones(len(causal), num_seen)], dim=1),
            asking=asking,
            checkpoint_activations=self.checkpoint_activations,
        )

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden tokens [..., text_width] -> the shared space [..., D]."""
        return self.ln_final(hidden) @ self.proj


def _causal(length: int, device: torch.device) -> Tensor:
    """[L, L], true where a token sees another: itself and what stands before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
