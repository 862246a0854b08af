"""Configurations that cannot learn are refused, doubtful runs warned of, and batches without a negative counted."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cskt import losses
from cskt.config import LossConfig, load_config, read_yaml, recipe_names
from cskt.data.datasets import read_dataset
from cskt.data.paperdoll import make_dataset
from cskt.data.records import Record, Split
from cskt.errors import CsktError
from cskt.evaluation.study_plan import load_study
from cskt.model.io.cache import CLIP_TINY, locate
from cskt.training.checks import (
    BEST_RATES,
    best_rate,
    check_negatives,
    trained_losses,
    warnings_after,
    warnings_before,
    without_negatives,
)
from cskt.training.events import first_event, last_event, read_events
from cskt.training.loop import train
from tiny_run import Configure, quick_config

TINY = hashlib.sha256(locate(CLIP_TINY).read_bytes()).hexdigest()
PEOPLE = Split("jsonl", "val", tuple(Record(pid, Path(f"{pid}.jpg"), ("a",), "val") for pid in (1, 2)))
SELECTION = {"data.select_on": "train"}  # val has too few people for a warning
NO_WARMUP = {"optim.warmup_epochs": 0}


def doubts(changes: dict[str, Any], recipe: str = "cskt", digest: str = "", split: Split = PEOPLE) -> list[str]:
    return warnings_before(load_config(recipe, changes), split, digest)


@pytest.mark.parametrize(
    ("warmup", "num_epochs", "factor", "doubted"),
    [(5, 60, 0.1, False), (5, 10, 0.1, False), (5, 9, 0.1, True), (5, 3, 0.1, True), (5, 3, 1.0, False)],
)
def test_a_long_warmup_is_warned_of(warmup: int, num_epochs: int, factor: float, doubted: bool) -> None:
    changes = {"optim.warmup_epochs": warmup, "optim.warmup_factor": factor, "loop.num_epochs": num_epochs}
    found = doubts(changes)
    assert bool(found) == doubted
    assert not found or found == [
        f"warm-up takes 5 epochs, more than half of the run's {num_epochs}; lower optim.warmup_epochs"
    ]


def test_a_selection_split_of_one_identity_is_warned_of() -> None:
    records = tuple(Record(7, Path(f"{index}.jpg"), ("a", "b"), "val") for index in range(3))
    for recipe in ("cskt", "clip"):
        (found,) = doubts({}, recipe, split=Split("jsonl", "val", records))
        assert found.startswith("the split that picks the best epoch (val) holds one identity") and "R1 is 100" in found


# --- learning rates


@pytest.mark.parametrize(
    ("recipe", "lr", "doubted"),
    [
        ("cskt", 3e-5, "33 times below 0.001"),
        ("cskt", 3e-4, ""),  # the recipe's own rate, which is for ViT-B/16
        ("cskt", 1e-2, ""),
        ("cskt", 1.1e-2, "11 times above 0.001"),
        ("lora", 3e-2, ""),
        ("lora", 3e-4, ""),
        ("lora", 1e-1, "33 times above 0.003"),
        ("finetune", 9e-6, "11 times below 0.0001"),
        ("finetune-itc", 1e-2, "100 times above 0.0001"),
        ("irra", 1e-6, "100 times below 0.0001"),
        ("linear", 1e-3, ""),
        ("demo", 1e-3, ""),
        ("demo", 3e-5, "100 times below 0.003"),  # the same method as cskt, with a rate of its own
        ("cskt-bpt", 1e-7, ""),  # not measured
    ],
)
def test_a_rate_far_from_the_best_one_is_warned_of(recipe: str, lr: float, doubted: str) -> None:
    found = doubts({"optim.lr": lr, **NO_WARMUP}, recipe, TINY)
    assert len(found) == bool(doubted)
    if doubted:
        assert found[0].startswith(f"optim.lr {lr:g} is {doubted}, the best rate measured for {recipe} over this")
        assert "docs/results.md" in found[0]


def test_no_best_rate_for_other_backbones_and_other_methods() -> None:
    far = {"optim.lr": 1e-7, **NO_WARMUP}
    assert doubts(far, digest="0" * 64) == doubts(far) == []
    assert doubts({**far, "optim.name": "sgd"}, digest=TINY) == []
    assert doubts({**far, "loss.weights": {"sdm": 1.0, "tal": 1.0}}, digest=TINY) == []
    assert doubts({**far, "loss.weights": {"sdm": 1.0, "tal": 0.0}}, digest=TINY) != [], "weight 0 does not train"


def test_the_best_rate_depends_on_the_method_and_not_on_the_name() -> None:
    assert best_rate(load_config("cskt", {"name": "mine"}), TINY) == best_rate(load_config("cskt"), TINY)
    fine_tuned = best_rate(load_config("finetune", {"name": "cskt"}), TINY)
    assert fine_tuned is not None and fine_tuned.recipe == "finetune", "called cskt, but trains everything"


def test_the_rates_are_those_of_the_shipped_studies() -> None:
    studied = {arm.recipe: arm.small["optim.lr"] for arm in load_study("methods").arms if "optim.lr" in arm.small}
    (measured,) = read_yaml(BEST_RATES)["measured"]
    assert measured["backbone_sha256"] == TINY
    assert measured["rates"] == studied | {"demo": load_config("demo").optim.lr}
    assert measured["rates"].keys() <= set(recipe_names())


# --- after the last step


def evaluation(stage: str, r1: float) -> dict[str, Any]:
    return {"event": "evaluation", "stage": stage, "epoch": 0, "split": "val", "t2i": {"r1": r1}}


def found_after(*events: dict[str, Any], best_r1: float, best_epoch: int = 2, **facts: Any) -> list[str]:
    return warnings_after(events, best_r1, best_epoch, **{"num_people": 50, "is_continued": False} | facts)


@pytest.mark.parametrize("best_r1", [0.4, 0.5])
def test_a_best_epoch_that_is_no_better_than_before_is_warned_of(best_r1: float) -> None:
    """One line if the model before training is CLIP itself, otherwise one for each."""
    zero_shot, own = evaluation("zero-shot", 0.5), evaluation("epoch", best_r1)
    (line,) = found_after(zero_shot, evaluation("step-0", 0.5), own, best_r1=best_r1)
    before = "CLIP zero-shot and the model before training"
    found = f"R1 {100 * best_r1:.2f} at best (epoch 2), 50.00 without training"
    assert line == f"no epoch is better than {before} on val: {found}; try another optim.lr or more epochs"
    assert len(found_after(zero_shot, evaluation("step-0", 0.6), own, best_r1=best_r1)) == 2
    (line,) = found_after(zero_shot, own, best_r1=best_r1, is_continued=True)
    assert line.endswith("; try another optim.lr or keep the model that it started from")


def test_better_than_step_0_but_not_than_zero_shot_is_warned_of() -> None:
    (found,) = found_after(evaluation("zero-shot", 0.5), evaluation("step-0", 0.1), best_r1=0.3)
    assert "CLIP zero-shot on val" in found


def test_no_warning_where_nothing_can_be_better_or_nothing_is_known() -> None:
    before = evaluation("zero-shot", 0.5)
    assert not found_after(before, best_r1=0.6)
    assert not found_after(evaluation("zero-shot", 1.0), best_r1=1.0), "no epoch can be better"
    assert not found_after(before, best_r1=0.5, num_people=3), "chance"
    assert not found_after(before, best_r1=0.5, best_epoch=0), "nothing was trained"
    assert not found_after(evaluation("epoch", 0.5), best_r1=0.5), "nothing was evaluated before"


# --- in a run


def test_a_run_logs_and_records_its_warnings(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A rate of next to nothing: the best epoch is what was there before."""
    changes = {"optim.lr": 1e-12, "optim.warmup_epochs": 1, "loop.evaluate_before": True} | SELECTION
    events = read_events(train(configure(changes), tmp_path / "run").folder)
    start, end = first_event(events, "start"), last_event(events, "end")
    assert start["warnings"] == ["warm-up takes 1 epochs, more than half of the run's 1; lower optim.warmup_epochs"]
    assert any(line.startswith("no epoch is better than the model before training") for line in end["warnings"])
    logged = [record.message for record in caplog.records]
    assert all(line in logged for line in [*start["warnings"], *end["warnings"]])


