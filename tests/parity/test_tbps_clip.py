"""TBPS-CLIP against golden values of its released code (`weights.py` holds the rule behind them)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch
import weights as rule
from golden import Golden
from torch import Tensor, nn

from cskt import losses
from cskt.config import RunConfig, load_config
from cskt.data.tokenizer import Tokenizer, without_punctuation
from cskt.losses import LossInputs, build_losses
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.released.methods import released_name
from cskt.training.objective import ModelInputs, Objective, encode
from cskt.training.optim import build_optimizer, learning_rate

OWN_NAMES = {"ss_loss": "simclr", "nitc_loss": "nitc", "citc_loss": "citc", "ritc_loss": "ritc"}
VIEWS = {"second": 1, "simclr_1": 2, "simclr_2": 3}
"""View -> what is added to the seed of its images."""
STEPS = {"0.0": 0, "0.125": 1, "0.2": 1.6, "0.5": 4}
"""Share of the soft targets -> the step of an epoch of 4 at which it is reached."""
SCALES = {"scale_14": math.log(1 / 0.07), "scale_100": math.log(100), "scale_clamped": 5.0}


def name_of(name: str) -> str:
    """Return the name that a parameter has in a checkpoint of the released code."""
    if name == "logit_scale":
        return name
    if name.startswith("losses.simclr.mlp."):
        return name.replace("losses.simclr.mlp.", "simclr_mlp.")
    name = released_name(name).removeprefix("base_model.")
    return name if name.startswith("visual.") else f"encode_text.{name}"


@dataclass(frozen=True)
class Case:
    golden: Golden
    config: RunConfig
    model: DualEncoder
    objective: Objective

    @classmethod
    def of(cls, recipe: str) -> Case:
        golden, config = Golden.read("tbps_clip_a", image_size=(224, 224)), load_config(recipe)
        model = DualEncoder(golden.architecture, config.method, config.trainable, config.frozen)
        golden.fill(model)
        objective = Objective(config.loss, config.mlm, golden.architecture, num_identities=3)
        objective.initialise(torch.Generator())
        with torch.no_grad():
            for name, parameter in objective.named_parameters():
                drawn = rule.fill(name_of(name), parameter.shape, golden.figures["seed"])
                parameter.copy_(torch.tensor(golden.figures["logit_scale"]) if name == "logit_scale" else drawn)
        return cls(golden, config, model, objective)

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return [*self.model.named_parameters(), *self.objective.named_parameters()]

    def losses(self, step: float) -> dict[str, Tensor]:
        views = {name: self.golden.images(VIEWS[name]) for name in self.objective.views}
        inputs = ModelInputs(self.golden.images(), self.golden.ids("caption_ids"), views=views)
        outputs = encode(self.model, inputs, masked_for_all=False)
        pids = torch.tensor(self.golden.figures["pids"])
        return self.objective(outputs, pids, torch.arange(len(pids)), step=step, steps_per_epoch=4)

    def check(self, found: dict[str, Tensor], expected: dict[str, float]) -> None:
        assert found.keys() == {OWN_NAMES[name] for name in expected}
        for name, value in expected.items():
            own = OWN_NAMES[name]
            assert found[own].item() * self.config.loss.weights[own] == pytest.approx(value, rel=1e-4), name


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of("tbps-clip")


@torch.no_grad()
def test_features(case: Case) -> None:
    image_features, text_features = case.model(case.golden.images(), case.golden.ids("caption_ids"))
    case.golden.check_features(image_features, text_features)
    of_view = case.objective.losses["simclr"].mlp(case.model.image_features(case.golden.images(2)))
    torch.testing.assert_close(of_view, case.golden.tensors["simclr_embedding"], rtol=1e-4, atol=1e-4)


def test_counts(case: Case) -> None:
    parameters = [parameter for _, parameter in case.named_parameters()]
    assert sum(p.numel() for p in parameters) == case.golden.figures["total"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == case.golden.figures["trainable"]


@torch.no_grad()
def test_losses_along_the_ramp(case: Case) -> None:
    for share in case.golden.figures["losses_by_alpha"]:
        case.check(case.losses(STEPS[share]), case.golden.figures["losses_by_alpha"][share])


@torch.no_grad()
def test_losses_of_the_simplified_recipe(case: Case) -> None:
    config = load_config("tbps-clip-simple")
    objective = Objective(config.loss, config.mlm, case.golden.architecture, num_identities=3)
    objective.load_state_dict({"logit_scale": torch.tensor(case.golden.figures["logit_scale"])})
    simple = Case(case.golden, config, case.model, objective)
    simple.check(simple.losses(STEPS["0.5"]), case.golden.figures["losses_simplified_recipe"])


def test_settings_of_the_optimizer(case: Case) -> None:
    settings = case.golden.figures["optimizer"]
    optimizer = build_optimizer(case.named_parameters(), case.config.optim)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {parameter: name_of(name) for name, parameter in case.named_parameters()}
    undecayed = []
    for group in optimizer.param_groups:
        assert group["lr"] == settings["lr"] and list(group["betas"]) == settings["betas"]
        assert group["eps"] == settings["eps"]
        if group["weight_decay"] == 0:
            undecayed += [names[parameter] for parameter in group["params"]]
        else:
            assert group["weight_decay"] == settings["weight_decay"]
    assert sorted(undecayed) == sorted(settings["no_decay"])


def test_rates(case: Case) -> None:
    optim, num_epochs = case.config.optim, case.config.loop.num_epochs
    assert num_epochs == 5
    rates = [learning_rate(e, optim, num_epochs, step=step, num_steps=4) for e in range(5) for step in range(4)]
    assert rates == pytest.approx(case.golden.figures["lr_schedule_5_epochs_of_4_steps"], rel=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("share", ["0.0", "0.2", "0.5"])
def test_losses_of_given_features(scale: str, share: str) -> None:
    golden, config = Golden.read("tbps_clip_a"), load_config("tbps-clip")
    given, expected = golden.tensors, golden.figures["given"][f"{scale},alpha_{share}"]
    objective = Objective(config.loss, config.mlm, golden.architecture, num_identities=3)
    with torch.no_grad():
        objective.logit_scale.fill_(SCALES[scale])
    inputs = LossInputs(
        given["given.image"], given["given.text"], given["given.identities"], views={"second": given["given.image_1"]},
        logit_scale=objective.scale(), step=STEPS[share], steps_per_epoch=4,
    )  # fmt: skip
    ready = build_losses(["nitc", "ritc", "citc"], config.loss)
    found = {name: loss(inputs) for name, loss in ready.items()}
    found["simclr"] = losses.simclr(given["given.view_1"], given["given.view_2"])
    total = losses.weighted_total(found, config.loss.weights)
    total.backward()
    one_view = build_losses("nitc", load_config("tbps-clip-simple").loss)["nitc"](inputs)
    assert {
        "nitc_two_views": found["nitc"].item(), "ritc": found["ritc"].item(), "citc": found["citc"].item(),
        "simclr": found["simclr"].item(), "nitc_one_view": one_view.item(), "weighted_sum": total.item(),
        "logit_scale_gradient_of_weighted_sum": objective.logit_scale.grad.item(),
    } == pytest.approx(expected, rel=1e-5)  # fmt: skip


def test_captions_are_cleaned_and_encoded_alike() -> None:
    golden = Golden.read("tbps_clip_a", image_size=(224, 224))
    captions = golden.figures["captions"]
    assert [without_punctuation(caption) for caption in captions] == golden.figures["cleaned_captions"]
    encode_captions = Tokenizer(77, clean_captions=load_config("tbps-clip").data.clean_captions)
    assert torch.equal(encode_captions(captions, pad_to_context=True), golden.ids("caption_ids"))


def test_gradients_and_one_step(case: Case) -> None:
    """The last test here, since its step changes the weights of the case."""
    figures = case.golden.figures
    found = case.losses(STEPS["0.5"])
    case.check(found, figures["losses"])
    losses.weighted_total(found, case.config.loss.weights).backward()
    norms = {name_of(name): p.grad.norm().item() for name, p in case.named_parameters() if p.grad is not None}
    assert norms.keys() == figures["grad_norms"].keys()
    for name, norm in figures["grad_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-3), name
    build_optimizer(case.named_parameters(), case.config.optim).step()
    with torch.no_grad():
        case.check(case.losses(STEPS["0.5"]), figures["losses_after_one_adamw_step"])
