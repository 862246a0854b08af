"""Checks of a run: configurations that cannot learn are refused, doubtful ones warned of.

A contrastive loss learns by comparing a pair with others. In a batch of one identity SDM, CMPM and TAL have no wrong
answer; in a batch of one pair ITC and the triplet loss have none. Such a batch teaches nothing, and its loss of about 0
looks like success.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from torch import Tensor

from cskt.config import (
    LOSS_KEYS,
    AugmentConfig,
    LossConfig,
    RunConfig,
    load_config,
    read_yaml,
    validate_value,
    value_of,
)
from cskt.data.records import Split
from cskt.errors import CsktError
from cskt.evaluation.results import REFERENCE_MODELS
from cskt.losses import LOSSES, Loss, build_losses
from cskt.model.dual_encoder import DualEncoder
from cskt.plugins import Requirement
from cskt.training.data_size import MIN_HELD_OUT_PEOPLE

BEST_RATES = Path(str(resources.files("cskt"))) / "assets" / "best_rates.yaml"
FAR = 10.0
"""A warning is logged if the learning rate differs from the best one by more than this factor."""
METHOD_KEYS = ("trainable", "prompts.directions", "adapters.sides", "lora.sides", "optim.name")
"""Settings that identify a method for its learning rate, beside its losses."""
ROUNDING = 1e-9


def trained_losses(config: LossConfig) -> dict[str, Loss]:
    """Return the losses that have a weight, by name; one of weight 0 is only recorded."""
    return build_losses([name for name, weight in config.weights.items() if weight], config)


def check_losses(config: LossConfig, plugins: Iterable[Requirement] = ()) -> LossConfig:
    """Return the losses of a config with the constants of each as their types; raise CsktError if one is unknown.

    Constants of losses that a run before used with its `plugins`, and this one does not, are left out.
    """
    provided = {key for plugin in plugins for key in plugin.provides}
    shared = get_type_hints(LossConfig, include_extras=True)  # limits of the constants of the package's own losses
    constants: dict[str, dict[str, Any]] = {}
    for name, given in config.constants.items():
        if name not in config.weights and LOSSES.key(name) in provided:
            continue
        kinds = get_type_hints(LOSSES[name], include_extras=True)
        kinds |= {field: shared[key] for key, users in LOSS_KEYS.items() for loss, field in users if loss == name}
        constants[name] = {
            field: validate_value(kinds.get(field, Any), value, f"loss.{name}.{field}")
            for field, value in given.items()
        }
    checked = dataclasses.replace(config, constants=constants)
    build_losses([*config.weights, *constants], checked)
    return checked


def check_captions_per_image(config: RunConfig) -> None:
    """Raise CsktError for a loss that would take another pair of an image for a negative."""
    per_image, losses = config.data.captions_per_image, build_losses(config.loss.weights, config.loss)
    if per_image > 1 and (wrong := [name for name, loss in losses.items() if loss.negatives == "pairs"]):
        raise CsktError(
            f"data.captions_per_image {per_image}: {min(wrong)} takes other pairs of an image for negatives; use"
            " sdm, cmpm, tal, trl, nitc, ritc, id or mlm, or one caption per image"
        )


def check_views(losses: Mapping[str, Loss], augment: AugmentConfig) -> None:
    """Raise CsktError if a loss needs a view of the images that the config does not describe."""
    for name, loss in losses.items():
        if missing := next((view for view in loss.views if view not in augment.views), None):
            known = ", ".join(augment.views) or "none"
            raise CsktError(
                f"loss '{name}' compares with a further view '{missing}' of the images, and augment.views has {known};"
                f" add augment.views.{missing} (empty: augmented as the first view)"
            )


def check_dropout(model: DualEncoder, augment: AugmentConfig) -> None:
    """Raise CsktError for dropout in a text tower with prompts, which all captions share."""
    if augment.text_attention_dropout and model.num_text_slots:
        raise CsktError(
            f"augment.text_attention_dropout {augment.text_attention_dropout}: the text tower has prompts, which are"
            " computed once for all captions; set it to 0, or prompts.directions to none"
        )


def check_negatives(config: RunConfig, train_split: Split) -> None:
    """Raise CsktError, with the key to change, if no batch can contain a negative for a loss that trains."""
    data, num_identities, num_images = config.data, train_split.num_ids, len(train_split.records)
    group_size = data.captions_per_image if data.sampler == "random" else data.instances
    largest = {
        "identities": (min(data.batch_size // group_size, num_identities), "identity"),
        "images": (min(data.batch_size // data.captions_per_image, num_images), "image"),
        "pairs": (data.batch_size, "pair"),
    }
    for name, loss in trained_losses(config.loss).items():
        if loss.negatives in ("identities", "classes") and num_identities < 2:
            raise CsktError(
                f"data.root {data.root}: the training split of {train_split.dataset} holds one identity, and the loss"
                f" {name} needs two; add people, or take {name} out of loss.weights"
            )
        number, kind = largest.get(loss.negatives or "", (2, ""))
        if number < 2:
            groups, remedy = "", "raise data.batch_size"
            if data.sampler != "random":
                groups = f" with data.sampler {data.sampler} and data.instances {data.instances}"
                remedy += " or lower data.instances"
            elif data.captions_per_image > 1:
                groups = f" with data.captions_per_image {data.captions_per_image}"
            raise CsktError(
                f"data.batch_size {data.batch_size}{groups}: every batch holds one {kind}, from which the loss {name}"
                f" learns nothing; {remedy}"
            )


def without_negatives(losses: Mapping[str, Loss], pids: Tensor, image_ids: Tensor) -> list[str]:
    """Return the names of the losses that find no negative in a batch with these identities and images, [B]."""
    missing = {"pairs"} if len(pids) == 1 else set()
    missing |= {kind for kind, ids in (("identities", pids), ("images", image_ids)) if bool((ids == ids[0]).all())}
    return [name for name, loss in losses.items() if loss.negatives in missing]


class BestRate(NamedTuple):
    """Learning rate that was measured to do best."""

    recipe: str
    lr: float
    source: str


def warnings_before(config: RunConfig, val_split: Split, backbone_sha256: str) -> list[str]:
    """Return warnings about a run before its first step, one sentence each; `val_split` picks the best epoch."""
    found = []
    if val_split.num_ids == 1:
        found.append(
            f"the split that picks the best epoch ({val_split.name}) holds one identity: every answer is right, and R1"
            " is 100 whatever is learned; give it several people"
        )
    if not config.is_trainable:
        return found
    optim, num_epochs = config.optim, config.loop.num_epochs
    if optim.warmup_factor < 1 and 2 * optim.warmup_epochs > num_epochs:
        found.append(
            f"warm-up takes {optim.warmup_epochs} epochs, more than half of the run's {num_epochs}; lower"
            " optim.warmup_epochs"
        )
    # Rates are measured from the backbone; a run that continues another one takes gentler ones.
    best = best_rate(config, backbone_sha256) if config.init_from is None else None
    if best is not None and not best.lr / FAR <= optim.lr * (1 + ROUNDING) <= best.lr * FAR * (1 + 2 * ROUNDING):
        times, direction = max(optim.lr / best.lr, best.lr / optim.lr), "above" if optim.lr > best.lr else "below"
        found.append(
            f"optim.lr {optim.lr:g} is {times:.0f} times {direction} {best.lr:g}, the best rate measured for"
            f" {best.recipe} over this backbone: {best.source}"
        )
    return found


def warnings_after(
    events: Sequence[Mapping[str, Any]], best_r1: float, best_epoch: int, *, num_people: int, is_continued: bool
) -> list[str]:
    """Return warnings about a run after its last step, one sentence each.

    Args:
        events: of the run.
        best_r1: of the best epoch, on the selection split.
        best_epoch: 0 if nothing was trained.
        num_people: of the selection split; among few people R1 is chance.
        is_continued: the run started from another one, and should be short.
    """
    if not best_epoch or best_r1 >= 1 or num_people < MIN_HELD_OUT_PEOPLE:
        return []
    instead = "keep the model that it started from" if is_continued else "more epochs"
    names: dict[tuple[str, float], list[str]] = {}  # a model before training is often CLIP itself
    for event in events:
        name = REFERENCE_MODELS.get(event.get("stage", ""))
        if event["event"] == "evaluation" and name and best_r1 <= event["t2i"]["r1"]:
            names.setdefault((event["split"], event["t2i"]["r1"]), []).append(name)
    return [
        f"no epoch is better than {' and '.join(found)} on {split}: R1 {100 * best_r1:.2f} at best (epoch"
        f" {best_epoch}), {100 * r1:.2f} without training; try another optim.lr or {instead}"
        for (split, r1), found in names.items()
    ]


def best_rate(config: RunConfig, backbone_sha256: str) -> BestRate | None:
    """Return the learning rate that did best for the method of a run over its backbone; None if none was measured."""
    own = _method(config)
    fitting = [
        BestRate(recipe, lr, entry["source"])
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
    return (
        *(value_of(config, key) for key in METHOD_KEYS),
        frozenset(config.parts),
        frozenset(trained_losses(config.loss)),
    )
