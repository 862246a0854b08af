"""The two towers of CLIP (Radford et al. 2021, section 2.4), with arguments for what a method adds.

A tower takes prompts (tokens that are replaced block by block), keys and values, and modules of the blocks as
arguments. It owns none of them, and nothing here is trainable by itself: see `dual_encoder`.

What does not depend on the image or the caption is computed once per batch: prompts, and in the causal text tower the
start token before them, are cached prefix keys and values of every sequence. Where only a tower's feature is needed,
the last block computes the one token that carries it. The results are those of the plain wiring, in which all tokens
pass all blocks, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import ClipArchitecture
from cskt.model.attention import Packing
from cskt.model.blocks import (
    NO_EXTRAS,
    NOTHING_OBSERVED,
    Block,
    Observed,
    TowerExtras,
    recording,
    run_blocks,
    widened,
    with_prefix,
)
from cskt.model.dropout import AttentionDropout


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

    def prefix_kv(self, extras: TowerExtras) -> list[Tensor]:
        """Compute keys and values of the prompts, [1, P, 2 * vision_width] for every block after which they are
        replaced or no longer needed, and add those of `extras.prefix_kv`.

        The prompts of the last prompted block, if blocks without prompts of their own follow, are not among them: they
        become tokens like all others.
        """
        blocks = self.blocks[: self._num_cached(extras)]
        own = [
            block.keys_and_values(self._prompts_before(index, extras)[None], extras.of_block(index))  # type: ignore[operator]
            for index, block in enumerate(blocks)
        ]
        return with_prefix(own, extras)

    def _num_cached(self, extras: TowerExtras) -> int:
        """Return the number of blocks, from the first, whose prompts are keys and values and no tokens."""
        depth = len(extras.prompts)
        return depth if depth == len(self.blocks) else max(depth - 1, 0)

    def forward(
        self,
        images: Tensor,
        extras: TowerExtras = NO_EXTRAS,
        prefix_kv: Sequence[Tensor] | None = None,
        observed: Observed = NOTHING_OBSERVED,
    ) -> Tensor:
        """Normalised images [B, 3, H, W] float -> hidden tokens `[class, patches]` after the last block,
        [B, 1 + number of patches, vision_width].

        `prefix_kv` is `self.prefix_kv(extras)`, if it is known already; `observed` is filled in.
        """
        length = len(self.positional_embedding)
        prefix_kv = self.prefix_kv(extras) if prefix_kv is None else prefix_kv
        hidden = self._run(images, extras, prefix_kv, query_positions=None, observed=observed)
        if observed.attention is not None:
            observed.attention = observed.attention[:, :length]
        for records in observed.records_by_block:
            records.update({branch: record[:, :length] for branch, record in records.items()})
        return hidden[:, :length]

    def class_token(
        self, images: Tensor, extras: TowerExtras = NO_EXTRAS, prefix_kv: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Compute the hidden token that carries an image's feature: [B, vision_width]; see `forward`.

        `prefix_kv` is `self.prefix_kv(extras)`, if it is known already.
        """
        prefix_kv = self.prefix_kv(extras) if prefix_kv is None else prefix_kv
        return self._run(images, extras, prefix_kv, query_positions=_first_positions(images))[:, 0]

    def _run(
        self,
        images: Tensor,
        extras: TowerExtras,
        prefix_kv: Sequence[Tensor],
        query_positions: Tensor | None,
        observed: Observed = NOTHING_OBSERVED,
    ) -> Tensor:
        patches = self._embed_patches(images)
        class_token = self.class_embedding.expand(len(images), 1, -1)
        x = torch.cat([class_token, patches], dim=1) + self.positional_embedding
        depth, num_cached = len(extras.prompts), self._num_cached(extras)
        return run_blocks(
            self.blocks,
            self.ln_pre(x),
            extras,
            prefix_kv=prefix_kv,
            appended=self._prompts_before(depth - 1, extras) if num_cached < depth else None,
            append_at=num_cached,
            query_positions=query_positions,
            checkpoint_activations=self.checkpoint_activations,
            observed=observed,
            observed_positions=_first_positions(images),
        )

    def _embed_patches(self, images: Tensor) -> Tensor:
        """Apply `conv1`: [B, 3, H, W] -> [B, number of patches, vision_width].

        It is a matrix product, which CUDA computes exactly in float32 unless the program or its environment allows TF32
        in products. cuDNN would round a convolution to TF32, and only a flag of the whole process prevents that.
        """
        size, stride = self.conv1.weight.shape[2], self.conv1.stride[0]
        patches = images.unfold(2, size, stride).unfold(3, size, stride)  # [B, 3, rows, columns, size, size]
        return F.linear(patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2), self.conv1.weight.flatten(1))

    def _prompts_before(self, index: int, extras: TowerExtras) -> Tensor:
        """Return the prompts [P, vision_width] that enter a block."""
        return self.ln_pre(extras.prompts[index]) if index == 0 else extras.prompts[index]

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden tokens [..., vision_width] -> the shared space [..., D]."""
        return self.ln_post(hidden) @ self.proj


class PlacedCaptions(NamedTuple):
    """Captions with slots for prompts after the start token."""

    ids: Tensor
    """[B, L'] int64, zeros in the prompt slots."""
    end_positions: Tensor
    """[B] int64, position of each end token."""
    num_fixed: int
    """1 + P, start token and prompts, which are the same in all captions."""


def place_prompts(caption_ids: Tensor, num_slots: int, *, end_id: int, context_length: int) -> PlacedCaptions:
    """Insert prompt slots after the start token; words that no longer fit are dropped before the end token.

    Args:
        caption_ids: [B, L] int64 with start and end tokens, anything after the end. Not changed.
        num_slots: number P of prompt tokens.
        end_id: id of the end token, the largest of the vocabulary.
        context_length: largest number L' of tokens of the result.
    """
    head, words = caption_ids[:, :1], caption_ids[:, 1:]
    slots = caption_ids.new_zeros(len(caption_ids), num_slots)
    ids = torch.cat([head, slots, words], dim=1)[:, :context_length]
    # argmax finds the first of equal values, so a second end token in the padding does no harm.
    end_positions = (caption_ids.argmax(dim=1) + num_slots).clamp_max(context_length - 1)
    return PlacedCaptions(ids.scatter(1, end_positions[:, None], end_id), end_positions, 1 + num_slots)


class Prefix(NamedTuple):
    """Start token and prompts, which are the same for all captions: no later token can affect them."""

    kv: list[Tensor]
    """[1, 1 + P, 2 * text_width] per block: their keys and values, then those of `TowerExtras.prefix_kv`."""
    hidden: Tensor
    """[1, 1 + P, text_width] after the last block."""
    start_records: list[dict[nn.Module, Tensor]]
    """Per block its branches -> their records of the start token, [1, 1, K], if records are asked for."""


class TextTower(nn.Module):
    """Causal text transformer; a caption's feature is read at its end token."""

    def __init__(self, architecture: ClipArchitecture) -> None:
        super().__init__()
        width = architecture.text_width
        self.context_length = architecture.context_length
        self.start_id, self.end_id = architecture.vocab_size - 2, architecture.vocab_size - 1
        self.checkpoint_activations = False
        # Unset, as the rest: drawing 25 million numbers that are overwritten would take longer than all else here.
        unset = torch.empty(architecture.vocab_size, width)
        self.token_embedding = nn.Embedding.from_pretrained(unset, freeze=False)  # type: ignore[no-untyped-call]
        self.positional_embedding = nn.Parameter(torch.empty(architecture.context_length, width))
        self.blocks = nn.ModuleList(
            Block(width, architecture.text_heads, architecture.activation) for _ in range(architecture.text_layers)
        )
        self.ln_final = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim))

    def place(self, caption_ids: Tensor, num_slots: int) -> PlacedCaptions:
        """Call `place_prompts` with this tower's vocabulary and context."""
        return place_prompts(caption_ids, num_slots, end_id=self.end_id, context_length=self.context_length)

    def prefix(self, extras: TowerExtras, *, records: bool = False) -> Prefix:
        """Pass the start token and the prompts through the blocks; every prompt slot keeps its position."""
        x = self.token_embedding.weight[self.start_id][None]
        if extras.prompts:
            x = torch.cat([x, extras.prompts[0]])
        x = (x + self.positional_embedding[: len(x)])[None]
        causal, kv, start_records = _causal(x.shape[1], x.device), [], []
        for index, block in enumerate(self.blocks):
            if 0 < index < len(extras.prompts):
                x = torch.cat([x[:, :1], extras.prompts[index][None]], dim=1)
            kv.append(block.keys_and_values(x, extras.of_block(index)))  # type: ignore[operator]
            added = extras.prefix_kv[index][None] if index < len(extras.prefix_kv) else None
            mask = widened(causal, 0 if added is None else added.shape[1])
            branches = recording(extras.of_block(index)) if records else []
            x = block(x, prefix_kv=added, mask=mask, extras=extras.of_block(index), records=bool(branches))
            x, found = x if branches else (x, [])
            start_records.append({branch: record[:, :1] for branch, record in zip(branches, found, strict=True)})
        return Prefix(with_prefix(kv, extras), x, start_records)

    def forward(
        self,
        placed: PlacedCaptions,
        extras: TowerExtras = NO_EXTRAS,
        prefix: Prefix | None = None,
        observed: Observed = NOTHING_OBSERVED,
        *,
        dropout: AttentionDropout | None = None,
    ) -> Tensor:
        """Compute the hidden tokens `[start, words, end, padding]` after the last block: [B, L' - P, text_width].

        There is no padding mask: attention is causal, so nothing after the end token can affect it. `prefix` is
        `self.prefix(extras)`, if it is known already; `observed` is filled in. For `dropout` see `end_token`.
        """
        if dropout is not None:
            hidden = self._run(
                _whole(placed), extras, extras.batched_prefix_kv, None, observed=observed, dropout=dropout
            )
            if observed.attention is not None:
                observed.attention = observed.attention[:, : hidden.shape[1]]
            return hidden
        prefix = self.prefix(extras, records=observed.needs_records) if prefix is None else prefix
        words = self._run(placed, extras, prefix.kv, query_positions=None, observed=observed)
        if observed.attention is not None:  # the start token is the first of the prefix, whose columns come last
            weights, num_words = observed.attention, words.shape[1]
            observed.attention = torch.cat([weights[:, num_words : num_words + 1], weights[:, :num_words]], dim=1)
        for records, of_start in zip(observed.records_by_block, prefix.start_records, strict=False):
            for branch, record in records.items():
                records[branch] = _after_start(of_start[branch], record)
        return _after_start(prefix.hidden[:, :1], words)

    def end_token(
        self,
        placed: PlacedCaptions,
        extras: TowerExtras = NO_EXTRAS,
        prefix_kv: Sequence[Tensor] | None = None,
        dropout: AttentionDropout | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Compute the hidden token that carries a caption's feature: [B, text_width]; see `forward`.

        `prefix_kv` is `self.prefix(extras).kv`, if it is known already. With `dropout` the start token differs between
        captions, so it passes the blocks with them; there can be no prompts then. With `packing`, of the tokens after
        the prefix, padding is left out; see `run_blocks`.
        """
        if dropout is not None:
            placed, prefix_kv = _whole(placed), extras.batched_prefix_kv
        prefix_kv = self.prefix(extras).kv if prefix_kv is None else prefix_kv
        positions = placed.end_positions - placed.num_fixed
        return self._run(placed, extras, prefix_kv, positions, dropout=dropout, packing=packing)[:, 0]

    def _run(
        self,
        placed: PlacedCaptions,
        extras: TowerExtras,
        prefix_kv: Sequence[Tensor],
        query_positions: Tensor | None,
        *,
        observed: Observed = NOTHING_OBSERVED,
        dropout: AttentionDropout | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Compute the tokens after the prefix: [B, L'] -> [B, L' - 1 - P, text_width]."""
        ids, num_fixed = placed.ids, placed.num_fixed
        words = ids[:, num_fixed:]
        x = self.token_embedding(words) + self.positional_embedding[num_fixed : ids.shape[1]]
        return run_blocks(
            self.blocks,
            x if packing is None else packing.pack(x),
            extras,
            prefix_kv=prefix_kv,
            mask=_causal(words.shape[1], ids.device),
            query_positions=query_positions,
            checkpoint_activations=self.checkpoint_activations,
            observed=observed,
            observed_positions=placed.end_positions - num_fixed,
            dropout=dropout,
            packing=packing,
        )

    def project(self, hidden: Tensor) -> Tensor:
        """Hidden tokens [..., text_width] -> the shared space [..., D]."""
        return self.ln_final(hidden) @ self.proj


def _whole(placed: PlacedCaptions) -> PlacedCaptions:
    """Return captions without prompts whose start token is a token like all others."""
    assert placed.num_fixed == 1, "prompts are shared by all captions, and dropout is not"
    return placed._replace(num_fixed=0)


def _first_positions(images: Tensor) -> Tensor:
    """[B] int64, position of the class token."""
    return torch.zeros(len(images), dtype=torch.int64, device=images.device)


def _after_start(start: Tensor, words: Tensor) -> Tensor:
    """Put the start token, [1, 1, K], before the other tokens of every caption: [B, L, K] -> [B, 1 + L, K]."""
    return torch.cat([start.expand(len(words), -1, -1), words], dim=1)


def _causal(length: int, device: torch.device) -> Tensor:
    """[L, L], true where a token attends to another: to itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
