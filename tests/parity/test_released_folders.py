"""Folders of the released codes load, and compute the golden features of these codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from golden import Golden
from released_folders import in_half_precision, released_tensors, write_folder
from torch import Tensor

import cskt
from cskt.config import RunConfig
from cskt.model.io.released.methods import METHODS
from cskt.model.io.released.reader import read_released_config
from cskt.utils.modules import named_tensors

pytestmark = pytest.mark.slow
FOLDERS = ("irra", "rde", "up_person", "dm_adapter", "tbps_clip")
PARTS = {
    "up_person": ("prefix_length", "rank", "depth_lora", "depth_prefix", "depth_adapter"),
    "dm_adapter": ("num_experts", "topk", "reduction"),
}
"""Settings of a part that the figures of its case state."""


@dataclass(frozen=True)
class Case:
    method: str
    golden: Golden
    tensors: dict[str, Tensor]
    """Tensors of the checkpoint."""
    folder: Path
    encoder: cskt.Encoder

    @property
    def config(self) -> RunConfig:
        assert self.encoder.config is not None
        return self.encoder.config


@pytest.fixture(scope="module", params=FOLDERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    method = request.param
    golden = Golden.read(f"{method}_a", (224, 224) if method == "tbps_clip" else (384, 128))
    tensors = released_tensors(method, golden)
    folder = write_folder(tmp_path_factory.mktemp(method), method, golden, tensors)
    return Case(method, golden, tensors, folder, cskt.load(folder, device="cpu"))


@torch.no_grad()
def computed(encoder: cskt.Encoder, golden: Golden) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what a loaded model computes, and the golden values of it."""
    images, ids, model = golden.images(), golden.ids("caption_ids"), encoder.model
    prefix = "bge_" if "bge_image_features" in golden.tensors else ""
    found = {
        f"{prefix}image_features": model.image_features(images),
        f"{prefix}text_features": model.text_features(ids),
    }
    if "similarity" in golden.tensors:  # the mean of the cosines of two embeddings
        found["similarity"] = model.encode_text(ids) @ model.encode_image(images).T
    return found, {name: golden.tensors[name] for name in found}


def test_features(case: Case) -> None:
    found, expected = computed(case.encoder, case.golden)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_under_the_prefix_of_a_wrapper(case: Case, tmp_path: Path) -> None:
    tensors = in_half_precision(case.method, case.tensors)
    assert {value.dtype for value in tensors.values()} >= {torch.float16, torch.float32}
    wrapped = {f"module.{name}": value for name, value in tensors.items()}
    encoder = cskt.load(write_folder(tmp_path, case.method, case.golden, wrapped, file="last.pth"), device="cpu")
    for name, value in named_tensors(encoder.model).items():
        stored = tensors[METHODS[case.method].name(name)]
        assert torch.equal(value, stored.to(value.dtype)), name
    found, expected = computed(encoder, case.golden)
    for name, value in found.items():
        # Rounding to 11 bits may change which two experts compute a token, where two logits are nearly equal.
        assert (value - expected[name]).norm() < 5e-3 * expected[name].norm(), name


def test_config_has_the_settings_of_the_folder(case: Case) -> None:
    config, figures = case.config, case.golden.figures
    assert config.parts.keys() == METHODS[case.method].parts.keys()
    for key in PARTS.get(case.method, ()):
        assert config.parts[case.method][key] == figures[key], key
    if case.method == "up_person":
        assert (config.parts["up_person"]["reduction"], config.loss.weights) == (8, {"sdm": 1.0})
        assert (config.prompts.directions, config.mlm.without_loss) == ("none", True)
    elif case.method == "dm_adapter":
        assert (config.loss.weights, config.mlm.without_loss) == ({"sdm": 1.0, "balance": 0.5}, True)
    elif case.method == "rde":
        assert config.parts["tse"] == {"ratio": 0.3, "width": 1024, "train_mode_after_division": False}
        assert config.loss.weights == {"tal": 1.0, "tse_tal": 1.0}
        assert (config.loss.tal_temperature, config.loss.tal_margin) == (figures["tau"], figures["margin"])
        assert config.augment.caption_change_probability == 0.2
    elif case.method == "tbps_clip":
        assert (config.backbone.image_height, config.backbone.image_width) == (224, 224)
        assert (config.data.clean_captions, config.data.eval_interpolation) == (True, "bicubic")
        architecture = case.encoder.model.architecture
        assert (architecture.image_mean, architecture.image_std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    without_weights = read_released_config(case.folder)
    for section in ("loss", "data", "mlm", "augment", "optim", "loop", "trainable"):
        assert getattr(without_weights, section) == getattr(config, section), section
    assert without_weights.parts.keys() == config.parts.keys()
