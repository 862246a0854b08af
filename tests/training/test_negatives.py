"""Configurations in which no batch holds a wrong answer are refused; single batches without one are counted."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cskt import losses
from cskt.config import LossConfig
from cskt.data.datasets import read_dataset
from cskt.data.paperdoll import make_dataset
from cskt.training.checks import check_negatives, trained_losses, without_negatives
from cskt.training.events import read_events
from cskt.training.loop import train
from tiny_run import Configure, quick_config

CONTRASTIVE = ("sdm", "itc", "cmpm", "triplet", "tal")


def refusal(configure: Configure, tmp_path: Path, changes: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match="learns nothing") as caught:
        train(configure(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists() and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_batches_of_one_pair_are_refused(configure: Configure, tmp_path: Path, loss: str) -> None:
    kind = "pair" if loss in ("itc", "triplet") else "identity"
    assert refusal(configure, tmp_path, {"data.batch_size": 1, "loss.weights": {loss: 1.0}}) == (
        f"data.batch_size 1: every batch holds one {kind}, from which the loss {loss} learns nothing;"
        " raise data.batch_size"
    )


def test_accumulated_batches_of_one_pair_are_refused(configure: Configure, tmp_path: Path) -> None:
    """Each batch keeps its own contrastive loss, however many are summed before a step."""
    assert refusal(configure, tmp_path, {"data.batch_size": 1, "loop.accumulate_steps": 8})


def test_one_loss_of_several_is_enough_to_refuse(configure: Configure, tmp_path: Path) -> None:
    weights = {"id": 1.0, "sdm": 0.5}
    assert "the loss sdm learns nothing" in refusal(
        configure, tmp_path, {"data.batch_size": 1, "loss.weights": weights}
    )


@pytest.mark.parametrize("sampler", ["identity", "identity-released"])
def test_identity_samplers_with_one_identity_a_batch_are_refused(
    configure: Configure, tmp_path: Path, sampler: str
) -> None:
    changes = {"data.batch_size": 4, "data.sampler": sampler, "data.instances": 4}
    assert refusal(configure, tmp_path, changes) == (
        f"data.batch_size 4 with data.sampler {sampler} and data.instances 4: every batch holds one identity, from"
        " which the loss sdm learns nothing; raise data.batch_size or lower data.instances"
    )


def test_batches_of_one_image_with_its_captions_are_refused(configure: Configure, tmp_path: Path) -> None:
    changes = {"data.batch_size": 2, "data.captions_per_image": 2}
    assert "with data.captions_per_image 2: every batch holds one identity" in refusal(configure, tmp_path, changes)
    assert "every batch holds one image" in refusal(configure, tmp_path, changes | {"loss.sdm_other_image": 0.3})


@pytest.mark.parametrize("loss", ["sdm", "cmpm", "tal", "id"])
def test_a_training_split_of_one_identity_is_refused(
    dolls: Path, configure: Configure, tmp_path: Path, loss: str
) -> None:
    config = configure({"loss.weights": {loss: 1.0}})
    split = read_dataset("cuhk-pedes", dolls)["train"]
    one = replace(split, records=tuple(record for record in split.records if record.pid == split.records[0].pid))
    with pytest.raises(ValueError, match=f"holds one identity, and the loss {loss} needs two; add people, or take"):
        check_negatives(config, one)


def test_one_identity_by_fraction_is_refused_by_train(configure: Configure, tmp_path: Path) -> None:
    changes = {"data.train_fraction": 0.01, "data.batch_size": 2}
    with pytest.raises(ValueError, match="the training split of cuhk-pedes holds one identity"):
        train(configure(changes), tmp_path / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.weights": {"id": 1.0}, "data.batch_size": 1},  # compares with classes, not with the batch
        {"loss.weights": {"mlm": 1.0}, "data.batch_size": 1, "mlm.cmt_depth": 1},
        {"loss.weights": {"id": 1.0, "sdm": 0.0}, "data.batch_size": 1},  # recorded only
        {"data.sampler": "identity", "data.batch_size": 4, "data.instances": 4, "loss.weights": {"itc": 1.0}},
        {"data.batch_size": 4, "loop.micro_batch_size": 1},  # the losses see the whole batch
        {"data.batch_size": 4, "data.captions_per_image": 2},
        {"data.batch_size": 2},
    ],
)
def test_configurations_that_can_learn_are_accepted(configure: Configure, dolls: Path, changes: dict[str, Any]) -> None:
    check_negatives(configure(changes), read_dataset("cuhk-pedes", dolls)["train"])


def test_zero_shot_needs_no_batch(configure: Configure, tmp_path: Path) -> None:
    train(configure({"data.batch_size": 1}, recipe="clip"), tmp_path / "run")


# --- single batches


def features(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(count, 8, generator=generator, requires_grad=True) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("loss", CONTRASTIVE)
def test_a_pair_alone_has_no_gradient(loss: str) -> None:
    pids = image_ids = torch.zeros(1, dtype=torch.int64)
    assert without_negatives(trained_losses(LossConfig(weights={loss: 1.0})), pids, image_ids) == [loss]
    image_features, text_features = features(1)
    inputs = losses.LossInputs(image_features, text_features, pids, image_ids=image_ids)
    losses.LOSSES[loss]()(inputs).backward()
    assert image_features.grad is not None and image_features.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("loss", "pids", "image_ids", "expected"),
    [
        ("sdm", [1, 1], [0, 1], ["sdm"]),
        ("sdm", [1, 2], [0, 1], []),
        ("tal", [1, 1], [0, 1], ["tal"]),
        ("cmpm", [1, 1], [0, 1], ["cmpm"]),
        ("itc", [1, 1], [0, 1], []),
        ("triplet", [1, 1], [0, 1], []),
        ("id", [1], [0], []),
        ("mlm", [1], [0], []),
    ],
)
def test_losses_without_a_wrong_answer_in_a_batch_are_named(
    loss: str, pids: list[int], image_ids: list[int], expected: list[str]
) -> None:
    named = trained_losses(LossConfig(weights={loss: 1.0}))
    assert without_negatives(named, torch.tensor(pids), torch.tensor(image_ids)) == expected


def test_sdm_may_tell_images_of_one_person_apart() -> None:
    named = trained_losses(LossConfig(weights={"sdm": 1.0}, sdm_other_image=0.3))
    assert without_negatives(named, torch.tensor([1, 1]), torch.tensor([0, 1])) == []
    assert without_negatives(named, torch.tensor([1, 1]), torch.tensor([0, 0])) == ["sdm"]


def test_a_last_batch_of_one_is_kept_counted_and_warned_of_once(
    tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # 5 people x 1 image x 1 caption in batches of 4: the second holds one pair.
    make_dataset(
        tmp_path, layout="jsonl", ids={"train": 5, "val": 2, "test": 2}, images_per_id=1, captions_per_image=1, seed=5
    )
    changes = {"data.dataset": "jsonl", "data.batch_size": 4, "loop.num_epochs": 3}
    folder = train(quick_config(tmp_path, tiny_backbone, changes=changes), tmp_path / "run").folder
    steps = [event for event in read_events(folder) if event["event"] == "step"]
    assert [event.get("batches_without_negatives", 0) for event in steps] == [0, 1] * 3
    (warning,) = (record for record in caplog.records if "no wrong answer" in record.message)
    assert warning.levelno == logging.WARNING
    assert warning.message.startswith("epoch 1: 1 of 2 batches hold no wrong answer (one identity, or one pair)")
