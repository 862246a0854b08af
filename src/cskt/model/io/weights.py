"""Backbones: find a CLIP's weight file, read it strictly, resize its positions to the images, copy it into a model.

Strict means that every tensor is there, none is left over, and each has its shape and only finite real numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import BackboneConfig, ClipArchitecture, to_dict, validate
from cskt.config.architecture import MIN_VOCAB_SIZE, VOCAB_SIZE
from cskt.config.file_names import RELEASED_CONFIG, RELEASED_WEIGHTS
from cskt.errors import CsktError
from cskt.model.clip import TextTower, VisionTower
from cskt.model.io import cache
from cskt.model.io.json_configs import Preprocessing
from cskt.model.io.layouts import (
    IRRA_TOWERS,
    OPENAI,
    OURS,
    TOWERS,
    TRAINING_ONLY,
    Layout,
    layout_of,
    openai_heads,
    read_sizes,
    recognise,
)
from cskt.model.io.native import TOKEN_EMBEDDING, kind_of, read_backbone
from cskt.model.io.released.methods import METHODS, method_of
from cskt.model.io.tensors import is_safetensors, is_torchscript_file, read_tensors
from cskt.utils.modules import named_tensors

logger = logging.getLogger(__name__)

IGNORED = ("input_resolution", "context_length", "vocab_size", "logit_scale", "attn_mask", "position_ids")
"""Last part of the names of tensors that files have beside the weights: sizes, the temperature, masks, counters."""


@dataclass(frozen=True)
class Backbone:
    """The weights of a CLIP, ready for images of the size that was asked for."""

    name: str
    """As the config has it."""
    architecture: ClipArchitecture
    """With the image size and stride that were asked for."""
    state: dict[str, Tensor]
    """`vision.*` and `text.*` of `DualEncoder`, float32, positions already resized."""
    sha256: str
    """Digest of the weight file."""
    known_token_ids: frozenset[int] | None
    """The only tokens whose embeddings the file holds; None if it holds all."""


def load_backbone(config: BackboneConfig, *, sha256: str | None = None) -> Backbone:
    """Find and read the backbone that a config names, by default at the image size of the file.

    Args:
        sha256: digest that the file must have; a file of the cache that has it replaces a name that is not found or
            names another file.

    Raises:
        CsktError: not found (says which file to put where), corrupt, incomplete, of an unknown kind, or another file
            than `sha256` asks for.
    """
    path, found_sha256 = _find(config.name, sha256)
    known_token_ids = None
    if _is_ours(path):
        ours = read_backbone(path)
        if config.weights == "ema":
            raise CsktError(f"{path}: holds no moving average of the weights; leave out --weights ema")
        tensors, layout, architecture, known_token_ids = ours.tensors, OURS, ours.architecture, ours.known_token_ids
        preprocessing = Preprocessing(interpolation=ours.facts.get("interpolation"), source=path)
    else:
        tensors = read_tensors(path, config.weights)
        _check_untrained(tensors, path)
        tensors = _without_heads(tensors, layout_of(tensors, path), path)
        tensors = _without_appended_tokens(tensors, layout_of(tensors, path), path)
        layout, architecture, preprocessing = recognise(tensors, path, config, found_sha256)
        if MIN_VOCAB_SIZE <= architecture.vocab_size < VOCAB_SIZE:  # the file does not say that its merges are CLIP's
            problem = f"the backbone has {architecture.vocab_size} tokens; the tokenizer is CLIP's"
            raise CsktError(f"{path}: {problem}, with {VOCAB_SIZE}")
    preprocessing.log_other_filter(config)
    state = gather(tensors, tower_shapes(architecture), layout, origin=str(path), remedy="; a backbone is plain CLIP")
    fields = ("image_height", "image_width", "stride", "image_mean", "image_std")
    asked = {key: value for key in fields if (value := getattr(config, key))}
    fitted = validate(ClipArchitecture, to_dict(architecture) | asked, "backbone")
    state["vision.positional_embedding"] = resize_positions(
        state["vision.positional_embedding"], architecture.grid, fitted.grid
    )
    return Backbone(config.name, fitted, state, found_sha256, known_token_ids)


def assume_openai(config: BackboneConfig, *, sha256: str | None = None, archives_only: bool = False) -> BackboneConfig:
    """Fill in what a weight file with OpenAI's names does not state: QuickGELU, heads of width 64.

    The released programs take every such file for one of OpenAI. Settings of the config, of the file or of a JSON file
    beside it are not changed. `archives_only`: for TorchScript archives alone, as version 0.1 of this package did.
    """
    path, sha256 = _find(config.name, sha256)
    if _is_ours(path) or (config.activation and config.vision_heads and config.text_heads):
        return config
    if archives_only and not is_torchscript_file(path):
        return config
    tensors = read_tensors(path, config.weights)
    if layout_of(tensors, path) is not OPENAI:
        return config
    assumed: dict[str, Any] = {"activation": "quick_gelu", **openai_heads(read_sizes(tensors, OPENAI, str(path)))}
    try:
        recognise(tensors, path, config, sha256)
    except CsktError:
        return replace(config, **{key: getattr(config, key) or value for key, value in assumed.items()})
    return config


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, origin: str, prefixes: tuple[str, ...] = ("vision.", "text.")
) -> None:
    """Copy `state` into the parameters and buffers of a model whose names begin with one of `prefixes`; all or nothing.

    Device, dtypes and `requires_grad` of the model stay. On the device `meta`, which has no memory, it takes over the
    tensors of `state` themselves. `origin` is the source of the state in messages.
    """
    own = {name: tensor for name, tensor in named_tensors(model).items() if name.startswith(prefixes)}
    checked = gather_state(state, own, origin=origin)
    if all(tensor.is_meta for tensor in own.values()):
        model.load_state_dict(checked, strict=False, assign=True)
        return
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(checked[name])


def gather_state(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, origin: str, layout: Layout = OURS
) -> dict[str, Tensor]:
    """Return the tensors of a state by our names, with the shapes of `own`; for the errors see `gather`.

    Floating-point tensors become float32. Buffers may be of other types, which must be those of `own`.
    """
    exact = {name: layout.sources(name)[0] for name, tensor in own.items() if not tensor.is_floating_point()}
    shapes = {name: tensor.shape for name, tensor in own.items() if name not in exact}
    others = {source: value for source, value in state.items() if source not in exact.values()}
    gathered = gather(others, shapes, layout, origin=origin)
    for name, source in exact.items():
        if source not in state:
            raise CsktError(f"{origin}: tensor '{source}' is missing")
        tensor, found = own[name], state[source]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise CsktError(
                f"{origin}: tensor '{source}' is {found.dtype} {list(found.shape)}, expected {tensor.dtype}"
                f" {list(tensor.shape)}"
            )
        gathered[name] = found
    return gathered


def gather(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], layout: Layout, *, origin: str, remedy: str = ""
) -> dict[str, Tensor]:
    """Return our tensors, float32, of these shapes, made of those of a file, which `layout` names.

    Every tensor that is missing, unknown, misshapen, no real numbers or not finite is refused by its name. `remedy`
    ends the message about an unknown one.
    """
    left, gathered = dict(tensors), {}
    for name, shape in shapes.items():
        parts = []
        for source in layout.sources(name):
            if source not in left:
                raise CsktError(f"{origin}: tensor '{source}' is missing")
            parts.append(left.pop(source))
            if not parts[-1].is_floating_point():
                raise CsktError(f"{origin}: tensor '{source}' is {parts[-1].dtype}, expected floating point")
        value = _assemble(parts, shape, transposed=name in layout.transposed, label=f"{origin}: tensor '{source}'")
        # A sum is ten times as fast as looking at every number, and finite in all good files.
        if not value.sum().isfinite() and not value.isfinite().all():
            raise CsktError(f"{origin}: tensor '{source}' holds NaN or infinity")
        gathered[name] = value
    if unknown := [name for name in left if name.split(".")[-1] not in IGNORED]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CsktError(f"{origin}: unknown tensor '{min(unknown)[:80]}'{more}{remedy}")
    return gathered


def tower_shapes(architecture: ClipArchitecture) -> dict[str, torch.Size]:
    """Return the shape of every backbone parameter by our name."""
    with torch.device("meta"):
        towers = nn.ModuleDict({"vision": VisionTower(architecture), "text": TextTower(architecture)})
    return {name: parameter.shape for name, parameter in towers.named_parameters()}


def resize_positions(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Resize position embeddings [1 + rows * columns, width] to another grid: bilinear, not antialiased, without the
    class token's row."""
    if grid == new_grid:
        return positions
    patches = positions[1:].view(1, *grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, size=new_grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], resized[0].flatten(1).T])


