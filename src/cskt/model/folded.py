"""Towers for inference alone: what depends on parameters only is computed once.

Prompts and couplings become cached keys and values. MLP and adapter become one MLP with a joint hidden layer: the
affine maps of the two norms are in its first matrix, the adapter's scale and QuickGELU's slope in both. Low-rank
updates are added to the weights. The function is the same up to rounding; tensors that need no change are shared with
the model, unless they are converted to another type.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.model.blocks import MLP, QUICK_SLOPE, Block, TowerExtras, quick_gelu
from cskt.model.clip import TextTower, VisionTower
from cskt.model.dual_encoder import DualEncoder
from cskt.model.parts.adapters import Adapter


class FoldedMLP(nn.Module):
    """An MLP and the adapter beside it in two matrix products, for tokens of mean 0 and variance 1."""

    def __init__(self, mlp: MLP, norm: nn.LayerNorm, adapter: Adapter | None) -> None:
        super().__init__()
        self.mlp_width = mlp.c_fc.out_features
        self.is_quick = mlp.activation is quick_gelu
        # x * sigmoid(a x) = silu(a x) / a: with the slope a in the weights, one kernel computes the rest.
        slope = QUICK_SLOPE if self.is_quick else 1.0
        first = slope * mlp.c_fc.weight
        down = [first * norm.weight], [slope * mlp.c_fc.bias + first @ norm.bias]
        up, bias = [mlp.c_proj.weight / slope], mlp.c_proj.bias.detach()
        if adapter is not None:
            (down_weight, down_bias), (up_weight, up_bias) = adapter.folded()
            down, up, bias = ([*down[0], down_weight], [*down[1], down_bias]), [*up, up_weight], bias + up_bias
        self.c_fc = _linear(torch.cat(down[0]), torch.cat(down[1]))
        self.c_proj = _linear(torch.cat(up, dim=1), bias)

    def forward(self, x: Tensor, low_rank: None = None) -> Tensor:
        """[B, L, width] -> [B, L, width]; `low_rank` is None, updates are in the weights."""
        hidden = self.c_fc(x)
        mlp, adapter = hidden[..., : self.mlp_width], hidden[..., self.mlp_width :]
        if self.is_quick:
            F.silu(mlp, inplace=True)
        else:
            mlp.copy_(F.gelu(mlp))
        F.relu_(adapter)
        return self.c_proj(hidden)


class FoldedVision(nn.Module):
    """Images to raw features; see `fold_vision`."""

    def __init__(
        self, tower: VisionTower, prompts: Sequence[Tensor], prefix_kv: list[Tensor], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.tower, self.dtype = tower, dtype
        self.prompts, self.prefix_kv = nn.ParameterList(prompts), nn.ParameterList(prefix_kv)
        self.to(dtype).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised with the architecture's mean and std -> [B, D] float32, not normalised."""
        hidden = self.tower.class_token(images.to(self.dtype), TowerExtras(list(self.prompts)), list(self.prefix_kv))
        return self.tower.project(hidden).float()


class FoldedText(nn.Module):
    """Captions to raw features; see `fold_text`."""

    def __init__(self, tower: TextTower, num_slots: int, prefix_kv: list[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.tower, self.num_slots = tower, num_slots
        self.prefix_kv = nn.ParameterList(prefix_kv)
        self.to(dtype).requires_grad_(False)

    def forward(self, caption_ids: Tensor) -> Tensor:
        """[B, L] int64, start and end tokens included, no prompt slots -> [B, D] float32, not normalised."""
        placed = self.tower.place(caption_ids, self.num_slots)
        return self.tower.project(self.tower.end_token(placed, prefix_kv=list(self.prefix_kv))).float()


@torch.no_grad()
def fold_vision(model: DualEncoder, dtype: torch.dtype = torch.float32) -> FoldedVision:
    """Return the vision tower of a model, which is not changed, with the parts of its method as they are now."""
    model = _own(model)
    extras = model.extras("vision")
    prefix_kv = model.vision.prefix_kv(extras)
    _fold_blocks(model.vision.blocks, extras)
    return FoldedVision(model.vision, extras.prompts, prefix_kv, dtype)


@torch.no_grad()
def fold_text(model: DualEncoder, dtype: torch.dtype = torch.float32) -> FoldedText:
    """Return the text tower likewise; see `fold_vision`."""
    model = _own(model)
    extras = model.extras("text")
    prefix_kv = model.text.prefix(extras).kv
    _fold_blocks(model.text.blocks, extras)
    return FoldedText(model.text, model.prompts.num_text_slots, prefix_kv, dtype)


def _own(model: DualEncoder) -> DualEncoder:
    """Return a model with parameters of its own over the same memory, low-rank updates folded, to be changed."""
    parameters = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    own = copy.deepcopy(model, parameters)
    own.checkpoint_activations(False)
    own.fold_lora()
    return own


def _fold_blocks(blocks: nn.ModuleList, extras: TowerExtras) -> None:
    for index, block in enumerate(blocks):
        assert isinstance(block, Block)
        adapter, _ = extras.of_block(index)
        block.mlp = FoldedMLP(cast(MLP, block.mlp), block.ln_2, cast(Adapter | None, adapter))
        block.ln_2 = nn.LayerNorm(block.ln_2.normalized_shape, eps=block.ln_2.eps, elementwise_affine=False)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer
