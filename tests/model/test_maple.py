"""MaPLe, the recipe: prompts in the text tower, carried into the vision tower, against a second implementation."""

from __future__ import annotations

from dataclasses import replace

import naive_clip
import pytest
import tiny_clip
import torch

from cskt.config import ClipArchitecture, load_config
from cskt.model.dual_encoder import DualEncoder

SIZES = ClipArchitecture(
    embed_dim=6, image_height=16, image_width=12, patch_size=4, stride=4, vision_width=24, vision_layers=4,
    vision_heads=2, text_width=16, text_layers=3, text_heads=2, context_length=15, vocab_size=30,
)  # fmt: skip
RECIPE = load_config("maple")


def maple(depth: int, length: int) -> DualEncoder:
    """The recipe over thin towers, every number random, in float64."""
    prompts = replace(RECIPE.prompts, depth=depth, length=length)
    model = DualEncoder(SIZES, RECIPE.method | {"prompts": prompts}, trainable=RECIPE.trainable)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model.double()


@pytest.mark.parametrize(("depth", "length"), [(1, 1), (1, 3), (2, 2), (3, 2)])
def test_features_equal_a_naive_implementation(depth: int, length: int) -> None:
    model = maple(depth, length)
    state = dict(model.state_dict())
    text_prompts = [state[f"prompts.text.{i}"] for i in range(depth)]
    vision_prompts = [
        torch.stack([state[f"prompts.t2v.{i}.weight"] @ token for token in tokens]) + state[f"prompts.t2v.{i}.bias"]
        for i, tokens in enumerate(text_prompts)
    ]
    images, caption_ids = tiny_clip.random_images(3, 16, 12).double(), tiny_clip.random_captions(30, 15)
    expected = naive_clip.features(state, SIZES, images, caption_ids, vision_prompts, text_prompts)
    plain = naive_clip.features(state, SIZES, images, caption_ids)
    with torch.no_grad():
        for found, wanted, without in zip(model(images, caption_ids), expected, plain, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
            assert (found - without).abs().max() > 1e-3, "the prompts matter"


def test_prompts_and_couplings_train_and_nothing_else() -> None:
    model = maple(2, 2)
    assert model.trainable_names() == [
        "prompts.text.0", "prompts.text.1", "prompts.t2v.0.weight", "prompts.t2v.0.bias", "prompts.t2v.1.weight",
        "prompts.t2v.1.bias",
    ]  # fmt: skip
    assert model.num_parameters(trainable_only=True) == 2 * (2 * 16 + 16 * 24 + 24)


def test_an_image_alone_moves_the_text_prompts() -> None:
    model = maple(2, 2)
    model.encode_image(tiny_clip.random_images(1, 16, 12).double()).sum().backward()
    assert all(prompt.grad is not None and prompt.grad.any() for prompt in model.prompts.text)