def test_a_resumed_run_compares_with_its_first_evaluations(configure: Configure, tmp_path: Path) -> None:
    changes = {"optim.lr": 1e-12, "loop.evaluate_before": True, "loop.num_epochs": 2} | SELECTION
    run = train(configure({**changes, "loop.stop_after_epochs": 1}), tmp_path / "run").folder
    assert not last_event(read_events(run), "end")["warnings"], "an epoch is still to come"
    train(configure(changes), run, resume=True)
    assert last_event(read_events(run), "end")["warnings"]


def test_a_run_with_one_identity_to_select_on_logs_a_warning(
    tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_dataset(tmp_path, layout="jsonl", ids={"train": 4, "val": 1, "test": 1}, images_per_id=2, seed=6)
    assert read_dataset("jsonl", tmp_path)["val"].num_ids == 1
    config = quick_config(tmp_path, tiny_backbone, changes={"data.dataset": "jsonl"})
    result = train(config, tmp_path / "run")
    assert result.best_r1 == 1.0
    assert any("holds one identity" in record.message for record in caplog.records)


CONTRASTIVE = ("sdm", "itc", "cmpm", "triplet", "tal")


def refusal(configure: Configure, tmp_path: Path, changes: dict[str, Any]) -> str:
    with pytest.raises(CsktError, match="learns nothing") as caught:
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
    with pytest.raises(CsktError, match=f"holds one identity, and the loss {loss} needs two; add people, or take"):
        check_negatives(config, one)


def test_one_identity_by_fraction_is_refused_by_train(configure: Configure, tmp_path: Path) -> None:
    changes = {"data.train_fraction": 0.01, "data.batch_size": 2}
    with pytest.raises(CsktError, match="the training split of cuhk-pedes holds one identity"):
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
    (warning,) = (record for record in caplog.records if "without negatives" in record.message)
    assert warning.levelno == logging.WARNING
    assert warning.message.startswith("epoch 1: 1 of 2 batches without negatives (one identity, or one pair)")
