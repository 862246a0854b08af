"""Reader of folders of released programs: `configs.yaml` and `best.pth`, or `checkpoint_best.pth` alone, with the whole
backbone. `methods` describes the programs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from cskt.config import ClipArchitecture, RunConfig, merge, nest, read_recipe, resolve_recipe, validate
from cskt.config.file_names import CONFIG, RELEASED_CONFIG, RELEASED_WEIGHTS
from cskt.config.plain_yaml import PlainLoader, plain_yaml
from cskt.config.released_flags import FLAGS, from_published, recipe_of
from cskt.config.types import WeightsChoice
from cskt.errors import CsktError, file_system_errors
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.checkpoints import named_tensors
from cskt.model.io.layouts import TOWERS, openai_heads, read_sizes, replaced
from cskt.model.io.released.methods import METHODS, Checkpoint, ReleasedMethod, method_of, method_of_options
from cskt.model.io.tensors import load_checkpoint, stored_names
from cskt.model.io.weights import IGNORED, gather_state
from cskt.utils.modules import named_tensors as model_tensors

logger = logging.getLogger(__name__)

ALONE = {RELEASED_WEIGHTS[2]: "tbps_clip"}
"""Files of weights that need no configs.yaml beside them -> the method whose code writes them."""
PROMPT_KEYS = {"prompts.depth", "prompts.length"}
INCOMPLETE = "unknown tensors left out: not the full score of the method"
"""Note of the scores of a folder that was read with `ignore_extra`."""
MAX_GROUPS = 4
"""Modules of unknown tensors that a message describes."""


@dataclass(frozen=True)
class Released:
    """A trained model of a known method, saved by its authors' program."""

    config: RunConfig
    """Recipe of the method with the settings of tensors and configs.yaml; data.root may be of another machine."""
    architecture: ClipArchitecture
    state: dict[str, Tensor]
    """Every parameter and buffer of `DualEncoder`, our names, float32."""
    note: str = ""
    """A condition that a reader of its scores must know."""


def is_released(path: Path) -> bool:
    """Return whether a path is a released folder, which has no config of a run, or a file of weights in one."""
    if path.is_file():
        return path.name in RELEASED_WEIGHTS and (path.name in ALONE or path.with_name(RELEASED_CONFIG).is_file())
    if (path / CONFIG).is_file():
        return False
    return (path / RELEASED_CONFIG).is_file() or any((path / name).is_file() for name in ALONE)


def read_released(path: Path, choice: WeightsChoice = "model", *, ignore_extra: bool = False) -> Released:
    """Read a released folder, or one file of its weights, strictly, without tensors that only losses need.

    The method and its sizes are read from the tensors (`methods.METHODS`); configs.yaml gives the image size and what
    no tensor determines, and must not contradict them.

    Args:
        path: the folder, whose first file of `RELEASED_WEIGHTS` is read, or one of these files.
        choice: which weights, where the file also holds their moving average.
        ignore_extra: leave out tensors that the method does not have, with a warning.

    Raises:
        CsktError: a file that cannot be read, that contradicts configs.yaml, or that lacks a tensor; tensors that no
            description has, and `ignore_extra` is false.
    """
    weights = released_weights(path)
    flags = _flags_beside(weights)
    tensors = named_tensors(load_checkpoint(weights), weights, choice)
    method = method_of(tensors)
    if method is None:
        first = min(tensors)[:80]
        raise CsktError(f"{weights}: not a checkpoint of a known method; found tensors such as '{first}'")
    recipe = method.variant(tensors) or method.recipe
    tensors = {name: value for name, value in tensors.items() if not name.startswith(method.training_only)}
    tensors = _each_once(tensors, method, weights)
    sizes = read_sizes(tensors, method.layout, str(weights))
    found = method.settings(Checkpoint(method.title, tensors, sizes, str(weights)))
    _check_options(flags, found, method, weights)
    config = _config(method, recipe, flags, found, weights.with_name(RELEASED_CONFIG))
    architecture = _architecture(sizes, config, weights)
    try:
        with torch.device("meta"):
            own = model_tensors(DualEncoder(architecture, config.method))
    except CsktError as error:  # an option that no tensor determines, such as select_ratio or topk
        raise CsktError(f"{weights.with_name(RELEASED_CONFIG) if flags else weights}: {error}") from None
    expected = {source for name in own for source in method.layout.sources(name)}
    unused = method.unused(architecture)
    tensors = {name: value for name, value in tensors.items() if name in expected or name not in unused}
    if extra := {name: tensors[name] for name in tensors.keys() - expected if name.split(".")[-1] not in IGNORED}:
        described = describe_tensors(extra)
        if not ignore_extra:
            raise CsktError(
                f"{weights}: {described}; {method.title} has no such tensors: load the plug-in that describes their"
                " method (--plugin), or give --ignore-extra to load the rest, whose score is not that of the method"
            )
        logger.warning(
            "%s: left out %s; what remains is loaded as %s, so no score is the full score of the method",
            weights, described, method.title,
        )  # fmt: skip
        tensors = {name: value for name, value in tensors.items() if name not in extra}
    state = gather_state(tensors, own, origin=str(weights), layout=method.layout)
    return Released(config, architecture, state, INCOMPLETE if extra else "")


