"""The weighted losses of a batch and the classifier of the id loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cskt import losses
from cskt.config import LossConfig
from cskt.train.objective import Objective

PIDS = torch.tensor([0, 1, 1, 3])


def features(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def ready(config: LossConfig, seed: int = 0) -> Objective:
    objective = Objective(config, embed_dim=8, num_identities=5)
    objective.initialise(torch.Generator().manual_seed(seed))
    return objective


def test_losses_are_those_of_the_pure_functions_with_the_configs_constants() -> None:
    config = LossConfig(weights={"sdm": 1.0, "itc": 0.5, "triplet": 2.0, "cmpm": 0.0}, temperature=0.1, margin=0.3)
    found = ready(config)(features(0), features(1), PIDS)
    expected = {
        "sdm": losses.sdm(features(0), features(1), PIDS, temperature=0.1),
        "itc": losses.itc(features(0), features(1), temperature=0.1),
        "triplet": losses.triplet(features(0), features(1), margin=0.3),
        "cmpm": losses.cmpm(features(0), features(1), PIDS),
    }
    assert {name: value.item() for name, value in found.items()} == {k: v.item() for k, v in expected.items()}


def test_only_the_id_loss_brings_parameters() -> None:
    assert list(ready(LossConfig(weights={"sdm": 1.0, "triplet": 1.0})).parameters()) == []
    named = dict(ready(LossConfig(weights={"sdm": 1.0, "id": 1.0})).named_parameters())
    assert {name: tuple(value.shape) for name, value in named.items()} == {
        "classifier.weight": (5, 8),
        "classifier.bias": (5,),
    }


def test_one_classifier_reads_both_sides() -> None:
    objective = ready(LossConfig(weights={"id": 1.0}))
    assert objective.classifier is not None
    with torch.no_grad():
        objective.classifier.weight.normal_(generator=torch.Generator().manual_seed(5))
    logits = [side @ objective.classifier.weight.T + objective.classifier.bias for side in (features(0), features(1))]
    expected = sum(torch.nn.functional.cross_entropy(side, PIDS) for side in logits) / 2
    assert objective(features(0), features(1), PIDS)["id"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_classifier_starts_near_zero_by_its_generator() -> None:
    config = LossConfig(weights={"id": 1.0})
    first, second, other = ready(config, 3).classifier, ready(config, 3).classifier, ready(config, 4).classifier
    assert first is not None and second is not None and other is not None
    assert torch.equal(first.weight, second.weight) and not torch.equal(first.weight, other.weight)
    assert 0 < first.weight.std() < 0.002 and not first.bias.any()
    loss = ready(config)(features(0), features(1), PIDS)["id"]
    assert loss.item() == pytest.approx(math.log(5), abs=0.01), "all people are equally likely"


def test_half_precision_features_give_float32_losses() -> None:
    config = LossConfig(weights={"sdm": 1.0, "itc": 1.0})
    rounded = ready(config)(features(0, torch.bfloat16), features(1, torch.bfloat16), PIDS)
    expected = ready(config)(features(0, torch.bfloat16).float(), features(1, torch.bfloat16).float(), PIDS)
    for name, value in rounded.items():
        assert value.dtype == torch.float32 and torch.equal(value, expected[name])
