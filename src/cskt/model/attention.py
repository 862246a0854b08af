"""Attention of CLIP's transformers, over padded sequences or over one packed row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.model.dropout import AttentionDropout

QUERY_KEY_VALUE = ("query", "key", "value")
"""Parts of an attention's joint projection, in its order."""
QUERY, KEY, KEY_VALUE = QUERY_KEY_VALUE[:1], QUERY_KEY_VALUE[1:2], QUERY_KEY_VALUE[1:]
Updates = tuple[nn.ModuleDict, ...]
"""Updates of linear layers, each by its target: input of the layer -> what is added to its output."""


def apply_linear(layer: nn.Linear, x: Tensor, low_rank: Updates, target: str) -> Tensor:
    """Apply a linear layer with its low-rank updates, if it has any."""
    projected = layer(x)
    for updates in low_rank:
        if target in updates:
            projected = projected + updates[target](x)
    return projected


class Packing(NamedTuple):
    """Places of the T tokens of B sequences that are packed into one row, [1, T, width], without padding."""

    places_in_padded: Tensor
    """[T] int64, the place of each token of the row in the padded sequences, of B * L."""
    places_in_row: Tensor
    """[B, L] int64, the place of each token of the padded sequences in the row; for padding that of any token."""

    def pad(self, packed: Tensor) -> Tensor:
        """[1, T, width] -> [B, L, width]; padding holds any values."""
        return packed[0][self.places_in_row]

    def pack(self, padded: Tensor) -> Tensor:
        """[B, L, width] -> [1, T, width]."""
        return padded.flatten(0, 1)[self.places_in_padded][None]


def packing_of(lengths: Tensor, width: int) -> Packing:
    """Return the packing of sequences of these lengths [B] int64, padded to `width`.

    Example:
        >>> packing_of(torch.tensor([1, 3]), 4).pack(torch.arange(8).view(2, 4, 1)).flatten()
        tensor([0, 4, 5, 6])
    """
    positions, lasts = torch.arange(width), lengths[:, None] - 1
    starts = lengths.cumsum(0) - lengths
    return Packing((positions <= lasts).flatten().nonzero()[:, 0], starts[:, None] + positions.minimum(lasts))


def pick(tokens: Tensor, positions: Tensor, packing: Packing | None = None) -> Tensor:
    """Pick one token of each sequence: [B, L, width], or [1, T, width] if packed, at [B] int64 -> [B, 1, width]."""
    if packing is not None:
        return tokens[0][packing.places_in_row.gather(1, positions[:, None])]
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
        low_rank: Updates = (),
        dropout: AttentionDropout | None = None,
        query_positions: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Attend from the query tokens to `x` [B, L, width] and the prefix: -> [B, A, width].

        Args:
            query_tokens: [B, A, width], those tokens of x whose output is needed; None: all.
            prefix_kv: [1, S, 2 * width], keys and values of S more tokens for every sequence, placed after those of x.
            mask: [A, L + S] or [B, 1, A, L + S], true where a query attends to a token; None: to all.
            low_rank: updates of the projections.
            dropout: of the weights, for training.
            query_positions: [B] int64, the positions of `query_tokens` in x, for `dropout`.
            packing: x is [1, T, width], and so is the result without query tokens. Attention alone is computed for
                padding, too; a mask keeps real tokens from attending to it. Not with `dropout`.
        """
        # In two projections, so that keys and values without the prefix are not stored for the backward pass.
        query = self.project(x if query_tokens is None else query_tokens, QUERY, low_rank)
        key_value = self.project(x, KEY_VALUE, low_rank)
        if packing is not None:
            query, key_value = query if query_tokens is not None else packing.pad(query), packing.pad(key_value)
        if prefix_kv is not None:
            key_value = torch.cat([key_value, prefix_kv.expand(len(key_value), -1, -1)], dim=1)
        key, value = key_value.chunk(2, dim=-1)
        query, key, value = self._split_heads(query), self._split_heads(key), self._split_heads(value)
        if dropout is None:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            weights = _attention_weights(query, key, mask).to(value.dtype)
            num_tokens = x.shape[1]
            positions = torch.arange(num_tokens, device=x.device)
            positions = positions if query_positions is None else query_positions[:, None]
            attended = dropout.apply(weights, positions, weights.shape[3] - num_tokens) @ value
        joined = attended.transpose(1, 2).flatten(2)
        joined = packing.pack(joined) if packing is not None and query_tokens is None else joined
        return apply_linear(self.out_proj, joined, low_rank, "out")

    def attention_weights(
        self,
        x: Tensor,
        query_token: Tensor,
        *,
        prefix_kv: Tensor | None = None,
        mask: Tensor | None = None,
        low_rank: Updates = (),
    ) -> Tensor:
        """Compute the weights with which one token [B, 1, width] attends to `x` and the prefix: [B, L + S], the mean
        over the heads; for the arguments see `forward`."""
        query, key = self.project(query_token, QUERY, low_rank), self.project(x, KEY, low_rank)
        if prefix_kv is not None:
            key = torch.cat([key, prefix_kv[..., : x.shape[2]].expand(len(x), -1, -1)], dim=1)
        query, key = self._split_heads(query), self._split_heads(key)
        return _attention_weights(query, key, mask).mean(dim=1)[:, 0]

    def _split_heads(self, projected: Tensor) -> Tensor:
        """[B, L, width] -> [B, heads, L, width / heads]."""
        batch, length, width = projected.shape
        return projected.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def project(self, x: Tensor, parts: Sequence[str], low_rank: Updates) -> Tensor:
        """[B, L, width] -> [B, L, len(parts) * width]; `parts` are neighbours in the joint projection."""
        width, first = self.in_proj.in_features, QUERY_KEY_VALUE.index(parts[0])
        rows = slice(first * width, (first + len(parts)) * width)
        projected = F.linear(x, self.in_proj.weight[rows], self.in_proj.bias[rows])
        for updates in low_rank:
            if any(part in updates for part in parts):
                added = [updates[part](x) if part in updates else torch.zeros_like(x) for part in parts]
                projected = projected + torch.cat(added, dim=-1)
        return projected


def _attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """[B, heads, A, width] and [B, heads, L, width] -> [B, heads, A, L]; for the mask see `Attention.forward`."""
    logits = query @ key.transpose(2, 3) * key.shape[3] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(dim=3)
