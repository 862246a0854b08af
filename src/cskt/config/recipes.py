"""Recipes and config files: find, merge, check and write them.

A pydantic error becomes one line that names the key and, for an unknown key, the nearest known one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from cskt.config.architecture import CLIP_MEAN, CLIP_STD, ClipArchitecture
from cskt.config.fitting import FROM_RUN, KEYS, backbone_fits, model_of_run, stated_keys
from cskt.config.model_sections import RECORDED
from cskt.config.plain_yaml import read_yaml
from cskt.config.schema import NO_METHOD, RunConfig, flat_fields
from cskt.config.types import Interpolation
from cskt.errors import CsktError
from cskt.utils.arguments import expect
from cskt.utils.checked import describe, main_fault
from cskt.utils.messages import nearest
from cskt.utils.paths import expanded

Config = TypeVar("Config")
WHOLE = ("weights", "ops", "views")
"""Keys of mappings of which a recipe gives all entries, not those that differ from its base: losses, operations on
images and views of them."""
RECIPES = Path(str(resources.files("cskt"))) / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def continues_run(path: Path) -> bool:
    """Return whether a recipe takes its model from the run that training starts from."""
    return read_yaml(path).get("base") == FROM_RUN


def resolve_recipe(name_or_path: str | Path) -> Path:
    """Return the file of a recipe given by name (`cskt`, `irra`) or by path."""
    expect(name_or_path, (str, Path), "a recipe")
    path = expanded(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        shipped = RECIPES / path.name
        is_shipped = path.parent in (Path(), Path("recipes")) and shipped.is_file()
        return shipped if is_shipped and not path.is_file() else path
    if str(name_or_path) in recipe_names():
        return RECIPES / f"{name_or_path}.yaml"
    raise CsktError(f"unknown recipe '{name_or_path}': {nearest(str(name_or_path), recipe_names())}")


class Layer(NamedTuple):
    """Values of one file."""

    content: dict[str, Any]
    is_shipped: bool
    """True for a recipe of the package or the run of `init_from`, False for a file of the user."""


def read_layers(path: Path, init_from: str | None = None) -> list[Layer]:
    """Read a recipe and the ones below it that `base` names, whose values it overrides.

    The base `init_from` is the run that training starts from (see `fitting.model_of_run`).

    Raises:
        CsktError: see `read_yaml`; a base that is unknown, or that is its own base.
    """
    layers: list[Layer] = []
    content, here, seen = read_yaml(path), path, {path.resolve()}
    while True:
        base = content.pop("base", None)
        layers.append(Layer(content, here.parent == RECIPES))
        init_from = init_from or content.get("init_from")
        if base is None:
            return layers
        if base == FROM_RUN:
            return [*layers, Layer(model_of_run(init_from, here.stem), True)]
        try:
            below = resolve_recipe(str(base))
        except CsktError as error:
            raise CsktError(f"{here}: base: {error}") from None
        if not below.is_file() and (here.parent / below).is_file():
            below = here.parent / below
        if below.resolve() in seen:
            raise CsktError(f"{here}: base: {base} is laid over itself")
        seen.add(below.resolve())
        content, here = read_yaml(below), below


def read_recipe(path: Path, init_from: str | None = None) -> dict[str, Any]:
    """Read a recipe, merged into the ones below it; see `read_layers`."""
    return _merged(read_layers(path, init_from))


def _merged(layers: Iterable[Layer]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for layer in layers:
        content = merge(layer.content, content)
    return content


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `override`; nested mappings merge, but those of `WHOLE` are replaced whole."""
    merged = dict(base)
    for key, value in override.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and key not in WHOLE:
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return {'optim.lr': 1} as {'optim': {'lr': 1}}; for equal keys the later value counts."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        for part in reversed(dotted.split(".")):
            value = {part: value}  # noqa: PLW2901  (wrapped from the inside out)
        nested = merge(nested, value)
    return nested


