"""A folded model computes what the model computes, and leaves it alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.config import AdapterConfig, ClipArchitecture, LoraConfig, PromptConfig
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import FoldedMLP, fold_text, fold_vision

SIZES: dict[str, Any] = {
    "embed_dim": 12, "image_height": 24, "image_width": 16, "patch_size": 8, "stride": 8, "vision_width": 48,
    "vision_layers": 3, "vision_heads": 3, "text_width": 32, "text_layers": 3, "text_heads": 2, "context_length": 20,
    "vocab_size": 40,
}  # fmt: skip


def model_of(
    directions: str = "both",
    sides: str = "both",
    depth: int = 3,
    activation: str = "quick_gelu",
    lora: LoraConfig = LoraConfig(),  # noqa: B008  (frozen)
) -> DualEncoder:
    """Every parameter away from 0 and 1, where a forgotten factor would go unseen."""
    model = DualEncoder(
        ClipArchitecture(**SIZES, activation=activation),
        {
            "prompts": PromptConfig(directions=directions, depth=depth, length=2),
            "adapters": AdapterConfig(sides=sides, reduction=4),
            "lora": lora,
        },
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator).add_(0.1)
    return model


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(3, 3, 24, 16, generator=generator)
    caption_ids = torch.zeros(3, 12, dtype=torch.int64)
    for row, length in zip(caption_ids, (3, 12, 7), strict=True):
        row[:length] = torch.tensor([38, *range(5, length + 3), 39])
    return images, caption_ids


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(
    ("directions", "sides", "depth"),
    [("both", "both", 3), ("both", "both", 1), ("t2v", "none", 2), ("none", "vision", 1), ("none", "none", 1)],
)
@torch.no_grad()
def test_the_function_stays(directions: str, sides: str, depth: int, activation: str) -> None:
    model = model_of(directions, sides, depth, activation)
    images, caption_ids = inputs()
    torch.testing.assert_close(fold_vision(model)(images), model.encode_image(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fold_text(model)(caption_ids), model.encode_text(caption_ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("directions", ["both", "none"])
@torch.no_grad()
def test_padding_is_left_out(directions: str) -> None:
    model = model_of(directions)
    folded, (_, caption_ids) = fold_text(model), inputs()
    wanted = model.encode_text(caption_ids)
    for padding in (0, 4):  # the longest caption may be padded, too
        padded = F.pad(caption_ids, (0, padding))
        packing = folded.packing(padded)
        assert packing is not None
        # Tokens after the prefix, of 3, 12 and 7: their keys and values are computed, and nothing else is.
        assert len(packing.places_in_padded) == 2 + 11 + 6
        torch.testing.assert_close(folded(padded, packing), wanted, rtol=1e-4, atol=1e-5)
    assert folded.packing(caption_ids[1:2]) is None, "one caption has no padding"
    torch.testing.assert_close(folded(caption_ids[1:2]), wanted[1:2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_words_beyond_the_context_are_cut_in_a_packed_batch_too() -> None:
    model = model_of()
    long = torch.tensor([[38, *range(1, 19), 39], [38, 5, 39, *[0] * 17]])
    folded = fold_text(model)
    packing = folded.packing(long)
    assert packing is not None and len(packing.places_in_padded) == 20 - 1 - model.num_text_slots + 2
    torch.testing.assert_close(folded(long, packing), model.encode_text(long), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_modules_of_a_method_receive_whole_sequences() -> None:
    """They may look at more than one token, so nothing is packed."""
    _, caption_ids = inputs()
    parts = {"up_person": {"prefix_length": 2, "depth_prefix": 1, "rank": 2, "depth_lora": 1, "reduction": 4}}
    assert fold_text(DualEncoder(ClipArchitecture(**SIZES), parts)).packing(caption_ids) is None


@torch.no_grad()
def test_low_rank_updates_are_folded() -> None:
    targets = ("query", "key", "value", "out", "fc", "proj")
    model = model_of(lora=LoraConfig(sides="both", rank=2, targets=targets))  # type: ignore[arg-type]
    images, caption_ids = inputs()
    torch.testing.assert_close(fold_vision(model)(images), model.encode_image(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fold_text(model)(caption_ids), model.encode_text(caption_ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_stays_as_it_is(dtype: torch.dtype) -> None:
    model = model_of(lora=LoraConfig(sides="both", rank=2))
    model.checkpoint_activations(True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wanted = model.trainable_names()
    folded = fold_vision(model, dtype), fold_text(model, dtype)
    for tower in folded:
        for parameter in tower.parameters():
            assert parameter.dtype == dtype and not parameter.requires_grad
    assert model.trainable_names() == wanted
    assert model.vision.checkpoint_activations and model.lora
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, before[name]), name


def test_it_does_not_follow_the_model() -> None:
    model, (images, _) = model_of(), inputs()
    folded = fold_vision(model)
    with torch.no_grad():
        before = folded(images)
        for parameter in itertools.chain(model.prompts.parameters(), model.adapters.parameters()):
            parameter.zero_()
        assert torch.equal(folded(images), before)
        assert not torch.allclose(model.encode_image(images), before)


def test_mlp_and_adapter_are_two_matrices() -> None:
    model = model_of()
    block = fold_vision(model).tower.blocks[0]
    assert isinstance(block.mlp, FoldedMLP)
    shapes = {name: tuple(p.shape) for name, p in block.mlp.named_parameters()}
    assert shapes == {
        "c_fc.weight": (4 * 48 + 12, 48), "c_fc.bias": (4 * 48 + 12,),
        "c_proj.weight": (48, 4 * 48 + 12), "c_proj.bias": (48,),
    }  # fmt: skip
    assert not list(block.ln_2.parameters())


@torch.no_grad()
def test_memory_is_shared_where_nothing_changes() -> None:
    model = model_of()
    folded = fold_vision(model)
    assert folded.tower.conv1.weight.data_ptr() == model.vision.conv1.weight.data_ptr()
    for own, block in zip(folded.tower.blocks, model.vision.blocks, strict=True):
        assert own.attn.in_proj.weight.data_ptr() == block.attn.in_proj.weight.data_ptr()  # type: ignore[union-attr]


@torch.no_grad()
def test_bf16_is_near() -> None:
    model, (images, caption_ids) = model_of(), inputs()
    for found, exact in (
        (fold_vision(model, torch.bfloat16)(images), model.encode_image(images)),
        (fold_text(model, torch.bfloat16)(caption_ids), model.encode_text(caption_ids)),
    ):
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found, exact).min() > 0.995