def read_released_config(path: Path) -> RunConfig:
    """Read the config of a released folder, or of a file of weights in one, without its weights.

    What only tensors determine is as in the recipe.
    """
    if path.is_dir() and not (path / RELEASED_CONFIG).is_file():
        path = released_weights(path)
    if path.name in ALONE and not path.with_name(RELEASED_CONFIG).is_file():
        alone = METHODS[ALONE[path.name]]
        return _config(alone, alone.variant(stored_names(path)) or alone.recipe, {}, {}, path)
    config = path / RELEASED_CONFIG if path.is_dir() else path.with_name(RELEASED_CONFIG)
    flags = _read_flags(config)
    method = method_of_options(flags)
    return _config(method or METHODS["irra"], method.recipe if method else recipe_of(flags), flags, {}, config)


def describe_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return what the tensors of unknown modules look like, by the first part of their names.

    `unknown tensors 'fusion.attn.in_proj_weight' [1536, 512] and 3 more (attention, linear layers)`
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(tensors):
        groups.setdefault(_module_of(name), []).append(name)
    clauses = []
    for names in list(groups.values())[:MAX_GROUPS]:
        largest = max(names, key=lambda name: tensors[name].numel())
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        looks = ", ".join(_looks_of({name: tensors[name] for name in names}))
        clauses.append(f"'{largest[:80]}' {list(tensors[largest].shape)}{more} ({looks})")
    further = sum(len(names) for names in list(groups.values())[MAX_GROUPS:])
    return (
        f"unknown tensor{'s' if len(tensors) > 1 else ''} {', '.join(clauses)}"
        + (f" and {further} in other modules" if further else "")
    )  # fmt: skip


def _module_of(name: str) -> str:
    """Return the module that a tensor is of: `fusion`, or `base_model.visual...adapter` without numbers of blocks."""
    if not name.startswith(TOWERS):
        return name.partition(".")[0]
    inside = name.partition(".resblocks.")[2].partition(".")[2]
    return f"{TOWERS}{inside.partition('.')[0]}" if inside else name


