"""Noise division: what is refused, and in a training."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_distributed import torchrun

from cskt.config import DataConfig, MixedDataset, load_config, save_config
from cskt.embed import load
from cskt.errors import CsktError
from cskt.model.io.native import read_method
from cskt.model.io.tensors import load_plain
from cskt.training import trainer
from cskt.training.context import prepare
from cskt.training.events import read_events
from cskt.training.hooks import NoiseDivision
from cskt.training.hooks.noise_division import MIN_PAIRS, SETTINGS, consensus, divide
from cskt.training.loop import train
from cskt.training.run_hooks import Hooks
from same_run import assert_same_run
from tiny_run import Configure

RDE: dict[str, Any] = {
    "parts.tse": {}, "loss.weights": {"tal": 1.0, "tse_tal": 1.0}, "prompts.directions": "none",
    "adapters.sides": "none", "hooks.noise_division": {},
}  # fmt: skip


def test_equal_losses_are_all_clean_and_bad_ones_refused() -> None:
    random, losses = np.random.RandomState(0), torch.zeros(20)
    assert divide({"tal": losses, "sdm": losses + 1}, SETTINGS["low"], random).tolist() == [1.0] * 20
    bad = losses.clone()
    bad[3] = torch.nan
    with pytest.raises(CsktError, match=r"the loss tal of 1 pairs is not finite; lower optim\.lr"):
        divide({"tal": bad}, SETTINGS["low"], random)


def test_votes_and_the_coin() -> None:
    votes = [torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])]
    drawn = torch.stack([consensus(votes, np.random.RandomState(seed)) for seed in range(400)])
    assert torch.equal(drawn[:, 0], torch.ones(400)) and torch.equal(drawn[:, 3], torch.zeros(400))
    assert drawn[:, 1:3].mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    assert torch.equal(consensus(votes[:1], np.random.RandomState(0)), votes[0].float())


@pytest.mark.parametrize(
    ("mixture", "share", "dataset", "expected"),
    [
        ("auto", 0.0, "cuhk-pedes", "low"), ("auto", 0.4, "icfg-pedes", "low"), ("auto", 0.41, "cuhk-pedes", "high"),
        ("auto", 0.0, "rstpreid", "high"), ("low", 0.8, "rstpreid", "low"), ("high", 0.0, "cuhk-pedes", "high"),
    ],
)  # fmt: skip
def test_fit_by_noise_and_data_set(mixture: Any, share: float, dataset: str, expected: str) -> None:
    assert NoiseDivision(mixture=mixture)._mixture(share, dataset) == expected


def test_the_published_spelling_of_a_data_set_is_the_same_data_set() -> None:
    data = load_config("rde", {"data.dataset": "RSTPReid"}).data
    assert data == load_config("rde", {"data.dataset": "rstpreid"}).data
    assert NoiseDivision()._mixture(0.0, data.dataset) == "high"
    assert DataConfig(mix=(MixedDataset(dataset="CUHK_PEDES"),)).mix[0].dataset == "cuhk-pedes"


def test_a_training_divides_before_every_epoch_and_resumes(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(
        RDE | {"data.noise_rate": 0.5, "loop.num_epochs": 2, "data.batch_size": 8, "loop.save_period_steps": 1}
    )
    whole = train(config, tmp_path / "whole").folder
    events = [event for event in read_events(whole) if event["event"] == "hook"]
    assert [event["epoch"] for event in events] == [1, 2]
    assert all(set(event["values"]) == {"clean", "noisy_of_replaced", "noisy_of_others"} for event in events)
    assert all(0 < event["values"]["clean"] < 1 for event in events)
    step, calls = trainer.optimizer_step, [0]

    def interrupt(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:  # in the middle of the second epoch
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "optimizer_step", interrupt)
        train(config, tmp_path / "parts")
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", whole)
    end = read_events(whole)[-1]
    assert (end["last_epoch"], end["best_epoch"]) == (2, end["best_epoch"]) and 0 <= end["last_r1"] <= end["best_r1"]
    weights = read_method(whole / "last.safetensors")
    assert weights.facts["epoch"] == "2"
    last = load_plain(whole / "last.pt")["model"]
    assert weights.tensors.keys() == last.keys() and all(
        torch.equal(weights.tensors[name], last[name]) for name in last
    )
    assert (tmp_path / "parts" / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()
    assert load(whole / "last.safetensors", device="cpu").embed_dim == 1024 + weights_width(whole)


def weights_width(run: Path) -> int:
    """Width of the features of the model of a run."""
    return load(run, device="cpu").model.architecture.embed_dim


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.weights": {"tal": 1.0}}, r"hooks\.noise_division\.losses: 'tse_tal' is not in loss\.weights"),
        ({"hooks.noise_division": {"losses": []}}, r"hooks\.noise_division\.losses is empty"),
        ({"hooks.noise_division": {"mixture": "medium"}}, r"hooks\.noise_division\.mixture"),
        ({"hooks.noise_division": {"loses": ["tal"]}}, r"did you mean 'losses'"),
        ({"hooks.noise_division": {"losses": "tal"}}, r"losses: input should be a list, such as \[a, b\], got 'tal'"),
        ({"parts": {}, "trainable": "all"}, "heads of this run: none"),
    ],
)
def test_a_division_that_cannot_be_is_refused(
    configure: Configure, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    base = {key: value for key, value in RDE.items() if not (key == "parts.tse" and "parts" in changes)}
    with pytest.raises(CsktError, match=message):
        train(configure(base | changes), tmp_path / "run")


def test_a_loss_without_weights_of_pairs_is_refused_before_the_first_division(
    configure: Configure, tmp_path: Path
) -> None:
    citc = {"loss.weights": {"tal": 1.0, "tse_tal": 1.0, "citc": 1.0}}
    with pytest.raises(CsktError, match="loss 'citc' takes no weights of pairs; take it out of loss.weights"):
        train(configure(RDE | citc), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_pairs_are_refused_before_a_folder_is_made(
    configure: Configure, tmp_path: Path, monkeypatch: Any
) -> None:
    context = prepare(configure(RDE))
    few = dataclasses.replace(context.train_split, records=context.train_split.records[: MIN_PAIRS // 4])
    context.train_split = few
    with pytest.raises(CsktError, match=f"{len(few.captions)} training pairs are too few"):
        Hooks(context)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CsktError, match=r"sklearn not installed; type: pip install 'cskt\[rde\]'"):
        train(configure(RDE), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert train(configure(RDE | {"hooks.noise_division": {"mixture": "none"}}), tmp_path / "off").best_epoch >= 1


@pytest.mark.slow
def test_two_processes_divide_and_train_as_one(configure: Configure, tmp_path: Path) -> None:
    config = configure(RDE | {"data.noise_rate": 0.5, "data.batch_size": 7, "loop.num_epochs": 2})
    save_config(config, tmp_path / "config.yaml")
    words = ("-m", "cskt", "train", "--config", tmp_path / "config.yaml", "--output", tmp_path / "two")
    ran = torchrun(2, *words)
    assert ran.returncode == 0, ran.stderr
    train(config, tmp_path / "one")
    one, two = (read_events(tmp_path / name) for name in ("one", "two"))
    for kind, key in (("hook", "values"), ("step", "losses")):
        found, expected = ([event[key] for event in events if event["event"] == kind] for events in (two, one))
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)
