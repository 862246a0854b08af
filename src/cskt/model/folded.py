"""Towers for inference alone: what depends on parameters only is computed once.

Prompts and couplings become cached keys and values. MLP and adapters become one MLP with a joint hidden layer: the
affine maps of the norms are in its first matrix, the adapters' scale and QuickGELU's slope in both. Low-rank updates
are added to the weights. Other modules of a method stay modules, and so does the MLP of their block. Embedding heads
stay as they are, in float32. The function is the same up to rounding; tensors that need no change are shared with the
model, unless they are converted to another type.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.model.attention import Packing, Updates, packing_of
from cskt.model.blocks import MLP, QUICK_SLOPE, Block, TowerExtras, quick_gelu
from cskt.model.clip import PlacedCaptions, Prefix, TextTower, VisionTower
from cskt.model.dual_encoder import DualEncoder, fold_low_rank
from cskt.model.heads import image_outputs, needed, ranking_vector, text_outputs
from cskt.model.parts import Part


class FoldedMLP(nn.Module):
    """An MLP and the branches beside it in two matrix products, for tokens of mean 0 and variance 1."""

    def __init__(self, mlp: MLP, norm: nn.LayerNorm, branches: Sequence[Any]) -> None:
        super().__init__()
        self.mlp_width = mlp.c_fc.out_features
        self.is_quick = mlp.activation is quick_gelu
        # x * sigmoid(a x) = silu(a x) / a: with the slope a in the weights, one kernel computes the rest.
        slope = QUICK_SLOPE if self.is_quick else 1.0
        first = slope * mlp.c_fc.weight
        down = [first * norm.weight], [slope * mlp.c_fc.bias + first @ norm.bias]
        up, bias = [mlp.c_proj.weight / slope], mlp.c_proj.bias.detach()
        for branch in branches:
            (down_weight, down_bias), (up_weight, up_bias) = branch.folded()
            down, up, bias = ([*down[0], down_weight], [*down[1], down_bias]), [*up, up_weight], bias + up_bias
        self.c_fc = _linear(torch.cat(down[0]), torch.cat(down[1]))
        self.c_proj = _linear(torch.cat(up, dim=1), bias)

    def forward(self, x: Tensor, low_rank: Updates = ()) -> Tensor:
        """[B, L, width] -> [B, L, width]; `low_rank` is empty, updates are in the weights."""
        if torch.compiler.is_exporting():
            return self._for_graphs(x)
        hidden = self.c_fc(x)
        mlp, branches = hidden[..., : self.mlp_width], hidden[..., self.mlp_width :]
        if self.is_quick:
            F.silu(mlp, inplace=True)
        else:
            mlp.copy_(F.gelu(mlp))
        F.relu_(branches)
        return self.c_proj(hidden)

    def _for_graphs(self, x: Tensor) -> Tensor:
        """Compute the same without writing into parts of a tensor: other runtimes fuse an activation with the product
        before it, but copy the whole tensor for every part that is written."""
        width = self.mlp_width
        hidden = F.linear(x, self.c_fc.weight[:width], self.c_fc.bias[:width])
        hidden = F.silu(hidden) if self.is_quick else F.gelu(hidden)
        out = F.linear(hidden, self.c_proj.weight[:, :width], self.c_proj.bias)
        if self.c_fc.out_features == width:
            return out
        branches = F.relu(F.linear(x, self.c_fc.weight[width:], self.c_fc.bias[width:]))
        return out + F.linear(branches, self.c_proj.weight[:, width:])


class FoldedVision(nn.Module):
    """Images to the vectors that rank; see `fold_vision`."""

    def __init__(
        self,
        tower: VisionTower,
        extras: TowerExtras,
        prefix_kv: Sequence[Tensor],
        *,
        heads: Mapping[str, Part],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.tower, self.dtype = tower, dtype
        self.prompts, self.prefix_kv = nn.ParameterList(extras.prompts), nn.ParameterList(prefix_kv)
        self.block_extras = extras.blocks
        self.branches = _modules(extras)
        self.to(dtype).requires_grad_(False)
        self.heads = nn.ModuleDict(heads)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised with the architecture's mean and std -> [B, embed_dim] float32; of length 1 if
        the model has embedding heads, otherwise not normalised."""
        extras = TowerExtras(list(self.prompts), blocks=self.block_extras)
        images, prefix_kv, heads = images.to(self.dtype), list(self.prefix_kv), _parts(self.heads)
        if heads:
            found = image_outputs(self.tower, images, needed(heads), extras, prefix_kv)
            return ranking_vector(heads, "vision", found).float()
        return self.tower.project(self.tower.class_token(images, extras, prefix_kv)).float()