def load_config(
    source: str | Path | Mapping[str, Any] | RunConfig, overrides: Mapping[str, Any] | None = None, *, fit: bool = True
) -> RunConfig:
    """Return a checked `RunConfig` from a recipe's name, a YAML file, a mapping or another config.

    Args:
        source: recipe name, path of a YAML file, or its content. Keys left out keep their defaults.
        overrides: dotted key -> value that replaces the one of the source (`{"optim.lr": 1e-4}`).
        fit: values that neither a file of the user nor `overrides` state are fitted: here to the backbone, if the
            recipe was written for another one, and by training to the amount of data. False: all stay as they are.

    Raises:
        CsktError: an unknown key (with the nearest one), a wrong type or a value out of range; names the key.

    Example::

        >>> import cskt
        >>> cskt.load_config("cskt", {"optim.lr": 1e-4}).optim.lr
        0.0001
    """
    expect(overrides, (Mapping, type(None)), "overrides")
    changes = nest(overrides or {})
    shipped: dict[str, Any] = {}
    if isinstance(source, RunConfig):
        content, config, given = to_dict(source), source, KEYS - source.adaptable
    elif isinstance(source, Mapping):
        content, config, given = dict(source), validate(RunConfig, source, "config"), stated_keys(source)
    else:
        path = resolve_recipe(source)
        layers = read_layers(path, changes.get("init_from"))
        content, shipped = _merged(layers), _merged(layer for layer in layers if layer.is_shipped)
        given = stated_keys(_merged(layer for layer in layers if not layer.is_shipped))
        config = validate(RunConfig, content, str(path))  # before the overrides, so that a message names the right one
    if changes:
        content, given = merge(content, changes), given | stated_keys(changes)
        config = validate(RunConfig, content, "overrides")
    if not fit:
        return dataclasses.replace(config, adaptable=frozenset())
    if shipped and (fitting := backbone_fits(config, shipped, given)):
        config = validate(RunConfig, merge(content, nest(fitting)), "")
    return dataclasses.replace(config, adaptable=frozenset(KEYS - given))


def validate(
    config_class: type[Config], content: Mapping[str, Any], origin: str, *, spelled: Callable[[str], str] = str
) -> Config:
    """Return `content` as an instance of a config class; see `load_config` for the errors.

    Args:
        config_class: a pydantic dataclass.
        content: values by key.
        origin: start of an error, a file for example; empty for none.
        spelled: key -> its name in errors.
    """
    try:
        return TypeAdapter(config_class).validate_python(dict(content))
    except ValidationError as error:
        reason = describe(main_fault(error), config_class, lambda key: _nearest_key(key, config_class), spelled)
        raise CsktError(f"{origin}: {reason}" if origin else reason) from None


def validate_value(annotation: Any, value: Any, key: str) -> Any:
    """Return a value as the type of an annotation, within its limits; a CsktError names `key`."""
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise CsktError(f"{key}: {describe(main_fault(error), RunConfig, str)}") from None


def _nearest_key(key: str, config_class: type) -> str:
    """Return a clause that names the key with that last part, or the nearest key, or those of its section."""
    known = [name for name, _ in flat_fields(config_class)]
    if config_class is RunConfig:
        known += [name for name, _ in flat_fields(ClipArchitecture, "backbone.architecture.")]
    if same_end := [name for name in known if name.endswith(f".{key}")]:
        return f"did you mean '{same_end[0]}'?"
    section = key.rpartition(".")[0]
    if not section:
        known += {name.split(".")[0] for name in known if "." in name}
    clause = nearest(key, known)
    neighbours = [name for name in known if name.rpartition(".")[0] == section]
    return clause if clause.startswith("did") else nearest(key, neighbours)


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain mappings, lists and scalars, from which `load_config` makes an equal one."""
    plain: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def save_config(config: RunConfig, path: Path) -> None:
    """Write the whole config, defaults included, as YAML."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def with_method(config: RunConfig, method: Mapping[str, Any]) -> RunConfig:
    """Return a config with these method parts and no others.

    Args:
        config: the rest of the config.
        method: name of each part -> its config, as `DualEncoder.method`.
    """
    own = {name: method.get(name, none) for name, none in NO_METHOD.items()}
    return dataclasses.replace(config, **own, parts={name: to_dict(method[name]) for name in method if name not in own})


def evaluation_interpolation(config: RunConfig) -> Interpolation:
    """Return the filter that resizes the images of a run in evaluation and search."""
    return config.data.eval_interpolation or config.backbone.interpolation


def as_trained(config: RunConfig) -> RunConfig:
    """Return the config of a run with CLIP's normalisation if it has none: older runs did not record it."""
    return _completed(config, {"image_mean": CLIP_MEAN, "image_std": CLIP_STD})


def completed_like(config: RunConfig, other: RunConfig) -> RunConfig:
    """Return a config whose empty `RECORDED` fields of the backbone are those of another config."""
    return _completed(config, {key: getattr(other.backbone, key) for key in RECORDED})


def _completed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    missing = {key: value for key, value in values.items() if getattr(config.backbone, key) is None}
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, **missing))
