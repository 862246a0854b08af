"""`cskt export --format released` of RDE, UP-Person, DM-Adapter and TBPS-CLIP, with equal features and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from command_line import done, typed

import cskt
from cskt.config import ClipArchitecture, flat_values, load_config
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.native import save_backbone
from cskt.model.io.released.methods import METHODS
from cskt.model.io.released.reader import read_released
from cskt.model.io.released.writer import check_expressible
from cskt.model.io.tensors import load_plain

SIZES = ClipArchitecture(
    embed_dim=16, image_height=32, image_width=16, patch_size=8, stride=8, vision_width=128, vision_layers=2,
    vision_heads=2, text_width=64, text_layers=2, text_heads=1,
)  # fmt: skip
TRAIN = {
    "rde": "--image-height 32 --image-width 16 --parts.tse.ratio 0.5 --hooks.noise-division.mixture none",
    "rde-released": "--image-height 32 --image-width 16 --parts.tse.ratio 0.5 --hooks.noise-division.mixture none",
    "up-person": "--image-height 32 --image-width 16 --parts.up-person.prefix-length 2 --parts.up-person.rank 3"
    " --parts.up-person.depth-adapter 1 --parts.up-person.depth-prefix 2 --parts.up-person.depth-lora 2",
    "dm-adapter": "--image-height 32 --image-width 16 --parts.dm-adapter.num-experts 3 --parts.dm-adapter.topk 1",
    "tbps-clip": "--image-height 16 --image-width 16",
    "tbps-clip-simple": "--image-height 16 --image-width 16",
}
ALONE = {"tbps-clip": "checkpoint_best.pth", "tbps-clip-simple": "checkpoint_best.pth"}
"""Recipe -> the file of its folder, of those without configs.yaml."""
EXPECTED: dict[str, dict[str, Any]] = {
    "rde": {"loss_names": "TAL", "select_ratio": 0.5, "tau": 0.015, "margin": 0.1, "txt_aug": True, "noisy_rate": 0.0},
    "rde-released": {"loss_names": "TAL", "noisy_file": "", "lr_factor": 5.0, "MLM": False},
    "up-person": {
        "loss_names": "sdm", "MLM": True, "prefix_length": 2, "rank": 3, "depth_adapter": 1, "depth_prefix": 2,
        "depth_lora": 2, "depth": 12, "n_ctx": 4, "bias_lr_factor": 2.0,
    },
    "dm-adapter": {"loss_names": "aux+sdm", "MLM": True, "num_experts": 3, "topk": 1, "reduction": 8},
}  # fmt: skip
UNUSED = {"rde": 12, "rde-released": 12, "up-person": 0, "dm-adapter": 5, "tbps-clip": 0, "tbps-clip-simple": 0}
"""Number of tensors that the released code stores and never uses."""
LOST = {
    "rde": "has no word for hooks.noise_division.mixture: settings of the training",
    "rde-released": "has no word for hooks.noise_division.mixture: settings of the training",
    "tbps-clip": "has no word for data.batch_size, ",
    "tbps-clip-simple": "has no word for data.batch_size, ",
}
"""Part of the warning about settings that the folder does not state."""


def any_sizes(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Let a released program take the small model: sizes of ViT-B/16 are written into its code."""
    fixed = cast(dict[str, Any], METHODS[method].fixed)
    for key in fixed.keys() & vars(SIZES).keys() - {"image_mean", "image_std"}:
        monkeypatch.setitem(fixed, key, getattr(SIZES, key))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    square = ClipArchitecture(**vars(SIZES) | {"image_height": 16})
    model = DualEncoder(square, trainable="none")
    model.initialise_backbone(torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("backbone") / "wide.safetensors"
    save_backbone(path, {name: value.detach() for name, value in model.named_parameters()}, square, facts={})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("recipe", TRAIN)
def test_a_run_goes_out_and_comes_back(
    recipe: str,
    root: Path,
    backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    method = recipe.removesuffix("-simple").removesuffix("-released").replace("-", "_")
    any_sizes(monkeypatch, method)
    run, folder = tmp_path / "run", tmp_path / "released"
    done(
        f"cskt train --config {recipe} --root {root} --dataset cuhk-pedes --backbone.name {backbone} --device cpu"
        f" --batch-size 8 --num-epochs 1 --evaluate-before false {TRAIN[recipe]} --output {run}"
    )
    caplog.clear()
    done(f"cskt export {run} --format released --output {folder}")
    file = ALONE.get(recipe, "best.pth")
    stored = load_plain(folder / file)["model"]
    own, back = cskt.load(run, device="cpu"), cskt.load(folder, device="cpu")
    unused = METHODS[method].unused(own.model.architecture)
    assert len(unused) == UNUSED[recipe] and unused.keys() <= stored.keys()
    if recipe in EXPECTED:
        options = yaml.load((folder / "configs.yaml").read_text(), Loader=yaml.FullLoader)
        assert {name: options[name] for name in EXPECTED[recipe]} == EXPECTED[recipe]

    captions = ["a man in red", "a woman", "she wears a long, grey coat."]
    torch.testing.assert_close(back.encode_text(captions), own.encode_text(captions), rtol=1e-5, atol=1e-6)
    images = sorted((root / "CUHK-PEDES" / "imgs").rglob("*.jpg"))[:4]
    torch.testing.assert_close(back.encode_image(images), own.encode_image(images), rtol=1e-5, atol=1e-6)
    ours = typed(f"cskt evaluate {run} --json --device cpu").json()
    named = file if recipe in ALONE else "configs.yaml"
    theirs = f"python test.py --config_file {folder}/{named} --dataset_name CUHK-PEDES --root_dir {root} --json"
    assert typed(theirs).json()["t2i"] == pytest.approx(ours["t2i"], rel=1e-6)

    (warned,) = [*caplog.messages, ""] if recipe in ("up-person", "dm-adapter") else caplog.messages
    assert LOST.get(recipe, "") in warned
    stated, config = read_released(folder).config, own.config
    assert config is not None
    for section in ("loss", "mlm", "augment", "frozen"):
        assert getattr(stated, section) == getattr(config, section), section
    for key in METHODS[method].fixed.keys() & flat_values(stated).keys():
        assert flat_values(stated)[key] == flat_values(config)[key], key


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("rde", {"parts.tse.width": 512}, "parts.tse.width 512: the released RDE program has 1024 only"),
        ("up-person", {"parts.up_person.reduction": 4}, "parts.up_person.reduction 4: the released UP-Person program"),
        (
            "dm-adapter",
            {"parts.dm_adapter.text_scale": 1.0},
            "parts.dm_adapter.text_scale 1.0: the released DM-",
        ),
        ("tbps-clip", {"data.eval_interpolation": "bilinear"}, "data.eval_interpolation bilinear: the released TBPS-C"),
        ("tbps-clip", {}, "the model's images are 384 x 128, with a patch every 16 pixels: the released TBPS-CLIP"),
        ("rde", {"prompts.directions": "both"}, "parts.tse: no released program has this beside prompts or adapters"),
        (
            "rde",
            {"parts.gate": {}},
            "parts.tse, parts.gate: no released program has this; use --merge or",
        ),
    ],
)
def test_what_the_released_programs_cannot_compute(recipe: str, changes: dict[str, Any], message: str) -> None:
    config = load_config(recipe, changes)
    images = {key: value for key in ("image_mean", "image_std") if (value := getattr(config.backbone, key))}
    with pytest.raises(ValueError) as caught:
        check_expressible(config, ClipArchitecture(image_height=384, image_width=128, **images))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_losses_that_a_released_program_does_not_have() -> None:
    words = METHODS["rde"].loss_words
    assert words({"trl": 1.0, "tse_trl": 0.5}) == ["TRL"]
    assert words({"sdm": 1.0}) == ["TAL"], "the program ends without one of its own"
    assert METHODS["dm_adapter"].loss_words({"itc": 1.0}) == ["itc"]
    assert METHODS["irra"].loss_words({"sdm": 1.0, "id": 0.5}) == ["sdm", "id"]
