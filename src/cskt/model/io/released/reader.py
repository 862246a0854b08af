"""Reader of folders of the released CSKT and IRRA programs: `configs.yaml` and `best.pth`, with the whole backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from cskt.config import ClipArchitecture, RunConfig, merge, nest, read_recipe, resolve_recipe, validate
from cskt.config.file_names import RELEASED_CONFIG, RELEASED_WEIGHTS
from cskt.config.plain_yaml import PlainLoader, plain_yaml
from cskt.config.released_flags import IRRA, REFERENCE, from_published, recipe_of
from cskt.config.types import WeightsChoice
from cskt.errors import CsktError, file_system_errors
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.checkpoints import named_tensors
from cskt.model.io.layouts import RELEASED, TRAINING_ONLY, openai_heads, read_sizes, released_name
from cskt.model.io.tensors import load_checkpoint
from cskt.model.io.weights import gather


@dataclass(frozen=True)
class Released:
    """A trained CSKT or IRRA, saved by its authors' program."""

    config: RunConfig
    """`cskt-reference` or `irra` with the settings of the folder's configs.yaml; data.root may be a folder of another
    machine."""
    architecture: ClipArchitecture
    state: dict[str, Tensor]
    """Every parameter of `DualEncoder`, our names, float32."""


def read_released(folder: Path, choice: WeightsChoice = "model") -> Released:
    """Read a released folder strictly, without the heads that only the losses `id` and `mlm` need.

    The method, its depth, its length and all sizes are read from the tensors; configs.yaml gives the image size and
    must not contradict them. `choice`: which weights, where the file also holds their moving average.
    """
    flags = _read_flags(folder / RELEASED_CONFIG)
    path = next((folder / name for name in RELEASED_WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CsktError(f"{folder}: no weights; expected {' or '.join(RELEASED_WEIGHTS)}")
    saved = named_tensors(load_checkpoint(path), path, choice)
    tensors = {name: value for name, value in saved.items() if not name.startswith(TRAINING_ONLY)}
    is_cskt = any(name.startswith("prompt_learner.") or ".adapter_mlp." in name for name in tensors)
    found = _read_method(tensors, path) if is_cskt else {}
    for flag, key in (("depth", "prompts.depth"), ("n_ctx", "prompts.length")):
        if flag in flags and flags[flag] != found.get(key):
            has = f"has {found[key]}" if is_cskt else "holds no prompts"
            raise CsktError(f"{folder / RELEASED_CONFIG}: {flag} {flags[flag]} contradicts {path.name}, which {has}")
    config = _config(REFERENCE if is_cskt else IRRA, flags, found, folder / RELEASED_CONFIG)
    architecture = _architecture(read_sizes(tensors, RELEASED, str(path)), config, path)
    with torch.device("meta"):
        model = DualEncoder(architecture, config.method)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return Released(config, architecture, gather(tensors, shapes, RELEASED, origin=str(path)))


def read_released_config(folder: Path) -> RunConfig:
    """Read the configs.yaml of a released folder, without its weights."""
    flags = _read_flags(folder / RELEASED_CONFIG)
    return _config(recipe_of(flags), flags, {}, folder / RELEASED_CONFIG)


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


def _read_method(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Return the config keys that the shapes of the method's tensors determine."""
    first, adapter = released_name("prompts.text.0"), released_name("adapters.vision.0.down.weight")
    for name in (first, adapter):
        if name not in tensors or tensors[name].ndim != 2 or 0 in tensors[name].shape:
            raise CsktError(f"{path}: not a CSKT checkpoint: no matrix '{name}'")
    later = released_name("prompts.text.1").removesuffix("0")
    bottleneck, width = tensors[adapter].shape
    return {
        "prompts.depth": 1 + sum(name.startswith(later) for name in tensors),
        "prompts.length": tensors[first].shape[0],
        "adapters.reduction": max(1, width // bottleneck),
    }


def _config(recipe: str, flags: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> RunConfig:
    try:
        overrides = from_published(flags)
    except CsktError as error:
        raise CsktError(f"{path}: {error}") from None
    return validate(RunConfig, merge(read_recipe(resolve_recipe(recipe)), nest({**overrides, **found})), str(path))


def _architecture(sizes: Mapping[str, int], config: RunConfig, path: Path) -> ClipArchitecture:
    height, width = config.backbone.image_height, config.backbone.image_width
    stride = config.backbone.stride or sizes["patch_size"]
    fields: dict[str, Any] = {key: value for key, value in sizes.items() if key != "num_patches"}
    fields |= openai_heads(sizes) | {"image_height": height, "image_width": width, "stride": stride}
    architecture = validate(ClipArchitecture, fields, str(path))
    rows, columns = architecture.grid
    if rows * columns != sizes["num_patches"]:
        raise CsktError(
            f"{path}: {sizes['num_patches']} patch positions do not fit the {rows} x {columns} patches of"
            f" {RELEASED_CONFIG} (img_size {height} x {width}, stride_size {stride})"
        )
    return architecture
