"""A model for inference alone: its parameters no longer change, so what depends on nothing else is computed once.

Prompts and couplings leave keys and values behind. MLP and adapter become one MLP, whose hidden layer holds both: the
affine maps of the two norms go into its first matrix, the adapter's scale and QuickGELU's slope into both. Low-rank
updates go into the weights that they update. The function stays the same up to rounding; tensors that need no change
are shared with the model that they come from, unless they are converted to another type.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.model.blocks import MLP, QUICK, Additions, Block, quick_gelu
from cskt.model.clip import TextTower, VisionTower
from cskt.model.dual_encoder import DualEncoder
from cskt.model.parts.adapters import Adapter


class FoldedMLP(nn.Module):
    """An MLP and the adapter beside it in two matrix products, for tokens of mean 0 and variance 1."""

    def __init__(self, mlp: MLP, norm: nn.LayerNorm, adapter: Adapter | None) -> None:
        super().__init__()
        self.mlp_width = mlp.c_fc.out_features
        self.is_quick = mlp.activation is quick_gelu
        # x * sigmoid(a x) = silu(a x) / a: the slope a goes into the weights, and one kernel does the rest.
        slope = QUICK if self.is_quick else 1.0
        first = slope * mlp.c_fc.weight
        down = [first * norm.weight], [slope * mlp.c_fc.bias + first @ norm.bias]
        up, bias = [mlp.c_proj.weight / slope], mlp.c_proj.bias.detach()
        if adapter is not None:
            (down_weight, down_bias), (up_weight, up_bias) = adapter.folded()
            down, up, bias = ([*down[0], down_weight], [*down[1], down_bias]), [*up, up_weight], bias + up_bias
        self.c_fc = _linear(torch.cat(down[0]), torch.cat(down[1]))
        self.c_proj = _linear(torch.cat(up, dim=1), bias)

    def forward(self, x: Tensor, low_rank: None = None) -> Tensor:
        """[B, L, width] -> [B, L, width]; `low_rank` stays empty, updates are in the weights."""
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

    def __init__(self, tower: VisionTower, prompts: Sequence[Tensor], seen: list[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.tower, self.dtype = tower, dtype
        self.prompts, self.seen = nn.ParameterList(prompts), nn.ParameterList(seen)
        self.to(dtype).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised with the architecture's mean and std -> [B, D] float32, not normalised."""
        hidden = self.tower.class_token(images.to(self.dtype), Additions(list(self.prompts)), list(self.seen))
        return self.tower.project(hidden).float()


class FoldedText(nn.Module):
    """Captions to raw features; see `fold_text`."""

    def __init__(self, tower: TextTower, num_slots: int, seen: list[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.tower, self.num_slots = tower, num_slots
        self.seen = nn.ParameterList(seen)
        self.to(dtype).requires_grad_(False)

    def forward(self, caption_ids: Tensor) -> Tensor:
        """[B, L] int64, start and end tokens included, no prompt slots -> [B, D] float32, not normalised."""
        placed = self.tower.place(caption_ids, self.num_slots)
        return self.tower.project(self.tower.end_token(placed, seen=list(self.seen))).float()


@torch.no_grad()
def fold_vision(model: DualEncoder, dtype: torch.dtype = torch.float32) -> FoldedVision:
    """The vision tower of a model with all that a method adds to it, as it is now.

    Args:
        model: stays as it is.
        dtype: of weights and activations.
    """
    model = _own(model)
    added = model.additions("vision")
    seen = model.vision.seen(added)
    _fold_blocks(model.vision.blocks, added)
    return FoldedVision(model.vision, added.prompts, seen, dtype)


@torch.no_grad()
def fold_text(model: DualEncoder, dtype: torch.dtype = torch.float32) -> FoldedText:
    """The text tower likewise; see `fold_vision`."""
    model = _own(model)
    added = model.additions("text")
    seen = model.text.prefix(added).seen
    _fold_blocks(model.text.blocks, added)
    return FoldedText(model.text, model.prompts.num_text_slots, seen, dtype)


def _own(model: DualEncoder) -> DualEncoder:
    """A model with parameters of its own over the same memory, low-rank updates folded: it may be taken apart."""
    parameters = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    own = copy.deepcopy(model, parameters)
    own.checkpoint_activations(False)
    own.fold_lora()
    return own


def _fold_blocks(blocks: nn.ModuleList, added: Additions) -> None:
    for index, block in enumerate(blocks):
        assert isinstance(block, Block)
        adapter, _ = added.of_block(index)
        assert adapter is None or isinstance(adapter, Adapter)
        assert isinstance(block.mlp, MLP)
        block.mlp = FoldedMLP(block.mlp, block.ln_2, adapter)
        block.ln_2 = nn.LayerNorm(block.ln_2.normalized_shape, eps=block.ln_2.eps, elementwise_affine=False)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer
