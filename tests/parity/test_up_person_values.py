"""UP-Person against golden values of its released code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import Golden, check_losses, rates_and_decays

from cskt import losses
from cskt.config import LossConfig, OptimConfig, load_config
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import fold_text, fold_vision
from cskt.model.io.released.methods import released_name
from cskt.training.optim import build_optimizer, parameter_groups


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.read("up_person_a")


@pytest.fixture
def model(golden: Golden) -> DualEncoder:
    names = ("prefix_length", "rank", "depth_lora", "depth_prefix", "depth_adapter")
    model = DualEncoder(golden.architecture, {"up_person": {name: golden.figures[name] for name in names}})
    golden.fill(model)
    return model


def loss_of(model: DualEncoder, golden: Golden) -> dict[str, torch.Tensor]:
    features = model(golden.images(), golden.ids("caption_ids"))
    sdm = losses.build_losses("sdm", LossConfig(temperature=golden.figures["temperature"]))["sdm"]
    return {"sdm": sdm(losses.LossInputs(*features, torch.tensor(golden.figures["pids"])))}


@torch.no_grad()
def test_features_also_folded(model: DualEncoder, golden: Golden) -> None:
    images, caption_ids = golden.images(), golden.ids("caption_ids")
    golden.check_features(*model(images, caption_ids))
    golden.check_features(fold_vision(model)(images), fold_text(model)(caption_ids))


def test_names_and_counts(model: DualEncoder, golden: Golden) -> None:
    shapes = {released_name(name): list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert shapes == golden.figures["shapes"]
    assert model.num_parameters(trainable_only=True) == golden.figures["trainable"]
    assert model.num_parameters() == golden.figures["total"]


def test_loss_gradients_and_one_step(model: DualEncoder, golden: Golden) -> None:
    settings: dict[str, Any] = dict(golden.figures["optimizer"])
    settings["beta1"], settings["beta2"] = settings.pop("betas")
    optimizer = build_optimizer(model.named_parameters(), OptimConfig(**settings | {"name": "adam"}))
    found = loss_of(model, golden)
    check_losses(found, golden.figures["losses"])
    found["sdm"].backward()
    golden.check_gradients(model.named_parameters())
    optimizer.step()
    with torch.no_grad():
        check_losses(loss_of(model, golden), golden.figures["losses_after_one_adam_step"])


def test_rate_and_decay_of_every_parameter(model: DualEncoder, golden: Golden) -> None:
    """One rate for all: the released code overwrites the factors that it computes."""
    found = rates_and_decays(model, load_config("up-person").optim)
    assert found == {name: (1e-3, 0.0 if "bias" in name else 4e-5) for name in golden.figures["shapes"]}
    head = torch.nn.Parameter(torch.zeros(2, 2))
    [group] = parameter_groups([("classifier.weight", head)], load_config("up-person").optim)
    assert group["lr"] == 1e-3, "heads of further losses too"
