"""The names and numbers of parameters that an export for the released programs has, against their golden cases."""

from __future__ import annotations

import pytest
import torch
import weights as rule
from golden import Golden
from released_folders import released_tensors as released_checkpoint

from cskt.config import AdapterConfig, ClipArchitecture, LossConfig, MlmConfig, PromptConfig, load_config
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.released.methods import METHODS, released_name
from cskt.model.io.released.writer import check_expressible, method_for, released_tensors
from cskt.training.objective import Objective
from cskt.utils.modules import named_tensors


@pytest.mark.parametrize("case", ["cskt_a", "cskt_b", "irra_a"])
def test_an_export_has_the_names_of_the_released_checkpoint(case: str) -> None:
    golden = Golden.read(case)
    figures, is_cskt = golden.figures, case.startswith("cskt")
    method = {}
    if is_cskt:
        prompts = PromptConfig(depth=figures["depth"], length=figures["n_ctx"])
        method = {"prompts": prompts, "adapters": AdapterConfig()}
    losses = {name.removesuffix("_loss"): 1.0 for name in figures["losses"]}
    with torch.device("meta"):
        model = DualEncoder(golden.architecture, method)
        mlm = MlmConfig(cmt_depth=figures.get("cmt_depth", 4))
        objective = Objective(LossConfig(weights=losses), mlm, golden.architecture, 10)
    named = [*model.named_parameters(), *objective.named_parameters()]
    backbone = {f"base_model.{name}" for name in rule.openai_clip_shapes(**golden.layers)} - {"base_model.logit_scale"}
    assert {released_name(name) for name, _ in named} == backbone | figures["grad_norms"].keys()
    assert sum(value.numel() for _, value in named) == figures["total"]


@pytest.mark.parametrize("recipe", ["rde", "up-person", "dm-adapter", "tbps-clip", "tbps-clip-simple"])
def test_an_export_has_every_tensor_of_the_released_checkpoint(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unused ones too, and those with two names: the released codes load strictly."""
    monkeypatch.setattr(rule, "fill", lambda _, shape, __: torch.empty(shape))  # names and shapes alone
    method = recipe.removesuffix("-simple").replace("-", "_")
    golden = Golden.read(f"{method}_a", (224, 224) if method == "tbps_clip" else (384, 128))
    stated = {key: golden.figures[key] for key in METHODS[method].flags if key in golden.figures}
    parts = {part: stated for part in METHODS[method].parts if method != "rde"}
    config = load_config(recipe, {"parts": parts})
    images = {key: value for key in ("image_mean", "image_std") if (value := getattr(config.backbone, key))}
    architecture = ClipArchitecture(**vars(golden.architecture) | images)
    assert method_for(config) is METHODS[method]
    check_expressible(config, architecture)
    with torch.device("meta"):
        tensors = named_tensors(DualEncoder(architecture, config.method))
        tensors |= named_tensors(Objective(config.loss, config.mlm, architecture, 10))
    found = released_tensors(METHODS[method], architecture, tensors)
    expected = released_checkpoint(method, golden)
    if recipe == "tbps-clip-simple":
        expected = {name: value for name, value in expected.items() if not name.startswith("simclr_mlp.")}
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        name: (value.shape, value.dtype) for name, value in expected.items()
    }
