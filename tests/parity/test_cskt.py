"""CSKT against golden values of an independent implementation (`weights.py` holds the rule behind them)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import weights as rule
from safetensors.torch import load_file
from torch import Tensor, nn

from cskt import losses
from cskt.config import AdapterConfig, ClipArchitecture, OptimConfig, PromptConfig
from cskt.model.dual_encoder import DualEncoder
from cskt.model.layouts import OPENAI
from cskt.model.names import released_name
from cskt.model.weights import gather, load_state, resize_positions, tower_shapes
from cskt.train.optim import build_optimizer

HERE = Path(__file__).parent
OUR_LOSSES = {"sdm_loss": "sdm", "itc_loss": "itc", "cmpm_loss": "cmpm", "triplet_loss": "triplet", "id_loss": "id"}


@dataclass(frozen=True)
class Case:
    golden: dict[str, Any]
    tensors: dict[str, Tensor]
    model: DualEncoder
    classifier: nn.Linear | None

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        head = [] if self.classifier is None else self.classifier.named_parameters()
        return [*self.model.named_parameters(), *((f"classifier.{name}", parameter) for name, parameter in head)]

    def features(self) -> tuple[Tensor, Tensor]:
        images = rule.images(self.golden["seed"], len(self.golden["pids"]))
        return self.model(images, self.tensors["caption_ids"].long())

    def losses(self) -> dict[str, Tensor]:
        image_features, text_features = self.features()
        inputs = losses.LossInputs(
            image_features,
            text_features,
            torch.tensor(self.golden["pids"]),
            image_logits=None if self.classifier is None else self.classifier(image_features),
            text_logits=None if self.classifier is None else self.classifier(text_features),
            temperature=self.golden["temperature"],
        )
        names = {OUR_LOSSES[name]: 1.0 for name in self.golden["losses"]}
        return losses.compute(inputs, names)


@pytest.fixture(params=["cskt_a", "cskt_b"])
def case(request: pytest.FixtureRequest) -> Case:
    golden = json.loads((HERE / f"{request.param}.json").read_text(encoding="utf-8"))
    tensors = load_file(HERE / f"{request.param}.safetensors")
    seed, layers = golden["seed"], {key: golden[key] for key in ("vision_layers", "text_layers")}
    square = ClipArchitecture(**layers)
    architecture = ClipArchitecture(**layers, image_height=384, image_width=128)
    model = DualEncoder(architecture, PromptConfig(depth=golden["depth"], length=golden["n_ctx"]), AdapterConfig())
    state = gather(rule.clip_state_dict(seed, **layers), tower_shapes(square), OPENAI, origin="the rule")
    name = "vision.positional_embedding"
    state[name] = resize_positions(state[name], square.grid, architecture.grid)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            state[name] = rule.fill(released_name(name), parameter.shape, seed)
    load_state(model, state, origin="the rule", prefixes=("",))
    classifier = None
    if "id_loss" in golden["losses"]:
        classifier = nn.Linear(512, 10)
        weights = {leaf: rule.fill(f"classifier.{leaf}", p.shape, seed) for leaf, p in classifier.named_parameters()}
        classifier.load_state_dict(weights)
    return Case(golden, tensors, model, classifier)


@torch.no_grad()
def test_features_and_untouched_ids(case: Case) -> None:
    before = case.tensors["caption_ids"].clone()
    image_features, text_features = case.features()
    assert torch.equal(case.tensors["caption_ids"], before)
    torch.testing.assert_close(image_features, case.tensors["image_features"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(text_features, case.tensors["text_features"], rtol=1e-4, atol=1e-4)


def test_captions_are_spliced_alike(case: Case) -> None:
    spliced, caption_ids = case.tensors["spliced_ids"].long(), case.tensors["caption_ids"].long()
    num_slots = 2 * case.golden["n_ctx"]
    placed = case.model.text.place(caption_ids, num_slots)
    assert case.model.prompts.num_text_slots == num_slots
    assert torch.equal(placed.ids[:, :1], spliced[:, :1])
    assert torch.equal(placed.ids[:, 1 + num_slots :], spliced[:, 1 + num_slots :])
    assert torch.equal(placed.end_positions, spliced.argmax(dim=1))
    assert not placed.ids[:, 1 : 1 + num_slots].any()


def test_parameter_counts(case: Case) -> None:
    head = 0 if case.classifier is None else sum(p.numel() for p in case.classifier.parameters())
    assert case.model.num_parameters(trainable_only=True) + head == case.golden["trainable"]
    assert case.model.num_parameters() + head == case.golden["total"]


def test_losses_gradients_and_one_step(case: Case) -> None:
    golden = case.golden
    frozen = {name: p.detach().clone() for name, p in case.named_parameters() if not p.requires_grad}
    found = case.losses()
    for name, value in golden["losses"].items():
        assert found[OUR_LOSSES[name]].item() == pytest.approx(value, rel=1e-4), name
    settings = golden["optimizer"]
    optim = OptimConfig(
        name="adam", lr=settings["lr"], beta1=settings["betas"][0], beta2=settings["betas"][1], eps=settings["eps"],
        weight_decay=settings["weight_decay"], bias_lr_factor=settings["bias_lr_factor"],
    )  # fmt: skip
    optimizer = build_optimizer(case.named_parameters(), optim)
    losses.total(found, dict.fromkeys(found, 1.0)).backward()
    norms = {released_name(name): p.grad.norm().item() for name, p in case.named_parameters() if p.grad is not None}
    assert norms.keys() == golden["grad_norms"].keys()
    for name, norm in golden["grad_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    optimizer.step()
    with torch.no_grad():
        after = case.losses()
    for name, value in golden["losses_after_one_adam_step"].items():
        assert after[OUR_LOSSES[name]].item() == pytest.approx(value, rel=1e-4), name
    assert all(torch.equal(p, frozen[name]) for name, p in case.named_parameters() if name in frozen)


def test_the_published_model_has_the_published_size() -> None:
    with torch.device("meta"):
        model = DualEncoder(ClipArchitecture(image_height=384, image_width=128), PromptConfig(), AdapterConfig())
    assert model.num_parameters(trainable_only=True) == 12_117_888
    assert model.num_parameters() == 161_735_552
