"""`last.pt`: what it brings back, and what it is refused for."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cskt.config import ClipArchitecture, LossConfig, MlmConfig, OptimConfig, RunConfig, load_config, to_dict
from cskt.errors import CsktError
from cskt.model.io.tensors import load_plain
from cskt.training.checkpoint import (
    FREE_ON_RESUME,
    config_differences,
    load_last,
    save_last,
    set_aside,
)  # fmt: skip
from cskt.training.objective import ModelOutputs, Objective
from cskt.training.optim import build_optimizer
from cskt.training.state import ExponentialMovingAverage, Progress, TrainState, trainable_state
from pickled_trap import Trap

CONFIG = load_config("cskt")
NARROW = ClipArchitecture(embed_dim=4)
PROGRESS = Progress(epoch=3, step=7, total_steps=100, best_r1=0.25, best_epoch=2, seconds=12.5)


def make_state(seed: int = 0, num_identities: int = 5, backbone: str = "a" * 64, data: str = "d" * 64) -> TrainState:
    """A frozen and a trained layer, a classifier, and an Adam that has taken a step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4))
    objective = Objective(LossConfig(weights={"id": 1.0}), MlmConfig(), NARROW, num_identities)
    named = [*model.named_parameters(), *objective.named_parameters()]
    optimizer = build_optimizer(named, OptimConfig())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**seed)
    ema = ExponentialMovingAverage(model.named_parameters(), decay=0.9)
    state = TrainState(model, objective, optimizer, scaler, ema, backbone, data)  # type: ignore[arg-type]
    features = model(torch.randn(3, 4))
    pids = torch.tensor([0, 1, 2])
    loss = objective(ModelOutputs(features, features), pids, pids)["id"]
    torch.autograd.backward(scaler.scale(loss))
    scaler.step(optimizer)
    scaler.update()
    ema.update()
    return state


def save(path: Path, state: TrainState, progress: Progress = PROGRESS) -> None:
    save_last(path, replace(state, progress=progress), CONFIG)


def load(path: Path, state: TrainState) -> tuple[Progress, Path]:
    """Load a checkpoint; return the progress and the file."""
    source = load_last(path, state, CONFIG)
    return state.progress, source


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A last.pt of `make_state(0)`."""
    save(tmp_path / "last.pt", make_state(0))
    return tmp_path / "last.pt"


def refused(path: Path, state: TrainState | None = None, config: RunConfig = CONFIG) -> str:
    """The one line with which resuming is refused."""
    with pytest.raises(CsktError) as caught:
        load_last(path, state or make_state(1), config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def test_loading_restores_everything_that_changes(saved: Path) -> None:
    first, second = make_state(0), make_state(1)
    frozen = second.model[0].weight.clone()  # type: ignore[index]
    assert load(saved, second) == (PROGRESS, saved)
    for one, other in ((first.model, second.model), (first.objective, second.objective)):
        for name, value in trainable_state(one).items():
            assert torch.equal(trainable_state(other)[name], value), name
    assert torch.equal(second.model[0].weight, frozen), "the frozen rest comes from the backbone"  # type: ignore[index]
    ours, theirs = second.optimizer.state_dict(), first.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"] and ours["state"].keys() == theirs["state"].keys()
    for index, state in theirs["state"].items():
        for name, value in state.items():
            assert torch.equal(ours["state"][index][name], value), name
    assert second.scaler.state_dict() == first.scaler.state_dict()
    assert first.ema is not None and second.ema is not None
    averages, others = first.ema.state_dict(), second.ema.state_dict()
    assert others["num_updates"] == averages["num_updates"] == 1
    for name, value in averages["averages"].items():
        assert torch.equal(others["averages"][name], value), name


def test_the_optimizer_computes_as_its_own_device_needs(saved: Path) -> None:
    """A run of a CPU continues with CUDA's fused kernel, whose counts of steps are on the device."""
    state = make_state(1)
    for group in state.optimizer.param_groups:
        group["fused"] = True
    load(saved, state)
    assert all(group["fused"] for group in state.optimizer.param_groups)
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    assert {float(moments["step"]) for moments in state.optimizer.state.values()} == {2.0}


def test_only_what_trains_is_written(saved: Path) -> None:
    content = load_plain(saved)
    assert content["model"].keys() == {"1.weight", "1.bias"}
    assert content["objective"].keys() == {"classifier.weight", "classifier.bias"}
    assert content["average"]["averages"].keys() == {"1.weight", "1.bias"}
    assert content["progress"] == asdict(PROGRESS)
    assert content["config"] == to_dict(CONFIG)


def test_a_run_without_a_moving_average_saves_none(tmp_path: Path) -> None:
    save(tmp_path / "last.pt", replace(make_state(0), ema=None))
    assert load_plain(tmp_path / "last.pt")["average"] is None
    assert load(tmp_path / "last.pt", replace(make_state(1), ema=None))[0] == PROGRESS


