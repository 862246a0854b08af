"""CSKT computed as in its released code, the baseline of our speed measurements.

Every caption is padded to the whole context; all tokens, including prompts, pass all blocks and are projected; prompts
are concatenated before each block; an adapter has its own normalisation; attention is PyTorch's module, tokens first,
with a mask of minus infinity. The parameters are those of a `DualEncoder`, shared and not copied, so both compute the
same function and either can train it.
"""

from __future__ import annotations

import re
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig
from cskt.model.dual_encoder import DualEncoder


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        return x * torch.sigmoid(1.702 * x)


class NaiveBlock(nn.Module):
    """A pre-norm block with an adapter beside its MLP; tokens come first, [L, B, W]."""

    def __init__(self, width: int, heads: int, reduction: int, scale: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), act=QuickGELU(), c_proj=nn.Linear(4 * width, width))
        )
        self.ln_3 = nn.LayerNorm(width)
        self.adapter = nn.Sequential(
            OrderedDict(
                down=nn.Linear(width, width // reduction), act=nn.ReLU(), up=nn.Linear(width // reduction, width)
            )
        )
        self.scale = scale

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[L, B, W] -> [L, B, W]; the mask [L, L] is added to the attention's logits."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x)) + self.scale * self.adapter(self.ln_3(x))


class NaiveVision(nn.Module):
    """Vision tower: images to tokens in the shared space."""

    def __init__(self, architecture: ClipArchitecture, adapters: AdapterConfig) -> None:
        super().__init__()
        width, (rows, columns) = architecture.vision_width, architecture.grid
        self.conv1 = nn.Conv2d(3, width, architecture.patch_size, stride=architecture.stride, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + rows * columns, width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            NaiveBlock(width, architecture.vision_heads, adapters.reduction, adapters.vision_scale)
            for _ in range(architecture.vision_layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim))

    def forward(self, images: Tensor, prompts: list[Tensor]) -> Tensor:
        """[B, 3, H, W] -> [B, N + P, D]: class token, patches, prompts [P, W] of every prompted block."""
        x = self.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
        x = self.ln_pre(x).permute(1, 0, 2)
        for index, block in enumerate(self.blocks):
            if 0 < index < len(prompts):
                kept = x[: len(x) - len(prompts[index])]
                x = torch.cat([kept, prompts[index][:, None].expand(-1, x.shape[1], -1)])
            x = block(x, None)
        return self.ln_post(x.permute(1, 0, 2)) @ self.proj


class NaiveText(nn.Module):
    """Text tower: captions of the whole context to tokens in the shared space."""

    def __init__(self, architecture: ClipArchitecture, adapters: AdapterConfig) -> None:
        super().__init__()
        width, length = architecture.text_width, architecture.context_length
        self.token_embedding = nn.Embedding(architecture.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(
            NaiveBlock(width, architecture.text_heads, adapters.reduction, adapters.text_scale)
            for _ in range(architecture.text_layers)
        )
        self.ln_final = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim))

    def forward(self, spliced_ids: Tensor, prompts: list[Tensor]) -> Tensor:
        """[B, context] with slots after the start token -> [B, context, D]."""
        slots, length = len(prompts[0]), spliced_ids.shape[1]
        x = self.token_embedding(spliced_ids)
        mask = x.new_full((length, length), -torch.inf).triu(1)
        x = torch.cat([x[:, :1], prompts[0].expand(len(x), -1, -1), x[:, 1 + slots :]], dim=1)
        x = (x + self.positional_embedding).permute(1, 0, 2)
        for index, block in enumerate(self.blocks):
            if 0 < index < len(prompts):
                renewed = prompts[index][:, None].expand(-1, x.shape[1], -1)
                x = torch.cat([x[:1], renewed, x[1 + slots :]])
            x = block(x, mask)
        return self.ln_final(x.permute(1, 0, 2)) @ self.proj