class FoldedText(nn.Module):
    """Captions to the vectors that rank; see `fold_text`."""

    def __init__(
        self,
        tower: TextTower,
        num_slots: int,
        extras: TowerExtras,
        prefix: Prefix,
        *,
        heads: Mapping[str, Part],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.tower, self.num_slots = tower, num_slots
        self.prefix_kv = nn.ParameterList(prefix.kv)
        self.prefix_hidden = nn.Parameter(prefix.hidden)
        self.block_extras = extras.blocks
        self.branches = _modules(extras)
        self.to(dtype).requires_grad_(False)
        self.heads = nn.ModuleDict(heads)

    def packing(self, caption_ids: Tensor) -> Packing | None:
        """Return the packing with which `forward` leaves out the padding of captions [B, L] int64.

        The captions must be on the CPU, so that no step waits for the device. None if there is no padding, or if heads
        or modules of the method may need whole sequences.
        """
        if self.heads or self.branches:
            return None
        placed = self.tower.place(caption_ids, self.num_slots)
        lengths = placed.end_positions + 1 - placed.num_fixed
        width = placed.ids.shape[1] - placed.num_fixed
        return None if lengths.eq(width).all() else packing_of(lengths, width)

    def forward(self, caption_ids: Tensor, packing: Packing | None = None) -> Tensor:
        """[B, L] int64, start and end tokens included, no prompt slots -> [B, embed_dim] float32; of length 1 if the
        model has embedding heads, otherwise not normalised.

        `packing` is `self.packing(caption_ids)`, on the device of the captions; with None padding is computed as well.
        """
        placed = self.tower.place(caption_ids, self.num_slots)
        if packing is None:
            return self.features(placed).float()
        end_tokens = self.tower.end_token(placed, prefix_kv=list(self.prefix_kv), packing=packing)
        return self.tower.project(end_tokens).float()

    def features(self, placed: PlacedCaptions) -> Tensor:
        """Captions with prompt slots -> [B, embed_dim], likewise."""
        extras, heads = TowerExtras(blocks=self.block_extras), _parts(self.heads)
        if heads:
            prefix = Prefix(list(self.prefix_kv), self.prefix_hidden, [])
            return ranking_vector(heads, "text", text_outputs(self.tower, placed, needed(heads), extras, prefix))
        return self.tower.project(self.tower.end_token(placed, extras, list(self.prefix_kv)))


@torch.no_grad()
def fold_vision(model: DualEncoder, dtype: torch.dtype = torch.float32) -> FoldedVision:
    """Return the vision tower of a model, which is not changed, with the parts of its method as they are now."""
    model = _own(model)
    extras = _without_low_rank(model.vision, model.extras("vision"))
    prefix_kv = model.vision.prefix_kv(extras)
    return FoldedVision(model.vision, _fold_blocks(model.vision, extras), prefix_kv, heads=model.heads, dtype=dtype)


@torch.no_grad()
def fold_text(model: DualEncoder, dtype: torch.dtype = torch.float32) -> FoldedText:
    """Return the text tower likewise; see `fold_vision`."""
    model = _own(model)
    extras = _without_low_rank(model.text, model.extras("text"))
    prefix = model.text.prefix(extras)
    blocks = _fold_blocks(model.text, extras)
    return FoldedText(model.text, model.num_text_slots, blocks, prefix, heads=model.heads, dtype=dtype)


def _own(model: DualEncoder) -> DualEncoder:
    """Return a copy whose parameters share the memory of the model's: they may be replaced, not written into."""
    parameters = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    own = copy.deepcopy(model, parameters)
    own.checkpoint_activations(False)
    return own.eval()


def _without_low_rank(tower: VisionTower | TextTower, extras: TowerExtras) -> TowerExtras:
    """Fold the low-rank updates into the weights of a tower; return what else the method adds."""
    fold_low_rank(tower, extras)
    return dataclasses.replace(extras, blocks=[block._replace(low_rank=()) for block in extras.blocks])


def _fold_blocks(tower: VisionTower | TextTower, extras: TowerExtras) -> TowerExtras:
    """Fold the branches of each block that allows it into its MLP; return what the method still adds."""
    remaining = []
    for index, block in enumerate(tower.blocks):
        assert isinstance(block, Block) and isinstance(block.mlp, MLP)
        added = extras.of_block(index)
        # With an input of its own, or a branch that stays, the MLP needs the affine map of the norm as it is.
        if not added.before_mlp and all(hasattr(branch, "folded") for branch in added.beside_mlp):
            block.mlp = FoldedMLP(block.mlp, block.ln_2, added.beside_mlp)
            block.ln_2 = nn.LayerNorm(block.ln_2.normalized_shape, eps=block.ln_2.eps, elementwise_affine=False)
            added = added._replace(beside_mlp=())
        else:
            added = added._replace(beside_mlp=tuple(map(_for_inference, added.beside_mlp)))
        remaining.append(added)
    return dataclasses.replace(extras, blocks=remaining if any(added.modules for added in remaining) else ())


def _for_inference(branch: Any) -> Any:
    return branch.for_inference() if hasattr(branch, "for_inference") else branch


def _modules(extras: TowerExtras) -> nn.ModuleList:
    """Return all modules that the method adds, to be converted and moved with the tower."""
    return nn.ModuleList(module for added in extras.blocks for module in added.modules)


def _parts(heads: nn.ModuleDict) -> dict[str, Part]:
    return cast(dict[str, Part], dict(heads.items()))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer
