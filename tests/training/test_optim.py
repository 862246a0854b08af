"""Parameter groups and learning rates: golden schedules, closed forms, and who learns how fast."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from cskt.config import AdapterConfig, LoraConfig, OptimConfig, PromptConfig
from cskt.errors import CsktError
from cskt.model.dual_encoder import DualEncoder
from cskt.training.optim import build_optimizer, learning_rate, parameter_groups, set_learning_rate
from tiny_run import ARCHITECTURE

GOLDEN = json.loads((Path(__file__).parent.parent / "parity" / "lr_schedules.json").read_text())
FIELDS = ("milestones", "gamma", "warmup_factor", "warmup_epochs", "target_lr", "power")
RELEASED = OptimConfig(lr=GOLDEN["base_lr"], **{name: GOLDEN[name] for name in FIELDS})
SCHEDULES = ("cosine", "step", "exp", "linear", "poly", "poly-released")


def rates(num_epochs: int, **changes: object) -> list[float]:
    optim = dataclasses.replace(RELEASED, **changes)
    return [learning_rate(epoch, optim, num_epochs) for epoch in range(num_epochs)]


@pytest.mark.parametrize("released", GOLDEN["lr_by_epoch"])
def test_rates_equal_the_released_code(released: str) -> None:
    ours = rates(GOLDEN["total_epochs"], schedule="poly-released" if released == "poly" else released)
    assert ours == pytest.approx(GOLDEN["lr_by_epoch"][released], rel=1e-12, abs=0)


def test_poly_decays_while_the_released_schedule_rises_again() -> None:
    usual, released = (rates(60, schedule=name)[5:] for name in ("poly", "poly-released"))
    assert usual == sorted(usual, reverse=True)
    assert usual[11] == pytest.approx(3e-4 * (1 - 11 / 55) ** 0.9)
    assert released == sorted(released)


@pytest.mark.parametrize(("schedule", "halfway"), [("cosine", 5.5e-4), ("poly", 1e-4 + 9e-4 * 0.5**2)])
def test_the_rate_ends_at_target_lr(schedule: str, halfway: float) -> None:
    run = rates(1000, schedule=schedule, lr=1e-3, target_lr=1e-4, power=2.0, warmup_epochs=0)
    assert run[0] == pytest.approx(1e-3)
    assert run[500] == pytest.approx(halfway)
    assert run[-1] == pytest.approx(1e-4, rel=0.01)


def test_step_passes_milestones_in_any_order() -> None:
    run = rates(8, schedule="step", milestones=(6, 3), gamma=0.5, lr=8.0, warmup_epochs=0)
    assert run == [8, 8, 8, 4, 4, 4, 2, 2]


def test_constant_warm_up_waits_and_linear_warm_up_rises() -> None:
    assert rates(5, warmup_method="constant", lr=1.0, warmup_epochs=3)[:4] == pytest.approx([0.1, 0.1, 0.1, 1.0])
    assert rates(5, warmup_method="linear", lr=1.0, warmup_epochs=3)[:4] == pytest.approx([0.1, 0.4, 0.7, 1.0])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("num_epochs", "warmup_epochs"), [(1, 0), (1, 5), (3, 5), (5, 5), (6, 5)])
def test_short_runs_have_finite_rates(schedule: str, num_epochs: int, warmup_epochs: int) -> None:
    run = rates(num_epochs, schedule=schedule, warmup_epochs=warmup_epochs)
    warm_up = [0.1 * (1 - epoch / 5) + epoch / 5 for epoch in range(min(num_epochs, warmup_epochs))]
    assert run[: len(warm_up)] == pytest.approx([3e-4 * share for share in warm_up])
    assert all(0 < rate <= 3e-4 for rate in run)


@pytest.mark.parametrize("epoch_index", [-1, 60])
def test_an_epoch_outside_the_run_is_refused(epoch_index: int) -> None:
    with pytest.raises(CsktError, match="outside a run of 60; raise num_epochs"):
        learning_rate(epoch_index, RELEASED, 60)


# name -> (rate relative to the base rate, weight decay); the config below makes every factor a number of its own
ASSIGNMENT = {
    "prompts.text.0": (1.0, 0.5),
    "adapters.3.down.weight": (1.0, 0.5),
    "adapters.3.down.bias": (2.0, 0.25),
    "visual.attn.in_proj_bias": (2.0, 0.25),
    "cross_attention.in_proj_weight": (7.0, 0.5),
    "interaction.cross_block.0.weight": (7.0, 0.5),
    "cross_attention.in_proj_bias": (2.0, 0.25),
    "classifier.weight": (7.0, 0.5),
    "classifier.bias": (7.0, 0.25),
    "mlm_head.fc.weight": (7.0, 0.5),
    "mlm_head.fc.bias": (7.0, 0.25),
}
DISTINCT = OptimConfig(
    lr=1e-2, bias_lr_factor=2.0, head_lr_factor=7.0, weight_decay=0.5, weight_decay_bias=0.25, eps=1e-3
)


def make_parameters(names: list[str]) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(3, generator=generator)) for name in names}


def test_rate_and_decay_follow_from_the_name() -> None:
    parameters = make_parameters(list(ASSIGNMENT))
    groups = parameter_groups(parameters.items(), DISTINCT)
    found = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in groups
        for name, parameter in parameters.items()
        if any(parameter is member for member in group["params"])
    }
    assert found == ASSIGNMENT
    assert all(group["lr"] == pytest.approx(1e-2 * group["lr_scale"]) for group in groups)


def test_equal_rates_and_decays_share_one_group_in_a_stable_order() -> None:
    groups = parameter_groups(make_parameters(list(ASSIGNMENT)).items(), DISTINCT)
    keys = [(group["lr_scale"], group["weight_decay"]) for group in groups]
    assert keys == [(1.0, 0.5), (2.0, 0.25), (7.0, 0.5), (7.0, 0.25)]
    assert sum(len(group["params"]) for group in groups) == len(ASSIGNMENT)
    flat = dataclasses.replace(DISTINCT, bias_lr_factor=1.0, head_lr_factor=1.0, weight_decay_bias=0.5)
    assert len(parameter_groups(make_parameters(list(ASSIGNMENT)).items(), flat)) == 1


def test_embedding_heads_learn_at_the_rate_of_heads() -> None:
    parameters = make_parameters(["parts.tokens.mlp.bias", "parts.tokens2.weight"])
    head, other = parameter_groups(parameters.items(), DISTINCT, ["parts.tokens."])
    assert (head["lr_scale"], head["weight_decay"]) == (7.0, 0.25)
    assert (other["lr_scale"], other["weight_decay"]) == (1.0, 0.5)


def test_frozen_parameters_are_in_no_group() -> None:
    parameters = make_parameters(["prompts", "visual.proj"])
    parameters["visual.proj"].requires_grad_(False)
    (group,) = parameter_groups(parameters.items(), DISTINCT)
    assert [id(member) for member in group["params"]] == [id(parameters["prompts"])]


def test_without_parameters_the_optimizer_does_nothing() -> None:
    optimizer = build_optimizer([], DISTINCT)
    assert [group["params"] for group in optimizer.param_groups] == [[]]
    set_learning_rate(optimizer, 1e-3)
    optimizer.step()


def test_nothing_to_train_is_refused() -> None:
    parameters = make_parameters(["visual.proj"])
    parameters["visual.proj"].requires_grad_(False)
    with pytest.raises(CsktError, match="set trainable to"):
        build_optimizer(parameters.items(), DISTINCT)


def take_step(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def first_step(name: str, value: float, gradient: float, rate: float, decay: float) -> float:
    """The closed form of one step from rest, with eps 1e-3."""
    if name == "adamw":
        return value * (1 - rate * decay) - rate * gradient / (abs(gradient) + 1e-3)
    gradient += decay * value
    return value - rate * (gradient / (abs(gradient) + 1e-3) if name == "adam" else gradient)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_first_step_has_its_closed_form(name: str) -> None:
    parameters = make_parameters(list(ASSIGNMENT))
    before = {key: parameter.tolist() for key, parameter in parameters.items()}
    optimizer = build_optimizer(parameters.items(), dataclasses.replace(DISTINCT, name=name))
    set_learning_rate(optimizer, 1e-3)
    take_step(optimizer, parameters, seed=1)
    for key, parameter in parameters.items():
        scale, decay = ASSIGNMENT[key]
        expected = [
            first_step(name, value, gradient, 1e-3 * scale, decay)
            for value, gradient in zip(before[key], parameter.grad.tolist(), strict=True)
        ]
        assert parameter.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_moments_follow_the_config(name: str) -> None:
    """A constant gradient: the second step of sgd is (1 + momentum) long; Adam's depends on both betas."""
    parameter = nn.Parameter(torch.zeros(1))
    optim = OptimConfig(name=name, lr=1.0, beta1=0.5, beta2=0.75, eps=1e-3, momentum=0.25, weight_decay=0.0)
    optimizer = build_optimizer([("w", parameter)], optim)
    steps = []
    for gradient in (1.0, 3.0):
        parameter.grad = torch.tensor([gradient])
        before = parameter.item()
        optimizer.step()
        steps.append(before - parameter.item())
    if name == "sgd":
        assert steps == pytest.approx([1.0, 3.25])
    else:
        first, second = (0.5 * 0.5 + 0.5 * 3) / 0.75, (0.75 * 0.25 + 0.25 * 9) / (1 - 0.75**2)
        assert steps == pytest.approx([1 / 1.001, first / (math.sqrt(second) + 1e-3)])


