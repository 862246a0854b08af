"""The towers against other people's CLIP, the placing of prompts, and what exactly trains."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import tiny_clip
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from cskt.config import AdapterConfig, BackboneConfig, ClipArchitecture, PromptConfig
from cskt.model.clip import place_prompts
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.weights import load_backbone, load_state

SMALL = ClipArchitecture(
    embed_dim=6, image_height=16, image_width=12, patch_size=4, stride=4, vision_width=24, vision_layers=3,
    vision_heads=2, text_width=16, text_layers=2, text_heads=2, context_length=15, vocab_size=30,
)  # fmt: skip
DEPTH, LENGTH, REDUCTION = 2, 3, 4


def loaded(name: Path, **flags: object) -> DualEncoder:
    backbone = load_backbone(BackboneConfig(name=str(name), **flags))  # type: ignore[arg-type]
    model = DualEncoder(backbone.architecture, trainable="none")
    load_state(model, backbone.state, origin=backbone.name)
    return model


# --- against other implementations


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def hugging_face(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPModel, Path]:
    config = CLIPConfig(
        text_config={
            "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3,
            "vocab_size": 50, "max_position_embeddings": 14, "hidden_act": request.param, "eos_token_id": 49,
            "bos_token_id": 48, "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3, "num_hidden_layers": 2,
            "image_size": 24, "patch_size": 8, "hidden_act": request.param,
        },
        projection_dim=20,
    )  # fmt: skip
    torch.manual_seed(5)
    model = CLIPModel(config).eval()
    for parameter in model.parameters():  # its biases start at 0, where a wrong place would go unseen
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def test_features_equal_hugging_faces(hugging_face: tuple[CLIPModel, Path]) -> None:
    theirs, folder = hugging_face
    ours = loaded(folder)
    images, caption_ids = tiny_clip.random_images(3, 24, 24), tiny_clip.random_captions(50, 14)
    image_features = theirs.visual_projection(theirs.vision_model(images).pooler_output)
    text_features = theirs.text_projection(theirs.text_model(caption_ids).pooler_output)
    torch.testing.assert_close(ours.encode_image(images), image_features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.encode_text(caption_ids), text_features, rtol=1e-5, atol=1e-5)


def test_hugging_face_config_must_fit(hugging_face: tuple[CLIPModel, Path], tmp_path: Path) -> None:
    folder = hugging_face[1]
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"set backbone\.activation"):
        loaded(tmp_path)
    config = (folder / "config.json").read_text()
    changes = {
        '"hidden_size": 48': ('"hidden_size": 64', "vision hidden_size 64 does not fit"),
        '"num_hidden_layers": 3': ('"num_hidden_layers": 4', "text num_hidden_layers 4 does not fit"),
        '"layer_norm_eps": 1e-05': ('"layer_norm_eps": 1e-06', "layer_norm_eps 1e-06 is not supported"),
        '"model_type": "clip",': ('"model_type": "siglip",', "model_type 'siglip' is not supported"),
        '"hidden_act": "': ('"hidden_act": "new', "activation"),
    }
    for old, (new, message) in changes.items():
        assert old in config
        (tmp_path / "config.json").write_text(config.replace(old, new))
        with pytest.raises(ValueError, match=message):
            loaded(tmp_path)
    (tmp_path / "config.json").write_text(config[: len(config) // 2])
    with pytest.raises(ValueError, match="config.json: not JSON"):
        loaded(tmp_path)


@torch.no_grad()
def test_features_equal_openais_archive(tmp_path: Path) -> None:
    model = tiny_clip.OpenAIClip(seed=4)
    ours = loaded(tiny_clip.save_archive(model, tmp_path / "tiny.pt"))
    images, caption_ids = tiny_clip.random_images(), tiny_clip.random_captions()
    image_features, text_features = model.half().float()(images, caption_ids)
    torch.testing.assert_close(ours.encode_image(images), image_features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.encode_text(caption_ids), text_features, rtol=1e-5, atol=1e-5)


# --- any size of image, any stride


@pytest.mark.parametrize(
    ("height", "width", "stride"), [(32, 32, 8), (48, 16, 8), (48, 16, 4), (40, 24, 6), (33, 9, 5), (8, 8, 1)]
)
@torch.no_grad()
def test_any_image_size_and_stride(tmp_path: Path, height: int, width: int, stride: int) -> None:
    path = tiny_clip.save_archive(tiny_clip.OpenAIClip(), tmp_path / "tiny.pt")
    model = loaded(path, image_height=height, image_width=width, stride=stride)
    images = tiny_clip.random_images(2, height, width)
    rows, columns = (height - 8) // stride + 1, (width - 8) // stride + 1
    assert model.vision(images).shape == (2, 1 + rows * columns, tiny_clip.VISION_WIDTH)
    # A patch is seen where the stride puts it: patch (r, c) is pixels [r stride, r stride + 8).
    row, column = rows - 1, columns - 1
    window = images[:, :, row * stride : row * stride + 8, column * stride : column * stride + 8]
    expected = torch.einsum("bchw,dchw->bd", window, model.vision.conv1.weight)
    with FlopCounterMode(display=False) as counter:
        found = model.vision._embed_patches(images)
    assert not any("conv" in str(name) for name in counter.get_flop_counts()["Global"]), "CUDA would round it to TF32"
    torch.testing.assert_close(found[:, row * columns + column], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, model.vision.conv1(images).flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
    assert model.encode_image(images).isfinite().all()


# --- placing prompts


def placed_by_hand(ids: list[int], num_slots: int, end_id: int, context_length: int) -> tuple[list[int], int]:
    words = ids[1 : ids.index(end_id)]
    kept = words[: context_length - 2 - num_slots]
    row = [ids[0], *[0] * num_slots, *kept, end_id]
    return row, len(row) - 1


@settings(deadline=None, max_examples=200)
@given(
    word_counts=st.lists(st.integers(0, 100), min_size=1, max_size=4),
    num_slots=st.sampled_from([0, 1, 8, 74]),
    padding=st.sampled_from(["zeros", "ends"]),
    spare=st.integers(0, 5),
)
def test_prompts_are_placed_after_the_start(word_counts: list[int], num_slots: int, padding: str, spare: int) -> None:
    end_id, start_id, context_length = 999, 998, 77
    longest = max(word_counts) + 2 + spare
    caption_ids = torch.full((len(word_counts), longest), 0 if padding == "zeros" else end_id)
    for row, count in zip(caption_ids, word_counts, strict=True):
        row[: count + 2] = torch.tensor([start_id, *range(1, count + 1), end_id])
    before = caption_ids.clone()
    placed = place_prompts(caption_ids, num_slots, end_id=end_id, context_length=context_length)
    assert torch.equal(caption_ids, before)
    assert placed.ids.shape == (len(word_counts), min(longest + num_slots, context_length))
    for row, end, given_ids in zip(placed.ids.tolist(), placed.end_positions.tolist(), before.tolist(), strict=True):
        expected, expected_end = placed_by_hand(given_ids, num_slots, end_id, context_length)
        assert end == expected_end
        assert row[: end + 1] == expected


@torch.no_grad()
def test_what_follows_the_end_token_changes_nothing() -> None:
    model = initialised("both", "both")
    caption_ids = torch.tensor([[28, 4, 5, 29, 0, 0, 0]])
    others = torch.tensor([[28, 4, 5, 29, 17, 3, 29]])
    torch.testing.assert_close(model.encode_text(caption_ids), model.encode_text(others))
    torch.testing.assert_close(model.encode_text(caption_ids), model.encode_text(caption_ids[:, :4]))


# --- what trains


DIRECTIONS = {
    # text prompts, vision prompts, t2v couplings, v2t couplings
    "none": (0, 0, 0, 0), "text": (1, 0, 0, 0), "vision": (0, 1, 0, 0), "own": (1, 1, 0, 0),
    "t2v": (1, 0, 1, 0), "v2t": (0, 1, 0, 1), "both": (1, 1, 1, 1),
}  # fmt: skip


def initialised(directions: str, sides: str, trainable: str = "added") -> DualEncoder:
    model = DualEncoder(
        SMALL,
        {
            "prompts": PromptConfig(directions=directions, depth=DEPTH, length=LENGTH),
            "adapters": AdapterConfig(sides=sides, reduction=REDUCTION, init="normal"),
        },
        trainable=trainable,
    )
    generator = torch.Generator().manual_seed(6)
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    return model


def added_names(directions: str, sides: str) -> set[str]:
    text, vision, t2v, v2t = DIRECTIONS[directions]
    names = {f"prompts.text.{i}" for i in range(text * DEPTH)} | {f"prompts.vision.{i}" for i in range(vision * DEPTH)}
    for coupling, learned in (("t2v", t2v), ("v2t", v2t)):
        names |= {f"prompts.{coupling}.{i}.{leaf}" for i in range(learned * DEPTH) for leaf in ("weight", "bias")}
    for side, layers in (("vision", SMALL.vision_layers), ("text", SMALL.text_layers)):
        if sides in (side, "both"):
            names |= {
                f"adapters.{side}.{i}.{part}.{leaf}"
                for i in range(layers)
                for part in ("norm", "down", "up")
                for leaf in ("weight", "bias")
            }
    return names


def added_count(directions: str, sides: str) -> int:
    """Number of scalars in closed form."""
    text, vision, t2v, v2t = DIRECTIONS[directions]
    w, v = SMALL.text_width, SMALL.vision_width
    count = DEPTH * (text * LENGTH * w + vision * LENGTH * v + t2v * (w * v + v) + v2t * (v * w + w))
    for side, layers, width in (("vision", SMALL.vision_layers, v), ("text", SMALL.text_layers, w)):
        if sides in (side, "both"):
            bottleneck = width // REDUCTION
            count += layers * (2 * width + 2 * width * bottleneck + bottleneck + width)
    return count


@pytest.mark.parametrize("sides", ["none", "text", "vision", "both"])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_added_parameters_by_name_and_number(directions: str, sides: str) -> None:
    model = initialised(directions, sides)
    assert set(model.trainable_names()) == added_names(directions, sides)
    assert model.num_parameters(trainable_only=True) == added_count(directions, sides)


@pytest.mark.parametrize(
    ("directions", "sides"), [("both", "both"), ("t2v", "none"), ("none", "text"), ("none", "none")]
)
def test_policies_by_name(directions: str, sides: str) -> None:
    added, projections = added_names(directions, sides), {"vision.proj", "text.proj"}
    everything = {name for name, _ in initialised(directions, sides).named_parameters()}
    assert set(initialised(directions, sides, "projections").trainable_names()) == added | projections
    assert set(initialised(directions, sides, "all").trainable_names()) == everything
    assert initialised(directions, sides, "none").trainable_names() == []
    assert everything - added == {name for name in everything if name.startswith(("vision.", "text."))}


def batch() -> tuple[Tensor, Tensor]:
    return tiny_clip.random_images(3, SMALL.image_height, SMALL.image_width), tiny_clip.random_captions(30, 15)


@pytest.mark.parametrize(
    ("directions", "sides", "trainable"),
    [
        *itertools.product(["both"], ["both"], ["added", "projections", "all"]),
        ("t2v", "none", "added"), ("v2t", "none", "added"), ("own", "none", "added"), ("text", "none", "added"),
        ("vision", "none", "added"), ("none", "vision", "added"), ("none", "text", "added"),
        ("none", "none", "projections"), ("none", "none", "all"),
    ],
)  # fmt: skip
def test_a_step_moves_what_trains_and_nothing_else(directions: str, sides: str, trainable: str) -> None:
    model = initialised(directions, sides, trainable)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e3)
    image_features, text_features = model(*batch())
    (image_features.square().sum() + text_features.square().sum()).backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(model.trainable_names())


@torch.no_grad()
def test_captions_of_a_batch_do_not_meet() -> None:
    model = initialised("both", "both")
    images, caption_ids = batch()
    together = model(images, caption_ids)
    order = torch.tensor([2, 0, 1])
    for whole, permuted in zip(together, model(images[order], caption_ids[order]), strict=True):
        torch.testing.assert_close(whole[order], permuted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_recomputed_activations_change_no_gradient(directions: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = initialised(directions, "both")
        model.checkpoint_activations(recompute)
        sum(features.square().sum() for features in model(*batch())).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
