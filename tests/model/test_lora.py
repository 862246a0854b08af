"""Low-rank updates: against a second implementation, from their silent start to their end in the folded weights."""

from __future__ import annotations

from pathlib import Path

import naive_clip
import pytest
import tiny_clip
import torch
from torch import Tensor

from cskt.cli import export
from cskt.config import ClipArchitecture, LoraConfig, load_config
from cskt.data.datasets import read_dataset
from cskt.embed import load
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.native import kind_of, read_method
from cskt.training.loop import train
from tiny_run import quick_config

SIZES = ClipArchitecture(
    embed_dim=6, image_height=16, image_width=12, patch_size=4, stride=4, vision_width=24, vision_layers=3,
    vision_heads=2, text_width=16, text_layers=2, text_heads=2, context_length=15, vocab_size=30,
)  # fmt: skip
TARGETS = ("query", "key", "value", "out", "fc", "proj")
CHOICES = [*((target,) for target in TARGETS), ("proj", "query"), TARGETS]
RANK, ALPHA = 3, 5.0


def lora(targets: tuple[str, ...] = TARGETS, sides: str = "both", trainable: str = "added") -> DualEncoder:
    """Towers and updates as they start."""
    config = LoraConfig(sides=sides, rank=RANK, alpha=ALPHA, targets=targets)  # type: ignore[arg-type]
    model = DualEncoder(SIZES, {"lora": config}, trainable=trainable)
    generator = torch.Generator().manual_seed(4)
    model.initialise_backbone(generator)
    model.initialise_method(generator)
    return model


def trained(targets: tuple[str, ...] = TARGETS, sides: str = "both", trainable: str = "added") -> DualEncoder:
    """The same with every number random, as if long trained."""
    model, generator = lora(targets, sides, trainable), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return model


def batch() -> tuple[Tensor, Tensor]:
    return tiny_clip.random_images(3, SIZES.image_height, SIZES.image_width), tiny_clip.random_captions(30, 15)


@pytest.mark.parametrize("sides", ["text", "vision", "both"])
@pytest.mark.parametrize("targets", CHOICES, ids="-".join)
@torch.no_grad()
def test_features_equal_a_naive_implementation(targets: tuple[str, ...], sides: str) -> None:
    model, (images, caption_ids) = trained(targets, sides).double(), batch()
    state = dict(model.state_dict())
    bare = {name: value for name, value in state.items() if not name.startswith("lora.")}
    expected = naive_clip.features(state, SIZES, images.double(), caption_ids, scale=ALPHA / RANK)
    plain = naive_clip.features(bare, SIZES, images.double(), caption_ids)
    updated = [sides in (side, "both") for side in ("vision", "text")]
    found = model(images.double(), caption_ids)
    for ours, wanted, without, differs in zip(found, expected, plain, updated, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)
        assert (not torch.allclose(ours, without, atol=1e-3)) == differs


@pytest.mark.parametrize("targets", CHOICES, ids="-".join)
@torch.no_grad()
def test_an_update_starts_silent(targets: tuple[str, ...]) -> None:
    model = lora(targets)
    for with_updates, plain in zip(model(*batch()), model.bare()(*batch()), strict=True):
        assert torch.equal(with_updates, plain)
    downs = [value for name, value in model.named_parameters() if name.endswith(".down")]
    assert all(0.5 * value.shape[1] ** -0.5 < value.abs().max() <= value.shape[1] ** -0.5 for value in downs)


@pytest.mark.parametrize("sides", ["text", "vision", "both"])
@pytest.mark.parametrize("targets", CHOICES, ids="-".join)
@torch.no_grad()
def test_folded_weights_compute_the_same(targets: tuple[str, ...], sides: str) -> None:
    model = trained(targets, sides)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(*batch())
    model.fold_low_rank()
    assert not [name for name, _ in model.named_parameters() if name.startswith("lora.")]
    for found, wanted in zip(model(*batch()), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    layers = {naive_clip.LINEAR[target][0] for target in targets}
    blocks = {"vision": SIZES.vision_layers, "text": SIZES.text_layers}
    assert changed == {
        f"{side}.blocks.{index}.{layer}.weight"
        for side, number in blocks.items()
        if sides in (side, "both")
        for index in range(number)
        for layer in layers
    }


def test_folding_nothing_changes_nothing() -> None:
    model = DualEncoder(SIZES)
    model.initialise_backbone(torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.fold_low_rank()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- what trains


@pytest.mark.parametrize("sides", ["text", "vision", "both"])
@pytest.mark.parametrize("targets", CHOICES, ids="-".join)
def test_trainable_by_name_and_number(targets: tuple[str, ...], sides: str) -> None:
    model = lora(targets, sides)
    towers = {"vision": (SIZES.vision_layers, SIZES.vision_width), "text": (SIZES.text_layers, SIZES.text_width)}
    chosen = {side: tower for side, tower in towers.items() if sides in (side, "both")}
    assert set(model.trainable_names()) == {
        f"lora.{side}.{index}.{target}.{leaf}"
        for side, (layers, _) in chosen.items()
        for index in range(layers)
        for target in targets
        for leaf in ("down", "up")
    }
    widths = {"fc": 5, "proj": 5}  # one side of the MLP is four times as wide; the other layers are square
    assert model.num_parameters(trainable_only=True) == sum(
        layers * RANK * width * widths.get(target, 2) for layers, width in chosen.values() for target in targets
    )


@pytest.mark.parametrize("trainable", ["added", "projections", "all"])
def test_a_step_moves_what_trains_and_nothing_else(trainable: str) -> None:
    model = trained(trainable=trainable)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sum(features.square().sum() for features in model(*batch())).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e3).step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(model.trainable_names())


def test_recomputed_activations_change_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        model = trained()
        model.checkpoint_activations(recompute)
        sum(features.square().sum() for features in model(*batch())).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_rank_that_is_no_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^lora\.rank 17 is above the text tower's width 16$"):
        DualEncoder(SIZES, {"lora": LoraConfig(sides="both", rank=17)})


def test_a_layer_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lora\.targets query,query names a layer twice"):
        load_config("lora", {"lora.targets": ["query", "query"]})


# --- a run


@pytest.fixture(scope="module")
def run(dolls: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training of every target."""
    config = quick_config(dolls, tiny_backbone, "lora", {"lora.targets": list(TARGETS)})
    return train(config, tmp_path_factory.mktemp("lora") / "run").folder


@pytest.mark.parametrize("form", ["merge", "as-backbone"])
def test_an_exported_run_carries_no_updates(
    run: Path, dolls: Path, tiny_backbone: Path, tmp_path: Path, form: str
) -> None:
    assert all(name.startswith("lora.") for name in read_method(run / "best.safetensors").tensors)
    target = tmp_path / "exported.safetensors"
    assert export.main([str(run), f"--{form}", str(target)]) == 0
    assert kind_of(target) == ("method" if form == "merge" else "backbone")
    whole, exported, untrained = (load(path, device="cpu") for path in (run, target, tiny_backbone))
    names = [name for name, _ in exported.model.named_parameters()]
    assert names and all(name.startswith(("vision.", "text.")) for name in names)
    split = read_dataset("cuhk-pedes", dolls)["val"]
    texts, images = (
        [encode(encoder) for encoder in (exported, whole, untrained)]
        for encode in (lambda e: e.encode_text(split.captions), lambda e: e.encode_image(split.image_paths))
    )
    for found, expected, before in (texts, images):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found, before, atol=1e-3), "training made a difference"