def test_set_learning_rate_keeps_the_proportions() -> None:
    optimizer = build_optimizer(make_parameters(list(ASSIGNMENT)).items(), DISTINCT)
    set_learning_rate(optimizer, 3e-4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([3e-4, 6e-4, 21e-4, 21e-4])
    set_learning_rate(optimizer, 0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0] * 4


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_resumed_optimizer_is_bit_exact(name: str, tmp_path: Path) -> None:
    optim = dataclasses.replace(DISTINCT, name=name)
    straight = make_parameters(list(ASSIGNMENT))
    optimizer = build_optimizer(straight.items(), optim)
    set_learning_rate(optimizer, 5e-3)
    take_step(optimizer, straight, seed=1)
    torch.save({"weights": straight, "optimizer": optimizer.state_dict()}, tmp_path / "last.pt")
    saved = torch.load(tmp_path / "last.pt", weights_only=True)

    resumed = saved["weights"]
    other_rates = dataclasses.replace(optim, lr=1.0, head_lr_factor=3.0)
    again = build_optimizer(resumed.items(), other_rates)
    again.load_state_dict(saved["optimizer"])
    for each, parameters in ((optimizer, straight), (again, resumed)):
        take_step(each, parameters, seed=2)
        set_learning_rate(each, 1e-3)
        take_step(each, parameters, seed=3)
    assert all(torch.equal(straight[key], resumed[key]) for key in ASSIGNMENT)


# --- rates by place in a tower


def rates_by_name(model: nn.Module, optim: OptimConfig) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model.named_parameters(), optim)
    return {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}


