"""DM-Adapter against golden values of its released code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden import Golden, check_losses, rates_and_decays
from torch import Tensor

from cskt import losses
from cskt.config import LossConfig, MlmConfig, OptimConfig, load_config
from cskt.model.blocks import Observed
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import fold_text, fold_vision
from cskt.model.io.released.methods import released_name, unused_shapes
from cskt.model.parts.base import SIDES
from cskt.training.objective import ModelInputs, Objective, encode
from cskt.training.optim import build_optimizer

WEIGHTS = {"sdm": 1.0, "balance": 0.5}
"""Losses of the released code; its `aux_loss` is the balance with its weight."""


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.read("dm_adapter_a")


@pytest.fixture
def model(golden: Golden) -> DualEncoder:
    settings = {name: golden.figures[name] for name in ("num_experts", "topk", "reduction")}
    model = DualEncoder(golden.architecture, {"dm_adapter": settings})
    golden.fill(model)
    return model


def losses_of(model: DualEncoder, golden: Golden) -> dict[str, Tensor]:
    outputs = encode(model, ModelInputs(golden.images(), golden.ids("caption_ids")), masked_for_all=False)
    objective = Objective(LossConfig(weights=WEIGHTS), MlmConfig(), golden.architecture, 10)
    pids = torch.tensor(golden.figures["pids"])
    return {
        {"balance": "aux"}.get(name, name): WEIGHTS[name] * value
        for name, value in objective(outputs, pids, torch.arange(len(pids))).items()
    }


@torch.no_grad()
def test_features_also_folded(model: DualEncoder, golden: Golden) -> None:
    images, caption_ids = golden.images(), golden.ids("caption_ids")
    golden.check_features(*model(images, caption_ids))
    golden.check_features(fold_vision(model)(images), fold_text(model)(caption_ids))


@torch.no_grad()
def test_logits_of_the_router_chosen_experts_and_balance(model: DualEncoder, golden: Golden) -> None:
    images, caption_ids = golden.images(), golden.ids("caption_ids")
    inputs = {"vision": images, "text": model.place(caption_ids)}
    part = model.parts["dm_adapter"]
    for side in SIDES:
        observed = Observed(needs_records=True)
        model.get_submodule(side)(inputs[side], model.extras(side), observed=observed)
        records = [logits for found in observed.records_by_block for logits in found.values()]
        for block, logits in enumerate(records):
            torch.testing.assert_close(logits, golden.tensors[f"router_logits.{side}.{block}"], rtol=1e-4, atol=1e-5)
            top = logits.topk(golden.figures["topk"] + 1)
            assert torch.equal(top.indices[..., :-1], golden.tensors[f"experts.{side}.{block}"].long())
            gap = (top.values[..., -2] - top.values[..., -1]).min().item()
            assert gap == pytest.approx(golden.figures["smallest_gap_at_the_choice"][side][block], abs=1e-6)
        routing = part.outputs(side, records, torch.ones(()))["routing"]
        found = [losses.balance(routing[:, [block]]).item() for block in range(len(records))]
        assert found == pytest.approx(golden.figures["balance_by_block"][side], rel=1e-5)


def test_names_and_counts_as_used_and_as_released(model: DualEncoder, golden: Golden) -> None:
    used = {released_name(name): list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    unused = {name: list(shape) for name, shape in unused_shapes("dm_adapter", golden.architecture).items()}
    assert used | unused == golden.figures["shapes"] and list(unused) == golden.figures["no_gradient"]
    more = sum(torch.Size(shape).numel() for shape in unused.values())
    assert model.num_parameters(trainable_only=True) + more == golden.figures["trainable"]
    assert model.num_parameters() + more == golden.figures["total"]


def test_losses_gradients_and_one_step(model: DualEncoder, golden: Golden) -> None:
    settings: dict[str, Any] = dict(golden.figures["optimizer"])
    settings["beta1"], settings["beta2"] = settings.pop("betas")
    optimizer = build_optimizer(model.named_parameters(), OptimConfig(**settings | {"name": "adam"}))
    found = losses_of(model, golden)
    check_losses(found, golden.figures["losses"])
    torch.stack(list(found.values())).sum().backward()
    golden.check_gradients(model.named_parameters())
    unchosen = [name for name, norm in golden.figures["grad_norms"].items() if norm == 0]
    assert len(unchosen) > 20, "gradients of experts that compute no token are zero, not absent: they decay"
    optimizer.step()
    with torch.no_grad():
        check_losses(losses_of(model, golden), golden.figures["losses_after_one_adam_step"])


def test_rate_and_decay_of_every_parameter(model: DualEncoder, golden: Golden) -> None:
    found = rates_and_decays(model, load_config("dm-adapter").optim)
    used = golden.figures["shapes"].keys() - set(golden.figures["no_gradient"])
    assert found == {name: (6e-4, 0.0) if "bias" in name else (3e-4, 4e-5) for name in used}
