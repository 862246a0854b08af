"""UP-Person against a second implementation: attention with the factor after the softmax, one query at a time."""

from __future__ import annotations

from typing import Any

import naive_clip
import pytest
import tiny_clip
import torch
from torch import Tensor, nn

from cskt.config import ClipArchitecture
from cskt.errors import CsktError
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import fold_text, fold_vision
from cskt.model.parts.base import SIDES

SIZES = ClipArchitecture(
    embed_dim=6, image_height=16, image_width=12, patch_size=4, stride=4, vision_width=24, vision_layers=3,
    vision_heads=2, text_width=16, text_layers=2, text_heads=2, context_length=15, vocab_size=30,
)  # fmt: skip
SMALL = {"prefix_length": 3, "rank": 2, "reduction": 4}
EACH = {"depth_prefix": 0, "depth_lora": 0, "depth_adapter": 3}
"""No addition at all."""
DEPTHS = {
    "all blocks": {},
    "prefixes": EACH | {"depth_prefix": 2},
    "updates": EACH | {"depth_lora": 1},
    "adapters": EACH | {"depth_adapter": 1},
    "mixed": {"depth_prefix": 1, "depth_lora": 2, "depth_adapter": 2},
}


def model_of(**settings: Any) -> DualEncoder:
    model = DualEncoder(SIZES, {"up_person": SMALL | settings})
    model.initialise_backbone(torch.Generator().manual_seed(0))
    model.initialise_method(torch.Generator().manual_seed(1))
    return model


def trained(**settings: Any) -> DualEncoder:
    """Every number random, in float64; the factor near 5."""
    model, generator = model_of(**settings), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3, generator=generator)
            parameter.add_(5 if name.endswith("factor") else 0)
    return model.double()


def batch() -> tuple[Tensor, Tensor]:
    return tiny_clip.random_images(3, SIZES.image_height, SIZES.image_width).double(), tiny_clip.random_captions(30, 15)


def naively(model: DualEncoder) -> tuple[Tensor, Tensor]:
    state, added = dict(model.state_dict()), {}
    for side in SIDES:
        for kind, modules in model.parts["up_person"].get_submodule(side).named_children():
            for name, module in modules.named_children():
                index = int(name)
                if kind == "prefix":
                    rows = torch.cat([module.key * module.key_scale, module.value * module.value_scale], dim=1)
                    added[side, index, "prefix_kv"] = lambda _, rows=rows: rows
                    added[side, index, "prefix_factor"] = lambda _, factor=module.factor: factor
                elif kind == "low_rank":
                    for target, update in module.named_children():
                        state[f"lora.{side}.{index}.{target}.up"] = update.scale * update.up
                        state[f"lora.{side}.{index}.{target}.down"] = update.down
                else:
                    added[side, index, kind] = lambda x, a=module: a.scale * a.up(torch.clamp(a.down(x), min=0))
    return naive_clip.features(state, SIZES, *batch(), added=added)


@pytest.mark.parametrize("depths", DEPTHS.values(), ids=DEPTHS)
@torch.no_grad()
def test_features_are_those_of_the_plain_wiring(depths: dict[str, int]) -> None:
    model = trained(**depths)
    images, caption_ids = batch()
    folded = fold_vision(model, torch.float64)(images), fold_text(model, torch.float64)(caption_ids)
    for ours, expected, inferred, plain in zip(
        model(images, caption_ids), naively(model), folded, model.bare()(images, caption_ids), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(inferred.double(), expected, rtol=1e-5, atol=1e-5)
        assert (ours - plain).abs().max() > 1e-3


def test_additions_are_in_the_blocks_that_the_depths_name() -> None:
    names = {
        ".".join(name.split(".")[2:5]) for name in trained(**DEPTHS["mixed"]).trainable_names() if "scale" not in name
    }
    assert names == {
        "vision.prefix.0", "text.prefix.0",
        "vision.low_rank.0", "vision.low_rank.1", "text.low_rank.0", "text.low_rank.1",
        "vision.before_attention.2", "vision.before_mlp.2",
    }, "the text tower has two blocks: none from index 2 on"  # fmt: skip


def test_gradients_reach_everything_and_recomputing_changes_none() -> None:
    model, gradients = trained(), []
    for recompute in (False, True):
        model.checkpoint_activations(recompute)
        model.zero_grad()
        sum(features.square().sum() for features in model(*batch())).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])


@torch.no_grad()
def test_only_the_prefix_moves_the_start_away_from_clip() -> None:
    for settings, is_clip in (({"depth_prefix": 0}, True), ({}, False)):
        model = model_of(**settings)
        for found, plain in zip(model(*float32()), model.bare()(*float32()), strict=True):
            assert torch.equal(found, plain) == is_clip
    values = dict(model.named_parameters())
    for side in SIDES:
        prefix = f"parts.up_person.{side}.prefix.0."
        assert values[f"{prefix}factor"] == 100 and values[f"{prefix}key_scale"] == values[f"{prefix}value_scale"] == 1
        assert 0 <= values[f"{prefix}key"].min() < values[f"{prefix}value"].max() <= 0.01
        for name in ("before_attention.0.scale", "before_mlp.0.scale", "low_rank.0.key.scale"):
            assert values[f"parts.up_person.{side}.{name}"] == 1
        down = values[f"parts.up_person.{side}.before_mlp.0.down.weight"]
        assert 0.5 * down.shape[1] ** -0.5 < down.abs().max() <= down.shape[1] ** -0.5


def float32() -> tuple[Tensor, Tensor]:
    images, caption_ids = batch()
    return images.float(), caption_ids


@torch.no_grad()
def test_updates_are_in_the_weights_for_inference() -> None:
    model = trained()
    for side, folded in (("vision", fold_vision(model)), ("text", fold_text(model))):
        kinds = [{kind for kind, modules in block._asdict().items() if modules} for block in folded.block_extras]
        assert kinds == [{"before_attention", "before_mlp"}] * len(kinds)
        plain = model.get_submodule(side).blocks[0].attn.in_proj.weight
        changed = (folded.tower.blocks[0].attn.in_proj.weight.double() - plain).abs().amax(dim=1) > 1e-4
        width = plain.shape[1]
        assert not changed[:width].any() and changed[width:].all(), "keys and values, not queries"
    assert isinstance(model.parts["up_person"], nn.Module), "the model itself is not changed"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefix_length": 0}, r"parts\.up_person: prefix_length: .*greater than 0"),
        ({"prefix_length": -1}, r"parts\.up_person: prefix_length: .*greater than 0"),
        ({"prefix_length": True}, r"parts\.up_person: prefix_length: input should be a number"),
        ({"rank": 0}, r"parts\.up_person: rank: .*greater than 0"),
        ({"rank": 17}, r"^parts\.up_person\.rank 17 is above the text tower's width 16$"),
        ({"reduction": 17}, r"^parts\.up_person\.reduction 17 is above the text tower's width 16$"),
        ({"depth_lora": -1}, r"parts\.up_person: depth_lora: .*greater than or equal to 0"),
        ({"prefix_factor": 0}, r"parts\.up_person: prefix_factor: .*greater than 0"),
        ({"prefix_lenght": 3}, r"parts\.up_person: unknown key 'prefix_lenght': did you mean 'prefix_length'\?"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CsktError, match=message) as caught:
        model_of(**settings)
    assert "\n" not in str(caught.value)
