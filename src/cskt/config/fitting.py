"""Values of recipes that follow from something else: from the backbone, or from the run that training starts from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cskt.config.file_names import CONFIG, RELEASED_CONFIG, RELEASED_WEIGHTS
from cskt.config.plain_yaml import read_yaml
from cskt.config.schema import RunConfig, flat_fields, value_of
from cskt.errors import SHORT, CsktError

logger = logging.getLogger(__name__)

ASSETS = Path(str(resources.files("cskt"))) / "assets"
KEYS = frozenset(name for name, _ in flat_fields())
"""Dotted keys of a config."""
FROM_RUN = "init_from"
"""Base of a recipe that continues a run: the model and the optimizer of that run."""
RUN_SECTIONS = (
    "trainable",
    "frozen",
    "precision",
    "backbone",
    "prompts",
    "adapters",
    "lora",
    "parts",
    "plugins",
    "loss",
    "augment",
)
RUN_DATA = ("caption_length", "clean_captions", "templates", "eval_interpolation", "apply_orientation")
"""Parts of a run's config that describe its model and how the model sees images and captions."""
RUN_OPTIM = ("name", "lr", "beta1", "beta2", "eps", "momentum", "weight_decay", "bias_lr_factor", "weight_decay_bias")
CONTINUED_LR_FACTOR = 0.1
"""Learning rate of a recipe that continues a run, relative to the rate of that run."""


def stated_keys(content: Mapping[str, Any]) -> frozenset[str]:
    """Return the dotted keys that a config file or mapping states, those of method parts included."""

    def states(key: str) -> bool:
        section, _, leaf = key.rpartition(".")
        inner = _value(content, section) if section else content
        return isinstance(inner, Mapping) and leaf in inner

    parts = _value(content, "parts")
    settings = parts.items() if isinstance(parts, Mapping) else ()
    of_parts = {f"parts.{name}.{key}" for name, values in settings if isinstance(values, Mapping) for key in values}
    return frozenset(filter(states, KEYS)) | of_parts


def backbone_fits(config: RunConfig, shipped: Mapping[str, Any], given: frozenset[str]) -> dict[str, Any]:
    """Return the values of a recipe that its backbone replaces, by dotted key, and log them.

    A backbone that ships with the package has a file `assets/NAME.yaml` of what suits it. It counts where the recipe
    was written for another backbone, and only for keys that nobody gave.

    Args:
        config: the recipe with all values that were given.
        shipped: the recipe alone, as it ships.
        given: keys that a file of the user or a flag states.
    """
    name, written_for = config.backbone.name, _value(shipped, "backbone.name")
    path = ASSETS / f"{name}.yaml"
    if name == written_for or Path(name).name != name or not path.is_file() or config.backbone.architecture is not None:
        return {}
    fits = read_yaml(path)
    found: dict[str, Any] = dict(fits["model"])
    if config.prompts.directions != "none":
        found |= fits["prompts"]
    if config.adapters.sides != "none":
        found |= fits["adapters"]
    for part in config.parts:
        found |= fits["parts"].get(part, {})
    if config.is_trainable:
        found |= fits["training"]
        if "optim.name" not in given:
            inside = {"adapters": config.adapters.sides, "lora": config.lora.sides}
            added = {name for name, sides in inside.items() if sides != "none"} | config.parts.keys()
            own = next((name for name in fits["rates"] if name in added), None)
            found["optim.lr"] = fits["rates"][own if own and config.trainable == "added" else config.trainable]
            if "optim.lr" not in given and "trainable" not in given:  # measured together, with what the recipe trains
                found |= fits["recipes"].get(_value(shipped, "name"), {})
    found = {key: value for key, value in found.items() if key not in given and value_of(config, key) != value}
    if found:
        changes = changes_text(config, found)
        logger.info("fitted to %s (the recipe is for %s): %s; a flag overrides each", name, written_for, changes)
    return found


def changes_text(config: RunConfig, values: Mapping[str, Any]) -> str:
    """Return `loop.num_epochs 60 -> 6, ...`: values of a config and what replaces them."""
    return ", ".join(f"{key} {value_of(config, key)} -> {value}" for key, value in values.items())


def model_of_run(named: str | None, recipe: str) -> dict[str, Any]:
    """Return the config of the run that training starts from, without its data and its length, at a gentler rate."""
    if named is None:
        raise CsktError(f"the recipe {recipe} continues a trained model; name its run: --init-from RUN")
    path = Path(named) / CONFIG
    released = any((Path(named) / name).is_file() for name in (RELEASED_CONFIG, *RELEASED_WEIGHTS))
    if not path.is_file() and (released or Path(named).name in RELEASED_WEIGHTS):
        raise CsktError(
            f"init_from {named}: a released folder has no {CONFIG}, which the recipe {recipe} continues; give the"
            " recipe of its method ('cskt recipes' lists them) and a tenth of its rate: --config RECIPE --lr RATE"
        )
    if not path.is_file():
        raise CsktError(f"init_from {named}: no run folder with a {CONFIG}, which the recipe {recipe} continues")
    content = read_yaml(path)
    kept = {key: content[key] for key in RUN_SECTIONS if key in content}
    for name, keys in (("data", RUN_DATA), ("optim", RUN_OPTIM)):
        section = content.get(name, {})
        if not isinstance(section, Mapping):
            raise CsktError(f"{path}: {name}: expected 'key: value' lines, got {SHORT.repr(section)}")
        kept[name] = {key: section[key] for key in keys if key in section}
    if isinstance(rate := kept["optim"].get("lr"), int | float):
        kept["optim"]["lr"] = rate * CONTINUED_LR_FACTOR
    return kept


def _value(content: Any, key: str) -> Any:
    """Return the value of a dotted key in a nested mapping; None where it is missing."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, Mapping) else None
    return content