def whole_clip() -> DualEncoder:
    """Every parameter trains; the towers differ in depth."""
    sizes = dataclasses.replace(ARCHITECTURE, vision_layers=3, vocab_size=20)
    prompts, adapters = PromptConfig(depth=2, length=1), AdapterConfig()
    return DualEncoder(
        sizes, {"prompts": prompts, "adapters": adapters, "lora": LoraConfig(sides="both")}, trainable="all"
    )


def test_lower_blocks_learn_more_slowly() -> None:
    found = rates_by_name(whole_clip(), OptimConfig(layer_decay=0.5, bias_lr_factor=2.0))
    expected = {
        "vision.blocks.2.mlp.c_fc.weight": 1.0, "vision.blocks.1.mlp.c_fc.weight": 0.5,
        "vision.blocks.0.mlp.c_fc.weight": 0.25, "vision.blocks.0.attn.in_proj.bias": 2 * 0.25,
        "vision.conv1.weight": 0.125, "vision.class_embedding": 0.125, "vision.positional_embedding": 0.125,
        "vision.ln_pre.weight": 0.125, "vision.ln_pre.bias": 2 * 0.125, "vision.ln_post.weight": 1.0,
        "vision.proj": 1.0, "text.blocks.1.ln_1.weight": 1.0, "text.blocks.0.ln_1.weight": 0.5,
        "text.token_embedding.weight": 0.25, "text.positional_embedding": 0.25, "text.ln_final.bias": 2.0,
        "text.proj": 1.0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    added = {name: rate for name, rate in found.items() if not name.startswith(("vision.", "text."))}
    assert added and all(rate == (2.0 if "bias" in name else 1.0) for name, rate in added.items())


def test_every_block_falls_by_the_same_factor() -> None:
    plain, decayed = (rates_by_name(whole_clip(), OptimConfig(layer_decay=decay)) for decay in (1.0, 0.8))
    for side, layers in (("vision", 3), ("text", 2)):
        for index in range(layers):
            names = [name for name in plain if name.startswith(f"{side}.blocks.{index}.")]
            assert len(names) == 12
            for name in names:
                assert decayed[name] == pytest.approx(plain[name] * 0.8 ** (layers - 1 - index)), name
    assert set(plain.values()) == {1.0, OptimConfig().bias_lr_factor}, "no decay by default"


class OnCuda(nn.Parameter):
    """Parameter that says that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(("name", "expected"), [("adam", True), ("adamw", True), ("sgd", None)])
def test_sgd_is_not_fused(name: str, expected: bool | None) -> None:
    """Its fused momentum is uninitialised memory if a GradScaler skips the first step."""
    optimizer = build_optimizer([("weight", OnCuda(torch.ones(3)))], OptimConfig(name=name))  # type: ignore[arg-type]
    assert {group["fused"] for group in optimizer.param_groups} == {expected}
