"""Signs that a run cannot have learned, or that its score says nothing: one sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from cskt.config import RunConfig, load_config, read_yaml, value_of
from cskt.data.records import Split
from cskt.training.negatives import trained_losses

BEST_RATES = Path(str(resources.files("cskt"))) / "assets" / "best_rates.yaml"
FAR = 10.0
"""A learning rate that is this many times higher or lower than the best one is worth a word."""
METHOD_KEYS = ("trainable", "prompts.directions", "adapters.sides", "lora.sides", "optim.name")
"""Settings that identify a method for its learning rate, beside its losses."""
ROUNDING = 1e-9
STAGES_BEFORE = {"zero-shot": "zero-shot CLIP", "step-0": "the model before training"}
"""Stage of an evaluation before the first step -> what it evaluates."""


class Rate(NamedTuple):
    """A learning rate that was measured to do best."""

    recipe: str
    lr: float
    source: str


def doubts_before(config: RunConfig, val_split: Split, backbone_sha256: str) -> list[str]:
    """Return the doubts about a run before its first step.

    Args:
        config: of the run.
        val_split: the split that picks the best epoch.
        backbone_sha256: of the weight file; empty for random weights.
    """
    found = []
    if val_split.num_ids == 1:
        found.append(
            f"the split that picks the best epoch ({val_split.name}) holds one identity: every answer is right, and R1"
            " is 100 whatever is learned; give it several people"
        )
    if config.trainable == "none":
        return found
    optim, num_epochs = config.optim, config.loop.num_epochs
    if optim.warmup_factor < 1 and 2 * optim.warmup_epochs > num_epochs:
        found.append(
            f"warm-up takes {optim.warmup_epochs} epochs, more than half of the run's {num_epochs}; lower"
            " optim.warmup_epochs"
        )
    best = best_rate(config, backbone_sha256)
    if best is not None and not best.lr / FAR <= optim.lr * (1 + ROUNDING) <= best.lr * FAR * (1 + 2 * ROUNDING):
        times, direction = max(optim.lr / best.lr, best.lr / optim.lr), "above" if optim.lr > best.lr else "below"
        found.append(
            f"optim.lr {optim.lr:g} is {times:.0f} times {direction} {best.lr:g}, the best rate measured for"
            f" {best.recipe} over this backbone: {best.source}"
        )
    return found


def doubts_after(events: Sequence[Mapping[str, Any]], best_r1: float, best_epoch: int) -> list[str]:
    """Return the doubts about a run after its last step.

    Args:
        events: of the run so far.
        best_r1: of the epoch that was kept, a fraction.
        best_epoch: from 1; 0 where nothing was trained.
    """
    if not best_epoch:
        return []
    found = []
    for event in events:
        name = STAGES_BEFORE.get(event.get("stage", ""))
        if event["event"] == "evaluation" and name and best_r1 <= event["t2i"]["r1"]:
            before, best = 100 * event["t2i"]["r1"], 100 * best_r1
            found.append(
                f"no epoch is better than {name} on {event['split']}: R1 {best:.2f} at best (epoch {best_epoch}),"
                f" {before:.2f} without training; try another optim.lr or more epochs"
            )
    return found


def best_rate(config: RunConfig, backbone_sha256: str) -> Rate | None:
    """The learning rate that did best for the method of a run over its backbone; none where none was measured."""
    own = _method(config)
    fitting = [
        Rate(recipe, lr, entry["source"])
        for entry in read_yaml(BEST_RATES)["measured"]
        if entry["backbone_sha256"] == backbone_sha256
        for recipe, lr in entry["rates"].items()
        if _method_of_recipe(recipe) == own
    ]
    named = [rate for rate in fitting if rate.recipe == config.name]
    return next(iter([*named, *fitting]), None)


@cache
def _method_of_recipe(recipe: str) -> tuple[object, ...]:
    return _method(load_config(recipe))


def _method(config: RunConfig) -> tuple[object, ...]:
    return (*(value_of(config, key) for key in METHOD_KEYS), frozenset(trained_losses(config.loss)))
