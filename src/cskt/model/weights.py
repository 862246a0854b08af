"""Backbones: find a CLIP's weight file, read it strictly, fit its positions to the images, copy it into a model.

Strict means that every tensor is there, none is left over, each has its shape and only finite real numbers. Weights
that are skipped in silence are the most expensive kind of mistake here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import BackboneConfig, ClipArchitecture, to_dict, validate
from cskt.model import cache
from cskt.model.clip import TextTower, VisionTower
from cskt.model.files import kind_of, read_backbone
from cskt.model.layouts import OURS, Layout, recognise
from cskt.model.tensors import is_safetensors, read_tensors

IGNORED = ("input_resolution", "context_length", "vocab_size", "logit_scale", "attn_mask", "position_ids")
"""Last part of the names of tensors that files carry beside the weights: sizes, the temperature, masks, counters."""


@dataclass(frozen=True)
class Backbone:
    """The weights of a CLIP, ready for images of the asked size."""

    name: str
    """As the config names it."""
    architecture: ClipArchitecture
    """With the asked image size and stride."""
    state: dict[str, Tensor]
    """`vision.*` and `text.*` of `DualEncoder`, float32, positions already resized."""
    sha256: str
    """Digest of the weight file."""
    known_token_ids: frozenset[int] | None
    """The only tokens whose embeddings the file holds; none if it holds all."""


def load_backbone(config: BackboneConfig, *, sha256: str | None = None) -> Backbone:
    """Find and read the backbone that a config names.

    Args:
        config: name, image size (the file's own if empty), stride, and flags that complete what a file does not say
            of itself.
        sha256: the file must have this digest; a file of the cache that has it stands in for a name that leads
            nowhere or elsewhere.

    Raises:
        ValueError: not found (says which file to put where), damaged, incomplete, of an unknown kind, or another file
            than `sha256` asks for.
    """
    path, found_sha256 = _find(config.name, sha256)
    known_token_ids = None
    with path.open("rb") as stream:
        start = stream.read(16)
    if is_safetensors(start) and kind_of(path):
        ours = read_backbone(path)
        tensors, layout, architecture, known_token_ids = ours.state, OURS, ours.architecture, ours.known_token_ids
    else:
        file = read_tensors(path)
        tensors = file.tensors
        layout, architecture = recognise(file, path, config)
    state = gather(tensors, tower_shapes(architecture), layout, origin=str(path))
    fitted = fit_architecture(architecture, config)
    state["vision.positional_embedding"] = resize_positions(
        state["vision.positional_embedding"], architecture.grid, fitted.grid
    )
    return Backbone(config.name, fitted, state, found_sha256, known_token_ids)


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    origin: str,
    prefixes: tuple[str, ...] = ("vision.", "text."),
) -> None:
    """Copy `state` into the parameters of a model whose names begin with one of `prefixes`; all or nothing.

    Args:
        model: changed in place; its device, dtypes and `requires_grad` stay. One on the device `meta`, which has no
            memory yet, takes over the tensors of `state` themselves.
        state: exactly these parameters, our names.
        origin: where the state is from, for messages.

    Raises:
        ValueError: a tensor is missing, unknown, misshapen or not finite; names it.
    """
    own = {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefixes)}
    checked = gather(state, {name: parameter.shape for name, parameter in own.items()}, OURS, origin=origin)
    if all(parameter.is_meta for parameter in own.values()):
        model.load_state_dict(checked, strict=False, assign=True)
        return
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(checked[name])


def gather(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], layout: Layout, *, origin: str
) -> dict[str, Tensor]:
    """Our tensors, float32, out of those of a file, strictly.

    Args:
        tensors: by the file's names.
        shapes: by our names, all that must come out.
        layout: how the file names ours.
        origin: the file, for messages.

    Raises:
        ValueError: a tensor is missing, unknown, misshapen, no real numbers, or not finite; names it.
    """
    left = {name: value for name, value in tensors.items() if name.split(".")[-1] not in IGNORED}
    gathered = {}
    for name, shape in shapes.items():
        parts = []
        for source in layout.sources(name):
            if source not in left:
                raise ValueError(f"{origin}: tensor '{source}' is missing")
            parts.append(left.pop(source))
            if not parts[-1].is_floating_point():
                raise ValueError(f"{origin}: tensor '{source}' is {parts[-1].dtype}, expected floating point")
        value = _assemble(parts, shape, transposed=name in layout.transposed, label=f"{origin}: tensor '{source}'")
        # A sum is ten times as fast and finite in all sound files; only then is every number looked at.
        if not value.sum().isfinite() and not value.isfinite().all():
            raise ValueError(f"{origin}: tensor '{source}' holds NaN or infinity")
        gathered[name] = value
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise ValueError(f"{origin}: unknown tensor '{min(left)[:80]}'{more}")
    return gathered


def tower_shapes(architecture: ClipArchitecture) -> dict[str, torch.Size]:
    """Our name -> shape of every backbone parameter."""
    with torch.device("meta"):
        towers = nn.ModuleDict({"vision": VisionTower(architecture), "text": TextTower(architecture)})
    return {name: parameter.shape for name, parameter in towers.named_parameters()}


def fit_architecture(architecture: ClipArchitecture, config: BackboneConfig) -> ClipArchitecture:
    """The architecture of a file with the image size and stride that a config asks for, if it asks."""
    asked = {
        "image_height": config.image_height or architecture.image_height,
        "image_width": config.image_width or architecture.image_width,
        "stride": config.stride or architecture.stride,
    }
    return validate(ClipArchitecture, to_dict(architecture) | asked, "backbone")


def resize_positions(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Position embeddings for another grid of patches: bilinear, not antialiased, the class token's row kept.

    Args:
        positions: [1 + rows * columns, width].
        grid: rows and columns of `positions`.
        new_grid: rows and columns wanted; the same ones give `positions` back.
    """
    if grid == new_grid:
        return positions
    patches = positions[1:].view(1, *grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, size=new_grid, mode="bilinear", align_corners=False)
    return torch.cat([positions[:1], resized[0].flatten(1).T])


def _assemble(parts: list[Tensor], shape: torch.Size, *, transposed: bool, label: str) -> Tensor:
    """The parts below each other, float32; checked before anything large is made of them."""
    rows = sum(part.shape[0] if part.ndim else 1 for part in parts)
    found = [rows, *parts[0].shape[1:]] if parts[0].ndim else []
    if transposed:
        found.reverse()
    if found != list(shape) or any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise ValueError(f"{label} has shape {found}, expected {list(shape)}")
    value = torch.cat(parts) if len(parts) > 1 else parts[0]
    return (value.T if transposed else value).to(torch.float32, memory_format=torch.contiguous_format)


def _find(name: str, sha256: str | None) -> tuple[Path, str]:
    """Path and digest of the weight file."""
    try:
        path = cache.locate(name)
        found = cache.sha256_of(path)
        if sha256 in (None, found):
            if found != (cache.published_sha256(name) or found):
                raise ValueError(f"{path}: damaged, its SHA-256 is not the published one; delete it to fetch it again")
            return path, found
        problem = f"{path}: another backbone than the weights were trained over; give the file with SHA-256 {sha256}"
    except ValueError as error:
        problem = str(error)
    cached = cache.find_in_cache(sha256) if sha256 else None
    if cached is None or sha256 is None:
        raise ValueError(problem)
    return cached, sha256