def test_an_interrupted_save_after_a_fallback_keeps_the_intact_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = replace(PROGRESS, total_steps=PROGRESS.total_steps + 1)
    save(saved, make_state(0), later)
    saved.write_bytes(saved.read_bytes()[:-100])
    previous = saved.with_name("last.previous.pt")
    assert load(saved, make_state(1)) == (PROGRESS, previous)
    set_aside(saved)
    rename = Path.replace

    def killed_before_the_last(path: Path, target: Path) -> Path:
        if target == saved:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed_before_the_last)
        save(saved, make_state(0), later)
    assert load(saved, make_state(1)) == (PROGRESS, previous)
    save(saved, make_state(0), later)
    assert load(saved, make_state(1)) == (later, saved)


def test_differences_name_every_key_with_both_values() -> None:
    other = load_config("cskt", {"optim.lr": 1e-4, "prompts.depth": 3, "loss.weights": {"itc": 1.0}, "seed": 9})
    assert config_differences(CONFIG, other) == [
        "loss.weights: {'sdm': 1.0} -> {'itc': 1.0}",
        "optim.lr: 0.0003 -> 0.0001",
        "prompts.depth: 12 -> 3",
        "seed: 1 -> 9",
    ]


def test_free_keys_are_config_keys_and_no_difference() -> None:
    values: dict[str, Any] = dict.fromkeys(FREE_ON_RESUME, 3) | {
        "name": "x", "output_dir": "x", "device": "mps", "backbone.name": "x", "data.root": "x",
        "data.noise_file": "x",
        "data.cache_images": True, "data.cache_dir": "x", "loop.checkpoint_activations": True, "loop.fit": True,
        "loop.compile": True, "loop.loggers": ["x"],
    }  # fmt: skip
    assert config_differences(CONFIG, load_config("cskt", values)) == []


def test_a_file_older_than_a_config_key_is_resumed_with_the_keys_default(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    del content["config"]["lora"], content["config"]["mlm"], content["config"]["data"]["templates"]
    torch.save(content, saved)
    assert load(saved, make_state(1)) == (PROGRESS, saved)
    assert "lora.sides: none -> both" in refused(saved, config=load_config("cskt", {"lora.sides": "both"}))


def test_another_backbone_is_refused(saved: Path) -> None:
    assert f"over another backbone (SHA-256 {'a' * 64})" in refused(saved, make_state(1, backbone="b" * 64))


def test_other_parameters_are_refused_and_nothing_is_changed(saved: Path) -> None:
    state = make_state(1, num_identities=6)
    weight = state.objective.classifier.weight.clone()  # type: ignore[union-attr]
    assert "'classifier.bias' has another shape" in refused(saved, state)
    assert torch.equal(state.objective.classifier.weight, weight)  # type: ignore[union-attr]
    state = make_state(1)
    state.model[0].requires_grad_(True)  # type: ignore[index]
    assert "'0.bias' has another shape" in refused(saved, state)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_in_one_line(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    message = refused(saved)
    assert ": corrupt: " in message and message.endswith("; start a new run")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n", b"{}", b"PK\x03\x04 nothing", b"\x80\x02]q\x00."])
def test_another_kind_of_file_is_refused_in_one_line(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    refused(saved)


def test_a_checkpoint_of_another_program_is_refused_in_one_line(saved: Path) -> None:
    torch.save({"model": {}, "epoch": 3}, saved)
    assert "not a last.pt of this program" in refused(saved)


def test_code_is_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    content = load_plain(saved)
    torch.save(content | {"extra": Trap(tmp_path / "executed")}, saved)
    assert "nothing in it was executed" in refused(saved)
    assert not (tmp_path / "executed").exists()
    torch.load(saved, weights_only=False)
    assert (tmp_path / "executed").exists(), "the file would have done harm"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["model", "objective"])
def test_weights_that_are_not_finite_are_not_saved(saved: Path, part: str, value: float) -> None:
    before, state = saved.read_bytes(), make_state(1)
    with torch.no_grad():
        list(getattr(state, part).parameters())[-1][0] = value
    with pytest.raises(CsktError, match=r"last\.pt: not written, '.*bias' holds NaN or infinity after step 100; .*lr"):
        save(saved, state)
    assert saved.read_bytes() == before


def test_a_failed_write_keeps_the_previous_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full_disk(content: Any, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nand more")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CsktError, match=r"last\.pt: cannot be written: [^\n]*$"):
        save(saved, make_state(1), replace(PROGRESS, epoch=4))
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["last.pt"]


def test_constants_of_single_losses_are_compared_too() -> None:
    other = load_config("cskt", {"loss.sdm.temperature": 0.5})
    assert config_differences(load_config("cskt"), other) == ["loss.sdm.temperature: None -> 0.5"]
