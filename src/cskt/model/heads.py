"""Embedding heads: what method parts make of all tokens of an image or a caption, and the vector that ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.errors import CsktError
from cskt.model.attention import pick
from cskt.model.blocks import NO_EXTRAS, Observed, TowerExtras
from cskt.model.clip import PlacedCaptions, Prefix, TextTower, VisionTower
from cskt.model.dropout import AttentionDropout
from cskt.model.parts.base import Part, Side
from cskt.utils.messages import described

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class TowerOutputs(NamedTuple):
    """Results of a tower for a batch, token by token, without the prompts."""

    features: Tensor
    """[B, D] in the shared space, not normalised: the class tokens of images, the end tokens of captions."""
    tokens: Tensor
    """[B, L, D] in the shared space, not normalised: the class token and the patches of images; of captions the token
    at position l belongs to the caption's token l."""
    mask: Tensor
    """[B, L] bool, true for all tokens of images, and from the start to the end token of captions; false for id 0,
    which is padding, or a "!" within a word."""
    attention: Tensor | None
    """[B, L], weights with which the class or end token attends to the tokens in the last block, the mean over its
    heads; None if no embedding head needs them. With prompts or prefixes a row sums to less than 1."""
    extra: Mapping[str, Tensor] = NOTHING
    """Results of `Part.outputs` for the losses by `<part>.<side>.<name>`, each [B, ...]."""


def needed(heads: Mapping[str, Part], *, records: bool = False) -> Observed:
    """Return what is to be observed in a pass through a tower for embedding heads, and on request for losses."""
    return Observed(needs_attention=any(head.needs_attention for head in heads.values()), needs_records=records)


def image_outputs(
    tower: VisionTower,
    images: Tensor,
    observed: Observed,
    extras: TowerExtras = NO_EXTRAS,
    prefix_kv: Sequence[Tensor] | None = None,
) -> TowerOutputs:
    """Compute every token of images; for the arguments see `VisionTower.forward`."""
    tokens = tower.project(tower(images, extras, prefix_kv, observed))
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return TowerOutputs(tokens[:, 0], tokens, mask, observed.attention)


def text_outputs(
    tower: TextTower,
    placed: PlacedCaptions,
    observed: Observed,
    extras: TowerExtras = NO_EXTRAS,
    prefix: Prefix | None = None,
    *,
    dropout: AttentionDropout | None = None,
) -> TowerOutputs:
    """Compute every token of captions; for the arguments see `TextTower.forward`."""
    tokens = tower.project(tower(placed, extras, prefix, observed, dropout=dropout))
    ends = placed.end_positions - (placed.num_fixed - 1)
    ids = torch.cat([placed.ids[:, :1], placed.ids[:, placed.num_fixed :]], dim=1)
    mask = (torch.arange(tokens.shape[1], device=tokens.device) <= ends[:, None]) & (ids != 0)
    return TowerOutputs(pick(tokens, ends)[:, 0], tokens, mask, observed.attention)


def embed(
    name: str, head: Part, side: Side, *, tokens: Tensor, mask: Tensor, attention: Tensor | None = None
) -> Tensor:
    """Return the embedding [B, E] of a head, named `name`; see `Part.embed`. It is computed in float32 or better."""
    with torch.autocast(tokens.device.type, enabled=False):
        embedding = head.embed(side, _precise(tokens), None if attention is None else _precise(attention), mask)
    is_matrix = isinstance(embedding, Tensor) and embedding.ndim == 2 and embedding.is_floating_point()
    # The number of rows is a symbol in exports, which a comparison would make a constant.
    is_whole = is_matrix and (torch.compiler.is_compiling() or len(embedding) == len(tokens))
    if not is_whole or embedding.shape[1] != head.embedding_width:
        raise CsktError(
            f"method part '{name}': embed returned {described(embedding)}; expected floats of shape"
            f" [B, {head.embedding_width}] (embedding_width)"
        )
    return embedding


def ranking_vector(heads: Mapping[str, Part], side: Side, found: TowerOutputs) -> Tensor:
    """Return the unit vector whose cosine ranks: features and embeddings of all heads, [B, D + E + ...].

    It is the concatenation of the n unit vectors divided by sqrt(n): its scalar products are the mean of the n cosines.
    """
    embeddings = [
        embed(name, head, side, tokens=found.tokens, mask=found.mask, attention=found.attention)
        for name, head in heads.items()
    ]
    every = [F.normalize(_precise(each), dim=-1) for each in (found.features, *embeddings)]
    return torch.cat(every, dim=-1) / len(every) ** 0.5


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
