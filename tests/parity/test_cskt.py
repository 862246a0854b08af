"""CSKT against golden values of an independent implementation (`weights.py` holds the rule behind them)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import weights as rule
from golden import Golden, check_losses
from torch import Tensor, nn

from cskt import losses
from cskt.config import AdapterConfig, ClipArchitecture, LossConfig, OptimConfig, PromptConfig
from cskt.model.dual_encoder import DualEncoder
from cskt.training.optim import build_optimizer


@dataclass(frozen=True)
class Case:
    golden: Golden
    model: DualEncoder
    classifier: nn.Linear | None

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        head = [] if self.classifier is None else self.classifier.named_parameters()
        return [*self.model.named_parameters(), *((f"classifier.{name}", parameter) for name, parameter in head)]

    def features(self) -> tuple[Tensor, Tensor]:
        return self.model(self.golden.images(), self.golden.ids("caption_ids"))

    def losses(self) -> dict[str, Tensor]:
        image_features, text_features = self.features()
        figures = self.golden.figures
        pids = torch.tensor(figures["pids"])
        inputs = losses.LossInputs(
            image_features,
            text_features,
            pids,
            image_logits=None if self.classifier is None else self.classifier(image_features),
            text_logits=None if self.classifier is None else self.classifier(text_features),
            id_labels=pids,
        )
        settings = LossConfig(temperature=figures["temperature"])
        named = losses.build_losses([name.removesuffix("_loss") for name in figures["losses"]], settings)
        return {name: loss(inputs) for name, loss in named.items()}


@pytest.fixture(params=["cskt_a", "cskt_b"])
def case(request: pytest.FixtureRequest) -> Case:
    golden = Golden.read(request.param)
    prompts = PromptConfig(depth=golden.figures["depth"], length=golden.figures["n_ctx"])
    model = DualEncoder(golden.architecture, {"prompts": prompts, "adapters": AdapterConfig()})
    golden.fill(model)
    classifier = None
    if "id_loss" in golden.figures["losses"]:
        classifier = nn.Linear(512, 10)
        seed = golden.figures["seed"]
        weights = {leaf: rule.fill(f"classifier.{leaf}", p.shape, seed) for leaf, p in classifier.named_parameters()}
        classifier.load_state_dict(weights)
    return Case(golden, model, classifier)


@torch.no_grad()
def test_features_and_untouched_ids(case: Case) -> None:
    before = case.golden.tensors["caption_ids"].clone()
    caption_ids = before.long()
    image_features, text_features = case.model(case.golden.images(), caption_ids)
    assert torch.equal(caption_ids, before.long())
    case.golden.check_features(image_features, text_features)


def test_captions_are_spliced_alike(case: Case) -> None:
    spliced, caption_ids = case.golden.ids("spliced_ids"), case.golden.ids("caption_ids")
    num_slots = 2 * case.golden.figures["n_ctx"]
    placed = case.model.text.place(caption_ids, num_slots)
    assert case.model.num_text_slots == num_slots
    assert torch.equal(placed.ids[:, :1], spliced[:, :1])
    assert torch.equal(placed.ids[:, 1 + num_slots :], spliced[:, 1 + num_slots :])
    assert torch.equal(placed.end_positions, spliced.argmax(dim=1))
    assert not placed.ids[:, 1 : 1 + num_slots].any()


def test_parameter_counts(case: Case) -> None:
    head = 0 if case.classifier is None else sum(p.numel() for p in case.classifier.parameters())
    assert case.model.num_parameters(trainable_only=True) + head == case.golden.figures["trainable"]
    assert case.model.num_parameters() + head == case.golden.figures["total"]


def test_losses_gradients_and_one_step(case: Case) -> None:
    figures = case.golden.figures
    frozen = {name: p.detach().clone() for name, p in case.named_parameters() if not p.requires_grad}
    found = case.losses()
    check_losses(found, figures["losses"])
    settings = figures["optimizer"]
    optim = OptimConfig(
        name="adam", lr=settings["lr"], beta1=settings["betas"][0], beta2=settings["betas"][1], eps=settings["eps"],
        weight_decay=settings["weight_decay"], bias_lr_factor=settings["bias_lr_factor"],
    )  # fmt: skip
    optimizer = build_optimizer(case.named_parameters(), optim)
    losses.weighted_total(found, dict.fromkeys(found, 1.0)).backward()
    case.golden.check_gradients(case.named_parameters())
    optimizer.step()
    with torch.no_grad():
        check_losses(case.losses(), figures["losses_after_one_adam_step"])
    assert all(torch.equal(p, frozen[name]) for name, p in case.named_parameters() if name in frozen)


def test_the_published_model_has_the_published_size() -> None:
    with torch.device("meta"):
        model = DualEncoder(
            ClipArchitecture(image_height=384, image_width=128),
            {"prompts": PromptConfig(), "adapters": AdapterConfig()},
        )
    assert model.num_parameters(trainable_only=True) == 12_117_888
    assert model.num_parameters() == 161_735_552
