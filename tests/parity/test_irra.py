"""IRRA against golden values of an independent implementation (`weights.py` holds the rule behind them)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from golden import Golden, check_losses
from torch import Tensor, nn

from cskt import losses
from cskt.config import LossConfig, MlmConfig
from cskt.data.masking import MASK_ID, MaskedCaptions
from cskt.model.dual_encoder import DualEncoder
from cskt.training.objective import ModelInputs, ModelOutputs, Objective, encode

NUM_IDENTITIES = 10


@dataclass(frozen=True)
class Case:
    golden: Golden
    model: DualEncoder
    objective: Objective
    outputs: ModelOutputs

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [*self.model.named_parameters(), *self.objective.named_parameters()]

    def losses(self) -> dict[str, Tensor]:
        pids = torch.tensor(self.golden.figures["pids"])
        return self.objective(self.outputs, pids, image_ids=torch.arange(len(pids)))


@pytest.fixture(scope="module")
def case() -> Case:
    golden = Golden.read("irra_a")
    weights = {name.removesuffix("_loss"): 1.0 for name in golden.figures["losses"]}
    config = LossConfig(weights=weights, temperature=golden.figures["temperature"])
    mlm = MlmConfig(cmt_depth=golden.figures["cmt_depth"])
    model = DualEncoder(golden.architecture, trainable="all")
    objective = Objective(config, mlm, golden.architecture, NUM_IDENTITIES)
    golden.fill(model)
    golden.fill(objective)
    masked = MaskedCaptions(golden.ids("mlm_ids"), golden.ids("mlm_labels"))
    outputs = encode(model, ModelInputs(golden.images(), golden.ids("caption_ids"), masked), masked_for_all=False)
    return Case(golden, model, objective, outputs)


def test_the_mask_token_is_the_released_one(case: Case) -> None:
    assert case.golden.figures["mask_token_id"] == MASK_ID


def test_features(case: Case) -> None:
    case.golden.check_features(case.outputs.image_features, case.outputs.text_features)


def test_parameter_count(case: Case) -> None:
    assert sum(parameter.numel() for _, parameter in case.named_parameters()) == case.golden.figures["total"]


def test_losses_and_gradients(case: Case) -> None:
    found = case.losses()
    check_losses(found, case.golden.figures["losses"])
    losses.weighted_total(found, dict.fromkeys(found, 1.0)).backward()
    case.golden.check_gradients(case.named_parameters())


@torch.no_grad()
def test_masked_captions_for_all_losses_cost_no_second_pass(case: Case) -> None:
    masked = MaskedCaptions(case.golden.ids("mlm_ids"), case.golden.ids("mlm_labels"))
    shared = encode(
        case.model, ModelInputs(case.golden.images(), case.golden.ids("caption_ids"), masked), masked_for_all=True
    )
    torch.testing.assert_close(shared.text_features, case.model.encode_text(masked.ids), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(shared.text_features, case.outputs.text_features, atol=1e-2)


@torch.no_grad()
def test_only_the_words_asked_for_pass_the_head(case: Case) -> None:
    interaction, outputs = case.objective.interaction, case.outputs
    assert interaction is not None and outputs.text_tokens is not None and outputs.image_tokens is not None
    labels = case.golden.ids("mlm_labels")
    rows: list[int] = []
    watch = interaction.mlm_head.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    found = case.losses()["mlm"]
    everything = interaction(outputs.text_tokens, outputs.image_tokens, torch.arange(labels.numel()))
    watch.remove()
    assert rows == [int((labels != 0).sum()), labels.numel()]
    naive = F.cross_entropy(everything, labels.flatten(), ignore_index=0)
    assert found.item() == pytest.approx(naive.item(), rel=1e-5)
