"""Flags of the released CSKT and IRRA programs and the config keys that they set, for both directions.

`train.py`, the flat `configs.yaml` of a run and the reader of released folders all use this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cskt.config import ClipArchitecture, RunConfig, flat_values
from cskt.config.architecture import VOCAB_SIZE
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
    """One published flag."""

    key: str | None
    """Dotted config key that it sets; None for the flags that `from_published` handles itself."""
    help: str
    to_config: Callable[[Any], Any] = lambda value: value
    """Published value -> ours."""
    from_config: Callable[[Any], Any] = lambda value: value
    """Our value -> published."""


def _renamed(names: Mapping[str, str]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    back = {ours: theirs for theirs, ours in reversed(list(names.items()))}
    return lambda value: names.get(str(value), value), lambda value: back.get(value, value)


FLAGS: dict[str, Flag] = {
    "name": Flag("name", "name of the run"),
    "output_dir": Flag("output_dir", "folder that receives <dataset>/<time>_<name>"),
    "log_period": Flag("loop.log_period_steps", "steps between log lines"),
    "eval_period": Flag("loop.eval_period_epochs", "epochs between evaluations"),
    "val_dataset": Flag(
        "data.select_on",
        "val (default here) or test: the split that picks the best epoch; test is the published protocol",
    ),
    "pretrain_choice": Flag("backbone.name", "CLIP backbone: ViT-B/16, a path, ..."),
    "temperature": Flag("loss.temperature", "temperature of sdm and itc"),
    "depth": Flag("prompts.depth", "blocks with prompts of their own"),
    "n_ctx": Flag("prompts.length", "prompts per tower and block"),
    "lr_factor": Flag("optim.head_lr_factor", "rate of heads that start at random, relative to lr"),
    "loss_names": Flag(None, "losses joined by +: sdm, itc, cmpm, id, triplet, tal; mlm beside --MLM"),
    "id_loss_weight": Flag(None, "weight of the id loss"),
    "mlm_loss_weight": Flag(None, "weight of the mlm loss"),
    "cmt_depth": Flag("mlm.cmt_depth", "blocks of the mlm loss's interaction encoder"),
    "img_size": Flag(None, "height,width in pixels"),
    "stride_size": Flag("backbone.stride", "distance between patches in pixels (obeyed here)"),
    "text_length": Flag("data.caption_length", "most tokens of a caption"),
    "vocab_size": Flag(None, f"{VOCAB_SIZE}, CLIP's"),
    "optimizer": Flag("optim.name", "Adam (eps 1e-3), AdamW (eps 1e-8) or SGD", *_renamed(OPTIMIZERS)),
    "lr": Flag("optim.lr", "base learning rate"),
    "bias_lr_factor": Flag("optim.bias_lr_factor", "rate of biases, relative to lr"),
    "momentum": Flag("optim.momentum", "momentum of SGD"),
    "weight_decay": Flag("optim.weight_decay", "weight decay"),
    "weight_decay_bias": Flag("optim.weight_decay_bias", "weight decay of biases"),
    "alpha": Flag("optim.beta1", "Adam's beta 1"),
    "beta": Flag("optim.beta2", "Adam's beta 2"),
    "num_epoch": Flag("loop.num_epochs", "epochs"),
    "milestones": Flag(
        "optim.milestones", "epochs after which the step schedule multiplies the rate by gamma", from_config=list
    ),
    "gamma": Flag("optim.gamma", "factor of the step schedule"),
    "warmup_factor": Flag("optim.warmup_factor", "share of the rate that warm-up starts from"),
    "warmup_epochs": Flag("optim.warmup_epochs", "epochs of warm-up"),
    "warmup_method": Flag("optim.warmup_method", "linear or constant"),
    "lrscheduler": Flag("optim.schedule", "cosine, step, exp, linear or poly", *_renamed(SCHEDULES)),
    "target_lr": Flag("optim.target_lr", "rate at the end of cosine and poly"),
    "power": Flag("optim.power", "exponent of poly"),
    "dataset_name": Flag("data.dataset", "CUHK-PEDES, ICFG-PEDES or RSTPReid", *_renamed(DATASETS)),
    "sampler": Flag(
        "data.sampler", "random, or identity: people and steps drawn as the released program does", *_renamed(SAMPLERS)
    ),
    "num_instance": Flag("data.instances", "pairs of one identity in a batch of the identity sampler"),
    "root_dir": Flag("data.root", "folder that holds the data set's folder"),
    "batch_size": Flag("data.batch_size", "pairs per step"),
    "test_batch_size": Flag("data.eval_batch_size", "images or captions encoded at once"),
    "num_workers": Flag("data.num_workers", "threads that decode images"),
}
"""Flags of the released train.py that take a value, by name."""
KEYS = {flag.key: name for name, flag in FLAGS.items() if flag.key}
"""Config key -> flag that sets it."""

NO_AUGMENTATION = {"augment.pad_pixels": 0, "augment.erase_probability": 0.0}


def recipe_of(flags: Mapping[str, Any]) -> str:
    """Return the recipe of published flags: IRRA has masked language modelling and no prompts."""
    return IRRA if flags.get("MLM") and not {"depth", "n_ctx"} & flags.keys() else REFERENCE


def from_published(flags: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return config overrides (dotted key -> value) for published flags.

    Args:
        flags: flag name without dashes -> value, as the command line or a released configs.yaml gives them. Flags
            left out change nothing; `img_aug` false switches cropping and erasing off.
        weights: the recipe's losses, which `id_loss_weight` and `mlm_loss_weight` change where `loss_names` is left
            out.

    Raises:
        CsktError: a value that the method cannot take, with the reason.
    """
    overrides = {
        flag.key: flag.to_config(value) for name, value in flags.items() if (flag := FLAGS.get(name)) and flag.key
    }
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
    if flags.get("vocab_size", VOCAB_SIZE) != VOCAB_SIZE:
        raise CsktError(
            f"vocab_size {flags['vocab_size']}: CLIP's vocabulary has {VOCAB_SIZE} tokens; leave the flag out"
        )
    return overrides


def to_published(config: RunConfig, architecture: ClipArchitecture | None = None) -> dict[str, Any]:
    """Return a config in the flat form of the released programs, for `test.py` and for people who know it.

    Args:
        config: the config.
        architecture: of the model, whose image size and stride are then written as numbers; without it, what the
            config leaves to the weight file is left out or None.
    """
    values = flat_values(config)
    flat = {name: FLAGS[name].from_config(values[key]) for key, name in KEYS.items()}
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
        "vocab_size": VOCAB_SIZE,
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
    if len(words) != 2 or not all(word.isdecimal() and len(word) < 10 for word in words):
        raise CsktError(f"img_size {value!r}: give height and width, as in --img_size 384,128")
    return int(words[0]), int(words[1])
