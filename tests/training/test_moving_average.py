"""Moving average of weights: closed forms, a naive loop, and restored weights."""

import io

import pytest
import torch
from torch import nn

from cskt.errors import CsktError
from cskt.training.state import ExponentialMovingAverage


def make_model(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    model[0].weight.requires_grad_(False)
    return model


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def averages(model: nn.Module, average: ExponentialMovingAverage) -> dict[str, torch.Tensor]:
    with average.applied():
        return values(model)


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def train_steps(
    model: nn.Module, average: ExponentialMovingAverage, num_steps: int, seed: int = 1
) -> list[dict[str, torch.Tensor]]:
    """Random steps of everything that trains, each followed by an update; the weights after each step."""
    generator = torch.Generator().manual_seed(seed)
    history = []
    for _ in range(num_steps):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator))
        average.update()
        history.append(values(model))
    return history


@pytest.mark.parametrize(("decay", "num_steps"), [(0.5, 12), (0.9, 120), (0.9999, 40)])
def test_equals_a_naive_loop(decay: float, num_steps: int) -> None:
    model = make_model()
    expected = {name: tensor.double() for name, tensor in values(model).items()}
    average = ExponentialMovingAverage(model.named_parameters(), decay)
    for t, current in enumerate(train_steps(model, average, num_steps), start=1):
        kept = min(decay, (1 + t) / (10 + t))
        expected = {name: kept * tensor + (1 - kept) * current[name].double() for name, tensor in expected.items()}
    for name, tensor in averages(model, average).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_closed_form_of_a_step_response() -> None:
    """From 0, towards a constant 1: what is missing after n updates is the product of the decays."""
    parameter = nn.Parameter(torch.zeros(2))
    average = ExponentialMovingAverage([("w", parameter)], decay=0.25)
    nn.init.ones_(parameter)
    for _ in range(4):
        average.update()
    with average.applied():  # the ramp gives 2/11, 3/12, 4/13, ...: above the decay from the second on
        torch.testing.assert_close(parameter.detach(), torch.full((2,), 1 - 2 / 11 * 0.25**3))


def test_a_short_run_leaves_its_start_behind() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    average = ExponentialMovingAverage([("w", parameter)], decay=0.9999)
    nn.init.ones_(parameter)
    for _ in range(20):
        average.update()
    with average.applied():
        assert parameter.item() > 0.999


def test_before_an_update_the_average_is_the_start() -> None:
    model = make_model()
    start = values(model)
    average = ExponentialMovingAverage(model.named_parameters(), 0.9)
    nn.init.zeros_(model[1].weight)
    assert_equal(averages(model, average), start)


def test_only_what_trains_is_averaged() -> None:
    model = make_model()
    state = ExponentialMovingAverage(model.named_parameters(), 0.9).state_dict()
    assert state["averages"].keys() == {"0.bias", "1.weight", "1.bias"}
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in state["averages"].values())


def test_applying_restores_the_weights_bit_by_bit() -> None:
    model = make_model()
    average = ExponentialMovingAverage(model.named_parameters(), 0.9)
    train_steps(model, average, 5)
    own, parameters = values(model), list(model.parameters())
    with average.applied():
        assert not torch.equal(model[1].weight, own["1.weight"])
        assert torch.equal(model[0].weight, own["0.weight"]), "frozen"
        assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))
    assert_equal(values(model), own)
    with pytest.raises(RuntimeError, match="in between"), average.applied():
        raise RuntimeError("in between")
    assert_equal(values(model), own)


def test_applying_leaves_the_average_as_it_was() -> None:
    model = make_model()
    average = ExponentialMovingAverage(model.named_parameters(), 0.9)
    train_steps(model, average, 5)
    assert_equal(averages(model, average), averages(model, average))


def test_resuming_is_bit_exact() -> None:
    model = make_model()
    average = ExponentialMovingAverage(model.named_parameters(), 0.9)
    train_steps(model, average, 5)
    file = io.BytesIO()
    torch.save({"weights": values(model), "average": average.state_dict()}, file)
    train_steps(model, average, 5, seed=2)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_model(seed=3)
    resumed.load_state_dict(saved["weights"])
    other = ExponentialMovingAverage(resumed.named_parameters(), 0.9)
    other.load_state_dict(saved["average"])
    train_steps(resumed, other, 5, seed=2)
    assert_equal(averages(resumed, other), averages(model, average))


def test_loaded_averages_are_copies() -> None:
    model, other = make_model(), make_model(seed=1)
    average, copy = (
        ExponentialMovingAverage(model.named_parameters(), 0.9),
        ExponentialMovingAverage(other.named_parameters(), 0.9),
    )
    train_steps(model, average, 2)
    copy.load_state_dict(average.state_dict())
    before = averages(other, copy)
    train_steps(model, average, 2)
    assert_equal(averages(other, copy), before)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_averages_of_other_parameters_are_refused(change: str) -> None:
    model = make_model()
    average = ExponentialMovingAverage(model.named_parameters(), 0.9)
    state = ExponentialMovingAverage(make_model(seed=1).named_parameters(), 0.9).state_dict()
    if change == "missing":
        del state["averages"]["1.bias"]
    else:
        state["averages"]["1.bias" if change == "shape" else "1.scale"] = torch.zeros(7)
    before = averages(model, average)
    name = "1.scale" if change == "unknown" else "1.bias"
    with pytest.raises(CsktError, match=f"moving average of '{name}' .*start a new run"):
        average.load_state_dict(state)
    assert_equal(averages(model, average), before)
