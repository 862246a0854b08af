"""UP-Person, DM-Adapter and TBPS-CLIP computed as in their released codes, the baselines of `benchmarks.methods`.

Every caption is padded to the whole context, all tokens pass all blocks, and attention weights are stored. UP-Person:
prefixes are rows of keys and values whose weights are multiplied after the softmax, and updates are added to the
projection in every pass. DM-Adapter: every expert computes all tokens. TBPS-CLIP is plain CLIP. The parameters are
those of a `DualEncoder`, so both compute the same function and either can train it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.model.dual_encoder import DualEncoder
from cskt.model.parts.base import Side


class NaiveTowers:
    """Towers of plain CLIP, which is TBPS-CLIP; other methods define their own block."""

    def __init__(self, model: DualEncoder) -> None:
        self.model = model
        self.balance: list[Tensor] = []
        """Balance loss of every block of DM-Adapter since it was last cleared."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> [B, D]."""
        tower = self.model.vision
        x = tower.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], dim=1) + tower.positional_embedding
        x = tower.ln_pre(x)
        for index, block in enumerate(tower.blocks):
            x = self.block("vision", index, block, x, None)
        return (tower.ln_post(x) @ tower.proj)[:, 0]

    def encode_text(self, caption_ids: Tensor) -> Tensor:
        """Caption ids [B, L] -> [B, D]."""
        tower, length = self.model.text, self.model.architecture.context_length
        ids = F.pad(caption_ids, (0, length - caption_ids.shape[1]))
        x = tower.token_embedding(ids) + tower.positional_embedding
        mask = x.new_full((length, length), -torch.inf).triu(1)
        for index, block in enumerate(tower.blocks):
            x = self.block("text", index, block, x, mask)
        return (tower.ln_final(x) @ tower.proj)[torch.arange(len(ids)), ids.argmax(dim=1)]

    def block(self, side: Side, index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, L, W] -> [B, L, W]; the mask [L, L] is added to the scores of attention."""
        x = x + attend(block.attn, *block.attn.in_proj(block.ln_1(x)).chunk(3, dim=-1), mask)
        return x + quick_mlp(block.mlp, block.ln_2(x))


def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **prefix: Any) -> Tensor:
    """Return the output of attention of [B, L, W] and keys and values [B, M, W].

    `prefix`: `length` and `factor` of the columns after the first, whose weights are multiplied after the softmax.
    """
    query, key, value = (each.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for each in (query, key, value))
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    if prefix:
        first, of_prefix, rest = weights.split([1, prefix["length"], weights.shape[-1] - 1 - prefix["length"]], dim=-1)
        weights = torch.cat([first, prefix["factor"] * of_prefix, rest], dim=-1)
    return attention.out_proj((weights @ value).transpose(1, 2).flatten(2))


def quick_mlp(mlp: Any, x: Tensor) -> Tensor:
    """[..., W] -> [..., W]."""
    hidden = mlp.c_fc(x)
    return mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class NaiveUpPerson(NaiveTowers):
    """UP-Person with its depths."""

    def block(self, side: Side, index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """See `NaiveTowers.block`."""
        added: Any = self.model.parts["up_person"].get_submodule(side)

        def adapted(kind: str, y: Tensor) -> Tensor:
            adapter = added[kind][index]
            return y if adapter is None else y + adapter.scale * adapter.up(F.relu(adapter.down(x)))

        weight = block.attn.in_proj.weight
        if (updates := added["low_rank"][index]) is not None:
            deltas = [updates[name].scale * updates[name].up @ updates[name].down for name in ("key", "value")]
            weight = weight + torch.cat([torch.zeros_like(deltas[0]), *deltas])
        y = adapted("before_attention", block.ln_1(x))
        query, key, value = F.linear(y, weight, block.attn.in_proj.bias).chunk(3, dim=-1)
        factor: dict[str, Any] = {}
        if index < len(added["prefix"]):
            prefix = added["prefix"][index]
            factor = {"length": len(prefix.key), "factor": prefix.factor}
            of_key, of_value = prefix.key_scale * prefix.key, prefix.value_scale * prefix.value
            key = torch.cat([key[:, :1], of_key.expand(len(x), -1, -1), key[:, 1:]], dim=1)
            value = torch.cat([value[:, :1], of_value.expand(len(x), -1, -1), value[:, 1:]], dim=1)
            if mask is not None:
                mask = torch.cat([mask[:, :1], mask.new_zeros(len(mask), len(prefix.key)), mask[:, 1:]], dim=1)
        x = x + attend(block.attn, query, key, value, mask, **factor)
        return x + quick_mlp(block.mlp, adapted("before_mlp", block.ln_2(x)))


class NaiveDMAdapter(NaiveTowers):
    """DM-Adapter; the balance loss of its blocks is recorded."""

    def block(self, side: Side, index: int, block: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """See `NaiveTowers.block`."""
        experts: Any = getattr(self.model.parts["dm_adapter"], side)[index]
        x = x + attend(block.attn, *block.attn.in_proj(block.ln_1(x)).chunk(3, dim=-1), mask)
        z = experts.norm(x)
        logits = (1 - experts.alpha) * experts.input_gate(z) + experts.alpha * experts.task_gate(experts.task)
        top, chosen = logits.topk(experts.topk, dim=-1)
        shares = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(dim=-1))
        probability, use = (each.flatten(0, 1).mean(dim=0) for each in (logits.softmax(dim=-1), (shares > 0).float()))
        self.balance.append((probability * use).sum())
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(experts.experts):
            mixed = mixed + shares[..., number, None] * expert.up(F.relu(expert.down(z)))
        return x + quick_mlp(block.mlp, block.ln_2(x)) + experts.scale * mixed


NAIVE: dict[str, type[NaiveTowers]] = {
    "up-person": NaiveUpPerson, "dm-adapter": NaiveDMAdapter, "tbps-clip": NaiveTowers
}  # fmt: skip
"""Recipe -> its baseline."""