def _looks_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the kinds of layers that names and shapes suggest."""
    found = [
        (any(".resblocks." in name and name.startswith(TOWERS) for name in tensors), "inside the blocks of the towers"),
        (any(name.endswith("running_mean") for name in tensors), "batch normalisation"),
        (any("in_proj_weight" in name or "attn" in name for name in tensors), "attention"),
        (any(value.ndim == 4 for value in tensors.values()), "convolutions"),
        (any(value.ndim == 2 and name.endswith("weight") for name, value in tensors.items()), "linear layers"),
        (any(value.ndim >= 2 and not name.endswith("weight") for name, value in tensors.items()), "matrices or tokens"),
    ]
    return [kind for is_found, kind in found if is_found] or ["vectors or numbers"]


def released_weights(path: Path) -> Path:
    """Return the file of weights of a released folder, or the path itself if it is a file.

    Raises:
        CsktError: the folder has none.
    """
    if path.is_file():
        return path
    weights = next((path / name for name in RELEASED_WEIGHTS if (path / name).is_file()), None)
    if weights is None and (path / RELEASED_CONFIG).is_file():
        raise CsktError(f"{path}: no weights; expected {', '.join(RELEASED_WEIGHTS[:-1])} or {RELEASED_WEIGHTS[-1]}")
    return weights or path / RELEASED_WEIGHTS[0]


def _flags_beside(weights: Path) -> dict[str, Any]:
    config = weights.with_name(RELEASED_CONFIG)
    return {} if weights.name in ALONE and not config.is_file() else _read_flags(config)


def _each_once(tensors: Mapping[str, Tensor], method: ReleasedMethod, path: Path) -> dict[str, Tensor]:
    """Return the tensors under their first names."""
    once = dict(tensors)
    for name, value in tensors.items():
        if (first := replaced(name, method.twice)) == name:
            continue
        del once[name]
        other = once.setdefault(first, value)
        if not torch.equal(other, value):
            raise CsktError(f"{path}: tensors '{name[:80]}' and '{first[:80]}' are one, but their values differ")
    return once


def _check_options(flags: Mapping[str, Any], found: Mapping[str, Any], method: ReleasedMethod, weights: Path) -> None:
    options = FLAGS | dict(method.flags)
    for name, value in flags.items():
        key = options[name].key if name in options else None
        if key in (found.keys() | PROMPT_KEYS) and value != found.get(key or ""):
            has = f"has {found[key]}" if key in found else "holds no prompts"
            config = weights.with_name(RELEASED_CONFIG)
            raise CsktError(f"{config}: {name} {value} contradicts {weights.name}, which {has}")


class _Loader(PlainLoader):
    """Reads plain YAML and tuples, which the released programs write; any other Python object is refused."""

    def _tuple(self, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(self.construct_sequence(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader._tuple)


def _read_flags(path: Path) -> dict[str, Any]:
    try:
        with file_system_errors(path):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CsktError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    try:
        flags = plain_yaml(text, _Loader)
    except CsktError as error:
        raise CsktError(f"{path}: not plain YAML (no code in it was executed): {error}") from None
    if not isinstance(flags, dict):
        raise CsktError(f"{path}: expected 'key: value' lines, found {type(flags).__name__}")
    return flags


def _config(
    method: ReleasedMethod, recipe: str, flags: Mapping[str, Any], found: Mapping[str, Any], path: Path
) -> RunConfig:
    try:
        overrides = from_published({name: value for name, value in flags.items() if name not in method.flags})
    except CsktError as error:
        raise CsktError(f"{path}: {error}") from None
    ours: dict[str, Any] = {}
    for name, value in (overrides.pop("loss.weights", None) or {}).items():
        own = method.losses(name)
        ours |= {name: value} if own == {name: 1.0} else own
    overrides |= {"loss.weights": ours} if ours else {}
    for name, flag in method.flags.items():
        if name in flags and flag.key:
            overrides[flag.key] = flag.to_config(flags[name])
    return validate(RunConfig, merge(read_recipe(resolve_recipe(recipe)), nest({**overrides, **found})), str(path))


def _architecture(sizes: Mapping[str, int], config: RunConfig, path: Path) -> ClipArchitecture:
    height, width = config.backbone.image_height, config.backbone.image_width
    stride = config.backbone.stride or sizes["patch_size"]
    fields: dict[str, Any] = {key: value for key, value in sizes.items() if key != "num_patches"}
    fields |= openai_heads(sizes) | {"image_height": height, "image_width": width, "stride": stride}
    fields |= {key: value for key in ("image_mean", "image_std") if (value := getattr(config.backbone, key))}
    architecture = validate(ClipArchitecture, fields, str(path))
    rows, columns = architecture.grid
    if rows * columns != sizes["num_patches"]:
        raise CsktError(
            f"{path}: {sizes['num_patches']} patch positions do not fit the {rows} x {columns} patches of"
            f" {RELEASED_CONFIG} (img_size {height} x {width}, stride_size {stride})"
        )
    return architecture
