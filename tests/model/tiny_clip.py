"""A CLIP of a few thousand parameters, written with PyTorch's own modules under the names that OpenAI's files use.

It is an independent account of the function: the package's towers must agree with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cskt.config import BackboneConfig, ClipArchitecture
from cskt.model.io.layouts import openai_name
from cskt.model.io.weights import load_backbone, tower_shapes

VISION_WIDTH, TEXT_WIDTH, EMBED_DIM = 128, 64, 24  # OpenAI's heads are 64 wide: two in vision, one in text
VISION_LAYERS, TEXT_LAYERS = 2, 3
PATCH_SIZE, RESOLUTION = 8, 32
CONTEXT_LENGTH, VOCAB_SIZE = 20, 60
START_ID, END_ID = VOCAB_SIZE - 2, VOCAB_SIZE - 1


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class MLP(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.add_module("c_fc", nn.Linear(width, 4 * width))
        self.add_module("gelu", QuickGELU())
        self.add_module("c_proj", nn.Linear(4 * width, width))


class ResidualBlock(nn.Module):
    def __init__(self, width: int, mask: Tensor | None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width)
        self.ln_2 = nn.LayerNorm(width)
        self.attn_mask = mask

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(ResidualBlock(width, mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """[L, B, width], as OpenAI orders it."""
        return self.resblocks(x)


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = VISION_WIDTH
        self.input_resolution = RESOLUTION
        self.conv1 = nn.Conv2d(3, width, PATCH_SIZE, PATCH_SIZE, bias=False)
        self.class_embedding = nn.Parameter(0.1 * torch.randn(width))
        self.positional_embedding = nn.Parameter(0.1 * torch.randn((RESOLUTION // PATCH_SIZE) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, VISION_LAYERS)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, EMBED_DIM))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).permute(2, 0, 1)
        start = self.class_embedding.expand(1, patches.shape[1], -1)
        x = torch.cat([start, patches]) + self.positional_embedding[:, None]
        return self.ln_post(self.transformer(self.ln_pre(x))[0]) @ self.proj


class OpenAIClip(nn.Module):
    """Image and text features as OpenAI's CLIP computes them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.context_length = CONTEXT_LENGTH
        self.visual = Vision()
        mask = torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), float("-inf")).triu(1)
        self.transformer = Transformer(TEXT_WIDTH, TEXT_LAYERS, mask)
        self.vocab_size = VOCAB_SIZE
        self.token_embedding = nn.Embedding(VOCAB_SIZE, TEXT_WIDTH)
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(CONTEXT_LENGTH, TEXT_WIDTH))
        self.ln_final = nn.LayerNorm(TEXT_WIDTH)
        self.text_projection = nn.Parameter(TEXT_WIDTH**-0.5 * torch.randn(TEXT_WIDTH, EMBED_DIM))
        self.logit_scale = nn.Parameter(torch.tensor(2.66))
        for parameter in self.parameters():  # biases and norms start at 0 and 1, where a swap would go unseen
            parameter.data += 0.05 * torch.randn_like(parameter)
        self.eval()

    def forward(self, images: Tensor, caption_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.token_embedding(caption_ids) + self.positional_embedding
        x = self.ln_final(self.transformer(x.transpose(0, 1)).transpose(0, 1))
        ends = x[torch.arange(x.shape[0]), caption_ids.argmax(dim=1)]
        return self.visual(images), ends @ self.text_projection


def random_images(count: int = 3, height: int = RESOLUTION, width: int = RESOLUTION) -> Tensor:
    """[count, 3, height, width], standard normal."""
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def random_captions(vocab_size: int = VOCAB_SIZE, context_length: int = CONTEXT_LENGTH) -> Tensor:
    """[3, context_length]: an empty caption, a usual one, and one that fills every position."""
    generator = torch.Generator().manual_seed(2)
    caption_ids = torch.zeros(3, context_length, dtype=torch.int64)
    for row, num_words in zip(caption_ids, (0, 7, context_length - 2), strict=True):
        row[0], row[num_words + 1] = vocab_size - 2, vocab_size - 1
        row[1 : num_words + 1] = torch.randint(1, vocab_size - 2, (num_words,), generator=generator)
    return caption_ids


def save_archive(model: nn.Module, path: Path, extras: Iterable[str] | None = None) -> Path:
    """A TorchScript archive of `model`, in half precision and with the extra tensors of OpenAI's, or others."""
    for name in LEFTOVERS if extras is None else extras:
        if isinstance(getattr(model, name, None), int):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(LEFTOVERS[name]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer would rather have another exporter used, and fewer checks in torch
        traced = torch.jit.trace(model, (random_images(), random_captions()), check_trace=False)
        traced.half().save(str(path))
    return path


def plain_state(seed: int = 0) -> dict[str, Tensor]:
    """The state dict alone, in OpenAI's naming and half precision's values."""
    return {name: value.detach().half().float() for name, value in OpenAIClip(seed).state_dict().items()}


# --- its weight files


ARCHITECTURE = ClipArchitecture(
    embed_dim=24, image_height=32, image_width=32, patch_size=8, stride=8, vision_width=128, vision_layers=2,
    vision_heads=2, text_width=64, text_layers=3, text_heads=1, context_length=20, vocab_size=60,
)  # fmt: skip
LEFTOVERS = {"input_resolution": 32, "context_length": 20, "vocab_size": 60}
UNKNOWN_ORIGIN = {"activation": "quick_gelu", "vision_heads": 2, "text_heads": 1}


def with_changes(change: Callable[[dict[str, Any]], object], path: Path) -> Path:
    """A file of the plain state dict after `change`."""
    state: dict[str, Any] = plain_state()
    change(state)
    torch.save(state, path)
    return path


def open_clip_config(**model: object) -> dict[str, object]:
    """Return the config that open_clip would write beside it, with other head counts."""
    vision = {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8, "head_width": 32}
    text = {"context_length": 20, "vocab_size": 60, "width": 64, "heads": 4, "layers": 3}
    return {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text} | model, "preprocess_cfg": {}}


def assert_tiny(state: dict[str, Tensor]) -> None:
    """`state` is this CLIP's, by our names, every number of it."""
    expected = plain_state()
    assert state.keys() == tower_shapes(ARCHITECTURE).keys()
    for name, value in state.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, expected[openai_name(name)]), name


def refused(path: Path | str, **flags: Any) -> str:
    """The one line with which a backbone is refused."""
    with pytest.raises(ValueError) as caught:
        load_backbone(BackboneConfig(name=str(path), **flags))
    assert "\n" not in str(caught.value)
    return str(caught.value)
