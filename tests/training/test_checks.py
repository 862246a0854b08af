"""Runs that cannot have learned say so, at the start or at the end, and in their events."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from cskt.config import load_config, read_yaml, recipe_names
from cskt.data.datasets import read_dataset
from cskt.data.paperdoll import make_dataset
from cskt.data.records import Record, Split
from cskt.evaluation.study_plan import load_study
from cskt.model.io.cache import CLIP_TINY, locate
from cskt.training.checks import BEST_RATES, best_rate, warnings_after, warnings_before
from cskt.training.events import first_event, last_event, read_events
from cskt.training.loop import train
from tiny_run import Configure, quick_config

TINY = hashlib.sha256(locate(CLIP_TINY).read_bytes()).hexdigest()
PEOPLE = Split("jsonl", "val", tuple(Record(pid, Path(f"{pid}.jpg"), ("a",), "val") for pid in (1, 2)))
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
        ("cskt", 3e-4, "100 times below 0.03"),  # the recipe's own rate, which is for ViT-B/16
        ("cskt", 1e-3, "30 times below 0.03"),
        ("cskt", 3e-3, ""),
        ("cskt", 3e-1, ""),
        ("cskt", 0.31, "10 times above 0.03"),
        ("lora", 3e-2, ""),
        ("lora", 3e-4, ""),
        ("lora", 1e-1, "33 times above 0.003"),
        ("finetune", 1e-5, "30 times below 0.0003"),
        ("finetune-itc", 1e-2, "33 times above 0.0003"),
        ("irra", 1e-5, "30 times below 0.0003"),
        ("linear", 1e-3, ""),
        ("demo", 1e-3, ""),
        ("demo", 1e-5, "100 times below 0.001"),
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
    (measured, demo) = read_yaml(BEST_RATES)["measured"]
    assert measured["backbone_sha256"] == demo["backbone_sha256"] == TINY
    assert measured["rates"] == studied
    assert demo["rates"] == {"demo": load_config("demo").optim.lr}
    assert {*measured["rates"], *demo["rates"]} <= set(recipe_names())


# --- after the last step


def evaluation(stage: str, r1: float) -> dict[str, Any]:
    return {"event": "evaluation", "stage": stage, "epoch": 0, "split": "val", "t2i": {"r1": r1}}


@pytest.mark.parametrize(
    ("best_r1", "expected"),
    [
        (0.5, ["zero-shot CLIP on val: R1 50.00 at best (epoch 2), 50.00", "the model before training on val"]),
        (0.4, ["zero-shot CLIP on val: R1 40.00 at best (epoch 2), 50.00", "the model before training on val"]),
        (0.6, []),
    ],
)
def test_a_best_epoch_that_is_no_better_than_before_is_warned_of(best_r1: float, expected: list[str]) -> None:
    events = [evaluation("zero-shot", 0.5), evaluation("step-0", 0.5), evaluation("epoch", best_r1)]
    found = warnings_after(events, best_r1, 2)
    assert len(found) == len(expected)
    assert all(f"no epoch is better than {words}" in line for words, line in zip(expected, found, strict=True))


def test_better_than_step_0_but_not_than_zero_shot_is_warned_of() -> None:
    (found,) = warnings_after([evaluation("zero-shot", 0.5), evaluation("step-0", 0.1)], 0.3, 1)
    assert "zero-shot CLIP" in found


def test_no_warning_for_runs_that_train_nothing_or_evaluated_nothing_before() -> None:
    assert warnings_after([evaluation("zero-shot", 0.5)], 0.5, 0) == []
    assert warnings_after([evaluation("epoch", 0.5)], 0.5, 1) == []


# --- in a run


def test_a_run_logs_and_records_its_warnings(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A rate of next to nothing: the best epoch is what was there before."""
    changes = {"optim.lr": 1e-12, "optim.warmup_epochs": 1, "loop.evaluate_before": True}
    events = read_events(train(configure(changes), tmp_path / "run").folder)
    start, end = first_event(events, "start"), last_event(events, "end")
    assert start["warnings"] == ["warm-up takes 1 epochs, more than half of the run's 1; lower optim.warmup_epochs"]
    assert any(line.startswith("no epoch is better than the model before training") for line in end["warnings"])
    logged = [record.message for record in caplog.records]
    assert all(line in logged for line in [*start["warnings"], *end["warnings"]])


def test_a_resumed_run_compares_with_its_first_evaluations(configure: Configure, tmp_path: Path) -> None:
    changes = {"optim.lr": 1e-12, "loop.evaluate_before": True, "loop.num_epochs": 2}
    run = train(configure({**changes, "loop.stop_after_epochs": 1}), tmp_path / "run").folder
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
