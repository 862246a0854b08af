"""The flags of the released CSKT and IRRA programs beside our config keys, read in both directions.

`train.py`, `test.py`, the flat `configs.yaml` of a run and the reader of released folders all use this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cskt.config import ClipArchitecture, RunConfig, flat_fields, value_of
from cskt.errors import CsktError

REFERENCE, IRRA = "cskt-reference", "irra"
"""The recipes that hold the released programs' defaults."""
DATASETS = {"CUHK-PEDES": "cuhk-pedes", "ICFG-PEDES": "icfg-pedes", "RSTPReid": "rstpreid"}
OPTIMIZERS = {"Adam": "adam", "AdamW": "adamw", "Adamw": "adamw", "SGD": "sgd"}
SAMPLERS = {"identity": "identity-released"}
"""The released identity sampler; `identity` of our own is another, which the released programs lack."""
SCHEDULES = {"poly": "poly-released", "poly-decay": "poly"}
"""The released `poly` rises again; the usual decay, which the released programs lack, gets a name of its own."""


@dataclass(frozen=True)
class Flag:
    """One published flag and the config key that it sets."""

    key: str
    """Dotted config key."""
    to_config: Callable[[Any], Any] = lambda value: value
    """Published value -> ours."""
    from_config: Callable[[Any], Any] = lambda value: value
    """Our value -> published."""