class NaivePrompts(nn.Module):
    """Prompts of both towers, and a coupling per block and direction."""

    def __init__(self, architecture: ClipArchitecture, config: PromptConfig) -> None:
        super().__init__()
        text_width, vision_width, blocks = architecture.text_width, architecture.vision_width, range(config.depth)
        self.text = nn.ParameterList(torch.empty(config.length, text_width) for _ in blocks)
        self.vision = nn.ParameterList(torch.empty(config.length, vision_width) for _ in blocks)
        self.t2v = nn.ModuleList(nn.Linear(text_width, vision_width) for _ in blocks)
        self.v2t = nn.ModuleList(nn.Linear(vision_width, text_width) for _ in blocks)

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return (vision, text) prompts of every prompted block: [coupled, own] for vision, [own, coupled] for text."""
        blocks = list(zip(self.text, self.vision, self.t2v, self.v2t, strict=True))
        vision_prompts = [torch.cat([t2v(text), vision]) for text, vision, t2v, _ in blocks]
        text_prompts = [torch.cat([text, v2t(vision)]) for text, vision, _, v2t in blocks]
        return vision_prompts, text_prompts


class NaiveEncoder(nn.Module):
    """Dual encoder of CSKT; create it with `of`."""

    def __init__(self, architecture: ClipArchitecture, prompts: PromptConfig, adapters: AdapterConfig) -> None:
        super().__init__()
        self.context_length, self.end_id = architecture.context_length, architecture.vocab_size - 1
        self.vision = NaiveVision(architecture, adapters)
        self.text = NaiveText(architecture, adapters)
        self.prompts = NaivePrompts(architecture, prompts)

    @classmethod
    def of(cls, model: DualEncoder) -> NaiveEncoder:
        """Return the naive form of a model with CSKT's prompts and adapters in both towers, sharing its parameters."""
        assert model.method.keys() >= {"prompts", "adapters"}, "a model of another method"
        with torch.device("meta"):
            naive = cls(model.architecture, model.method["prompts"], model.method["adapters"])
        theirs = {_naive_name(name): parameter for name, parameter in model.named_parameters()}
        assert theirs.keys() == dict(naive.named_parameters()).keys(), "a model of another method"
        for name, parameter in theirs.items():
            owner, _, leaf = name.rpartition(".")
            setattr(naive.get_submodule(owner), leaf, parameter)
        return naive

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] float, normalised -> [B, D], not normalised."""
        vision_prompts, _ = self.prompts()
        return self.vision(images, vision_prompts)[:, 0]

    def encode_text(self, caption_ids: Tensor) -> Tensor:
        """[B, L] int64 without prompt slots -> [B, D], not normalised."""
        _, text_prompts = self.prompts()
        slots = len(text_prompts[0])
        spliced = F.pad(caption_ids, (0, self.context_length))
        spliced = torch.cat([spliced[:, :1], spliced.new_zeros(len(spliced), slots), spliced[:, 1:]], dim=1)
        end = (caption_ids.argmax(dim=1) + slots).clamp_max(self.context_length - 1)
        rows = torch.arange(len(spliced), device=spliced.device)
        spliced = spliced[:, : self.context_length]
        spliced[rows, end] = self.end_id
        return self.text(spliced, text_prompts)[rows, end]

    def forward(self, images: Tensor, caption_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (image features, text features), each [B, D]."""
        return self.encode_image(images), self.encode_text(caption_ids)


def _naive_name(name: str) -> str:
    """Return the name here of a parameter with our name."""
    name = re.sub(r"\.in_proj\.(weight|bias)$", r".in_proj_\1", name)
    name = re.sub(r"^adapters\.(vision|text)\.(\d+)\.norm\.", r"\1.blocks.\2.ln_3.", name)
    return re.sub(r"^adapters\.(vision|text)\.(\d+)\.", r"\1.blocks.\2.adapter.", name)