def _assemble(parts: list[Tensor], shape: torch.Size, *, transposed: bool, label: str) -> Tensor:
    """Concatenate parts to float32; shapes are checked before anything large is allocated."""
    rows = sum(part.shape[0] if part.ndim else 1 for part in parts)
    found = [rows, *parts[0].shape[1:]] if parts[0].ndim else []
    if transposed:
        found.reverse()
    if found != list(shape) or any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise CsktError(f"{label} has shape {found}, expected {list(shape)}")
    value = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (value.T if transposed else value).to(torch.float32, memory_format=torch.contiguous_format)


def _is_ours(path: Path) -> bool:
    """Return whether a weight file is in this package's own format."""
    return is_safetensors(path) and kind_of(path) is not None


def _check_untrained(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise CsktError for a checkpoint of a method whose towers are not plain CLIP, or that ranks by more than them."""
    method = method_of(tensors)
    if method is None or method is METHODS["irra"]:
        return
    files = method.file if method.file == RELEASED_WEIGHTS[2] else f"{RELEASED_CONFIG}, {method.file}"
    raise CsktError(
        f"{path}: a trained checkpoint of {method.title}, not a backbone; give the folder that its code wrote ({files})"
        " as the model, or, to train on from it, as --init-from"
    )


def _without_heads(tensors: dict[str, Tensor], layout: Layout, path: Path) -> dict[str, Tensor]:
    """Return the towers of a checkpoint of IRRA's code, such as one of a pre-trained IRRA (NAM, HAM, GA-DMS)."""
    if layout is not IRRA_TOWERS:
        return tensors
    heads = [name for name in tensors if not name.startswith((TOWERS, *TRAINING_ONLY))]
    if heads:
        more = f" and {len(heads) - 1} more" if len(heads) > 1 else ""
        logger.warning(
            "%s: left out beside the towers: '%s'%s; as a backbone it is plain CLIP", path, min(heads)[:80], more
        )
    return {name: value for name, value in tensors.items() if name.startswith(TOWERS)}


def _without_appended_tokens(tensors: dict[str, Tensor], layout: Layout, path: Path) -> dict[str, Tensor]:
    """Cut the token embedding to CLIP's vocabulary: the tokenizer gives no id beyond it."""
    (name,) = layout.sources(TOKEN_EMBEDDING)
    table = tensors.get(name)
    if table is None or table.ndim != 2 or len(table) <= VOCAB_SIZE:
        return tensors
    logger.info("%s: %d tokens appended to CLIP's vocabulary are left out", path, len(table) - VOCAB_SIZE)
    return tensors | {name: table[:VOCAB_SIZE]}


def _find(name: str, sha256: str | None) -> tuple[Path, str]:
    """Return path and digest of the weight file."""
    try:
        path = cache.locate(name)
        found = cache.weights_sha256(path)
        if sha256 in (None, found):
            if found != (cache.published_sha256(name) or found):
                raise CsktError(f"{path}: corrupt, its SHA-256 is not the published one; delete it to fetch it again")
            return path, found
        problem = f"{path}: another backbone than the weights were trained over; give the file with SHA-256 {sha256}"
    except CsktError as error:
        problem = str(error)
    cached = cache.find_in_cache(sha256) if sha256 else None
    if cached is None or sha256 is None:
        raise CsktError(problem)
    return cached, sha256
