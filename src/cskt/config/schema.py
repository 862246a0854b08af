"""`RunConfig`, every number that changes a result, and its dotted keys.

The sections are in `model_sections` and `training_sections`: one frozen dataclass per topic. pydantic checks types and
ranges. The attribute docstrings are also the help texts of the flags.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Lt
from pydantic import BeforeValidator, SerializerFunctionWrapHandler, model_serializer, model_validator

from cskt.config.model_sections import AdapterConfig, BackboneConfig, LoraConfig, PromptConfig
from cskt.config.training_sections import AugmentConfig, DataConfig, LoopConfig, LossConfig, MlmConfig, OptimConfig
from cskt.config.types import (
    STRICT,
    Location,
    NonNegative,
    Plain,
    Precision,
    empty_if_none,
)
from cskt.errors import CsktError
from cskt.plugins import Requirement
from cskt.utils.checked import checked_dataclass


def _named(plugin: Any) -> Any:
    return {"name": plugin} if isinstance(plugin, str) else plugin


def _made_by_code(keys: Any) -> Any:
    if not isinstance(keys, frozenset):
        raise CsktError("is not a key of a config; delete it")
    return keys


@checked_dataclass(STRICT)
class RunConfig:
    """One training run. A recipe is such a file with most keys left out.

    Example:
        >>> cskt.RunConfig(seed=2).loop.num_epochs
        60
    """

    name: str = "cskt"
    """Name of the run; part of the run folder's name."""
    output_dir: Location = "logs"
    """Folder that receives <dataset>/<time>_<name>."""
    seed: Annotated[NonNegative, Lt(2**63)] = 1
    """Seed of initialisation, sampling and augmentation."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Precision = "fp32"
    """Arithmetic of the towers; weights stay float32, fp16 scales the loss."""
    trainable: Literal["added", "projections", "all", "none"] = "added"
    """added: the parts of the method (prompts, couplings, adapters, LoRA) | projections: these and the two output
    projections | all | none."""
    init_from: Location | None = None
    """Run folder, released folder, or file of `cskt export --merge`, whose weights training starts from: weights only,
    with a new optimizer and schedule; none for the start that the recipe describes."""
    frozen: tuple[str, ...] = ()
    """Parameters that do not train although `trainable` names them: beginnings of their names, such as vision.conv1."""
    backbone: BackboneConfig = BackboneConfig()
    prompts: PromptConfig = PromptConfig()
    adapters: AdapterConfig = AdapterConfig()
    lora: LoraConfig = LoraConfig()
    parts: dict[str, dict[str, Plain]] = dataclasses.field(default_factory=dict)
    """Further method parts, of the package or of plug-ins, by name, with the settings of each by field."""
    mlm: MlmConfig = MlmConfig()
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    data: DataConfig = DataConfig()
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    optim: OptimConfig = OptimConfig()
    loop: LoopConfig = LoopConfig()
    hooks: dict[str, Annotated[dict[str, Plain], BeforeValidator(empty_if_none)]] = dataclasses.field(
        default_factory=dict
    )
    """Hooks, of the package (noise_division) or of plug-ins, by name, with their fields: `hooks.<name>.<field>`."""
    plugins: tuple[Annotated[Requirement, BeforeValidator(_named)], ...] = ()
    """Plug-ins that losses, method parts and data come from: names in a recipe; a run records their digests as well."""

    adaptable: Annotated[frozenset[str], BeforeValidator(_made_by_code)] = dataclasses.field(
        default=frozenset(), compare=False, repr=False
    )
    """Keys whose values nobody gave, which training may fit to the amount of data; no file has this field."""

    @property
    def is_trainable(self) -> bool:
        """False for a recipe with nothing to train (zero-shot CLIP), which is only evaluated and saved."""
        return self.trainable != "none"

    @property
    def keeps_last_epoch(self) -> bool:
        """True if the last epoch is reported beside the best one, as the protocol for noisy pairs does."""
        has_noise = self.data.noise_rate > 0 or self.data.noise_file is not None
        return self.is_trainable and (self.loop.keep_last_epoch or has_noise)

    @property
    def method(self) -> dict[str, Any]:
        """Config of every method part, by the part's name."""
        return {name: getattr(self, name) for name in METHOD_SECTIONS} | self.parts

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        for name in self.parts:
            if name in METHOD_SECTIONS:
                raise CsktError(f"parts.{name}: the settings of {name} are the section {name}; move them there")
        return self

    @model_serializer(mode="wrap")
    def _without_plugins(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = dump(self)
        del written["adaptable"]
        return {key: value for key, value in written.items() if value or key not in ("hooks", "parts", "plugins")}


NO_METHOD: dict[str, Any] = {
    "prompts": PromptConfig(directions="none"), "adapters": AdapterConfig(sides="none"), "lora": LoraConfig(),
}  # fmt: skip
"""Sections of a `RunConfig` that is plain CLIP."""
METHOD_SECTIONS = tuple(NO_METHOD)
"""Method parts with a config section of their own, which has their name; the others are in the section `parts`."""


OPEN = {"loss.constants", "hooks", "parts", "plugins", "adaptable"}
"""Fields that have no flag: the settings of plug-ins have one each, `loss.<name>.<field>`, `parts.<name>.<field>`."""


def flat_fields(config_class: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield dotted name and field of every leaf of a config class, in order (`optim.lr`, ...), but for `OPEN`."""
    for item in dataclasses.fields(config_class):
        default = item.default_factory() if callable(item.default_factory) else item.default
        if dataclasses.is_dataclass(default):
            yield from flat_fields(type(default), f"{prefix}{item.name}.")
        elif prefix + item.name not in OPEN:
            yield prefix + item.name, item


def flat_values(config: RunConfig) -> dict[str, Any]:
    """Return the value of every dotted key, those of plug-ins (`loss.<name>.<field>`, `hooks.<name>`) included."""
    values = {key: value_of(config, key) for key, _ in flat_fields()}
    for section, by_name in (("loss", config.loss.constants), ("parts", config.parts)):
        for name, settings in by_name.items():
            values |= {f"{section}.{name}.{field}": value for field, value in settings.items()}
    for name, settings in config.hooks.items():
        values |= {f"hooks.{name}": "used"} | {f"hooks.{name}.{field}": value for field, value in settings.items()}
    return values


def value_of(config: RunConfig, key: str) -> Any:
    """Return the value of a dotted key (`optim.lr`); of a method part's setting None where the config has none."""
    if key.startswith("parts."):
        _, part, setting = key.split(".", 2)
        return config.parts.get(part, {}).get(setting)
    return functools.reduce(getattr, key.split("."), config)