def _renamed(names: Mapping[str, str]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    back = {ours: theirs for theirs, ours in reversed(list(names.items()))}
    return lambda value: names.get(str(value), value), lambda value: back.get(value, value)


FLAGS: dict[str, Flag] = {
    "name": Flag("name"),
    "output_dir": Flag("output_dir"),
    "log_period": Flag("loop.log_period_steps"),
    "eval_period": Flag("loop.eval_period_epochs"),
    "val_dataset": Flag("data.select_on"),
    "pretrain_choice": Flag("backbone.name"),
    "temperature": Flag("loss.temperature"),
    "depth": Flag("prompts.depth"),
    "n_ctx": Flag("prompts.length"),
    "cmt_depth": Flag("mlm.cmt_depth"),
    "lr_factor": Flag("optim.head_lr_factor"),
    "stride_size": Flag("backbone.stride"),
    "text_length": Flag("data.caption_length"),
    "optimizer": Flag("optim.name", *_renamed(OPTIMIZERS)),
    "lr": Flag("optim.lr"),
    "bias_lr_factor": Flag("optim.bias_lr_factor"),
    "momentum": Flag("optim.momentum"),
    "weight_decay": Flag("optim.weight_decay"),
    "weight_decay_bias": Flag("optim.weight_decay_bias"),
    "alpha": Flag("optim.beta1"),
    "beta": Flag("optim.beta2"),
    "num_epoch": Flag("loop.num_epochs"),
    "milestones": Flag("optim.milestones", from_config=list),
    "gamma": Flag("optim.gamma"),
    "warmup_factor": Flag("optim.warmup_factor"),
    "warmup_epochs": Flag("optim.warmup_epochs"),
    "warmup_method": Flag("optim.warmup_method"),
    "lrscheduler": Flag("optim.schedule", *_renamed(SCHEDULES)),
    "target_lr": Flag("optim.target_lr"),
    "power": Flag("optim.power"),
    "dataset_name": Flag("data.dataset", *_renamed(DATASETS)),
    "sampler": Flag("data.sampler", *_renamed(SAMPLERS)),
    "num_instance": Flag("data.instances"),
    "root_dir": Flag("data.root"),
    "batch_size": Flag("data.batch_size"),
    "test_batch_size": Flag("data.eval_batch_size"),
    "num_workers": Flag("data.num_workers"),
}
"""Flags that set one key. Those that set several are handled in `from_published`."""

NO_AUGMENTATION = {"augment.pad_pixels": 0, "augment.erase_probability": 0.0}


def recipe_of(flags: Mapping[str, Any]) -> str:
    """The recipe that published flags belong to: IRRA has masked language modelling and no prompts."""
    return IRRA if flags.get("MLM") and not {"depth", "n_ctx"} & flags.keys() else REFERENCE


def from_published(flags: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Config overrides (dotted key -> value) for published flags.

    Args:
        flags: flag name without dashes -> value, as the command line or a released configs.yaml gives them. Flags
            left out change nothing; `img_aug` false switches cropping and erasing off.
        weights: the recipe's losses, which `id_loss_weight` and `mlm_loss_weight` change where `loss_names` is left
            out.

    Raises:
        CsktError: a value that the method cannot take, with the reason.
    """
    overrides = {FLAGS[name].key: FLAGS[name].to_config(value) for name, value in flags.items() if name in FLAGS}
    if "img_size" in flags:
        overrides["backbone.image_height"], overrides["backbone.image_width"] = _two_sizes(flags["img_size"])
    if "loss_names" in flags or weights:
        overrides["loss.weights"] = _loss_weights(flags, weights or {})
    if flags.get("MLM"):
        overrides["mlm.masked_for_all"] = True  # the released loader masks the captions themselves ...
        overrides["mlm.without_loss"] = "mlm" not in overrides.get("loss.weights", {"mlm"})  # ... whatever the losses
    if flags.get("optimizer") is not None:
        overrides["optim.eps"] = 1e-3 if overrides["optim.name"] == "adam" else 1e-8
    if flags.get("img_aug") is False:
        overrides |= NO_AUGMENTATION
    if flags.get("temperature") == 0:
        raise CsktError("temperature 0: sdm and itc divide by it; give a positive one such as 0.02")
    if flags.get("vocab_size", 49408) != 49408:
        raise CsktError(f"vocab_size {flags['vocab_size']}: CLIP's vocabulary has 49408 tokens; leave the flag out")
    return overrides


def to_published(config: RunConfig, architecture: ClipArchitecture | None = None) -> dict[str, Any]:
    """Return a config in the flat form of the released programs, for `test.py` and for people who know it.

    Args:
        config: the config.
        architecture: of the model, whose image size and stride are then written as numbers; without it, what the
            config leaves to the weight file is left out or None.
    """
    values = {key: value_of(config, key) for key, _ in flat_fields()}
    flat = {name: flag.from_config(values[flag.key]) for name, flag in FLAGS.items()}
    if config.prompts.directions == "none":
        del flat["depth"], flat["n_ctx"]
    weights = config.loss.weights
    size = [values["backbone.image_height"], values["backbone.image_width"]]
    if architecture is not None:
        size, flat["stride_size"] = [architecture.image_height, architecture.image_width], architecture.stride
    if None not in size:  # else the weight file's own, which the flat form has no word for
        flat["img_size"] = size
    return flat | {
        "img_aug": values["augment.pad_pixels"] > 0 or values["augment.erase_probability"] > 0,
        "MLM": "mlm" in weights or values["mlm.without_loss"],
        "loss_names": "+".join(weights),
        "id_loss_weight": weights.get("id", 1.0),
        "mlm_loss_weight": weights.get("mlm", 1.0),
        "vocab_size": 49408,
    }


def _loss_weights(flags: Mapping[str, Any], recipe: Mapping[str, float]) -> dict[str, Any]:
    weights: dict[str, Any] = dict(recipe)
    if "loss_names" in flags:
        weights = {name: 1.0 for name in str(flags["loss_names"]).split("+") if name}
    for name in weights.keys() & {"id", "mlm"}:
        weights[name] = flags.get(f"{name}_loss_weight", weights[name])
    return weights


def _two_sizes(value: Any) -> tuple[int, int]:
    words = str(value).replace(",", " ").strip("()[] ").split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        raise CsktError(f"img_size {value!r}: give height and width, as in --img_size 384,128")
    return int(words[0]), int(words[1])
