"""Writer of folders for released programs: `configs.yaml` and `best.pth`, or `checkpoint_best.pth` alone, as their
`test.py` reads them. `methods` describes the programs.

A run that its released program cannot compute is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from cskt.config import (
    CLIP_MEAN,
    CLIP_STD,
    ClipArchitecture,
    RunConfig,
    evaluation_interpolation,
    flat_values,
)
from cskt.config.architecture import HEAD_WIDTH, VOCAB_SIZE
from cskt.config.file_names import RELEASED_CONFIG
from cskt.config.released_flags import to_published
from cskt.errors import CsktError
from cskt.model.io.layouts import openai_heads, openai_name, replaced
from cskt.model.io.released.methods import METHODS, ReleasedMethod
from cskt.model.io.released.reader import ALONE, read_released
from cskt.model.io.tensors import save_torch

BACKBONE_FILE = "backbone.pth"
DOWNLOADED = ("ViT-B/32", "ViT-B/16", "ViT-L/14")
"""Backbones that the released programs download by name; any other is written beside the weights."""
RELEASED_OPTIONS: dict[str, Any] = {
    "distributed": False, "local_rank": 0, "masked_token_rate": 0.8, "masked_token_unchanged_rate": 0.1,
    "resume": False, "resume_ckpt_file": "", "training": True,
}  # fmt: skip
"""Options of the released programs without a config key here, with their defaults."""
TUPLES = ("img_size", "milestones")
"""Options that are tuples in the released programs."""
FIXED: dict[str, Any] = {
    "activation": "quick_gelu", "vocab_size": VOCAB_SIZE, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
    "backbone.interpolation": "bilinear", "data.eval_interpolation": "bilinear", "data.templates": ("{}",),
    "data.apply_orientation": False, "data.clean_captions": False,
}  # fmt: skip
"""As `ReleasedMethod.fixed`, for every program whose description does not say otherwise."""
NOT_FOR_TRAINING = (
    "name", "output_dir", "device", "init_from", "backbone.", "loop.", "data.root", "data.num_workers", "data.cache",
    "data.eval_batch_size", "prompts.", "adapters.", "parts.",
)  # fmt: skip
"""Prefixes of the keys that do not affect how the weights were trained, or that are checked elsewhere."""


def method_for(config: RunConfig) -> ReleasedMethod:
    """Return the description of the released program that can compute a model: the one with its parts.

    Of plain towers it is TBPS-CLIP's if captions are cleaned, else IRRA's.
    """
    has_cskts = (config.prompts.directions, config.adapters.sides) != ("none", "none")
    if not config.parts:
        return METHODS["cskt" if has_cskts else "tbps_clip" if config.data.clean_captions else "irra"]
    found = next((method for method in METHODS.values() if method.parts.keys() == config.parts.keys()), None)
    if found is None or has_cskts:
        parts = ", ".join(f"parts.{name}" for name in config.parts)
        beside = " beside prompts or adapters" if found else ""
        raise CsktError(f"{parts}: no released program has this{beside}; use --merge or --format onnx")
    return found


def check_expressible(config: RunConfig, architecture: ClipArchitecture) -> None:
    """Check that a released program computes the same function as a run."""
    method = method_for(config)
    own = dataclasses.asdict(architecture) | flat_values(config)
    own |= {"data.eval_interpolation": evaluation_interpolation(config)}
    fixed = {**FIXED, **openai_heads(own), **method.fixed}
    for key, value in fixed.items():
        if (found := tuple(own[key]) if isinstance(value, tuple) else own[key]) != value:
            name = key if "." in key else f"the model's {key}"
            problem = f"{name} {found}: the released {method.title} program has {value} only"
            raise CsktError(f"{problem}; use --merge or --format onnx")
    height, width, patch = architecture.image_height, architecture.image_width, architecture.patch_size
    if method.has_squares and (height != width or architecture.stride != patch):
        raise CsktError(
            f"the model's images are {height} x {width}, with a patch every {architecture.stride} pixels: the released"
            f" {method.title} program takes square ones, with a patch every {patch}; use --merge or --format onnx"
        )
    if "mlm" in method.heads and "mlm" in config.loss.weights and architecture.embed_dim < HEAD_WIDTH:
        raise CsktError(
            f"the model's embed_dim is {architecture.embed_dim}: the released interaction encoder needs {HEAD_WIDTH}"
        )
    if config.data.caption_length != architecture.context_length:
        raise CsktError(
            f"data.caption_length {config.data.caption_length}: the released program takes"
            f" {architecture.context_length} only, the context of the model"
        )


def released_tensors(
    method: ReleasedMethod, architecture: ClipArchitecture, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a model and its training heads under their released names.

    Those that the code stores and never uses are added as they are in a new batch normalisation, or zero, and those
    that it stores under two names have both.
    """
    released = {method.name(name): value for name, value in tensors.items()}
    released |= {name: _unused(name, shape) for name, shape in method.unused(architecture).items()}
    return released | {replaced(name, method.again): value for name, value in released.items()}


def write_released(
    folder: Path,
    config: RunConfig,
    architecture: ClipArchitecture,
    state: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    *,
    placed_at: Path,
    root_dir: Path,
    dataset_name: str,
    epoch: int,
) -> list[str]:
    """Write a folder that the released program accepts, and check that it reads back to the same tensors.

    Args:
        folder: an empty folder.
        config, architecture: of the run.
        state: every tensor of the model, our names.
        heads: the training heads of every loss that has one, our names.
        placed_at: final path of the folder; the released program looks for `best.pth` in `output_dir`.
        root_dir, dataset_name: folder and released name of its data set.
        epoch: of the weights.

    Returns:
        The config keys that affected the run's training and that the folder does not state.

    Raises:
        CsktError: the released program cannot compute the model.
        OSError: the folder cannot be written.
    """
    check_expressible(config, architecture)
    method = method_for(config)
    tensors = {name: _own(value) for name, value in [*state.items(), *heads.items()]}
    content: dict[str, Any] = {"model": released_tensors(method, architecture, tensors), "epoch": epoch}
    if method.file in ALONE:
        images = {"input_resolution": [architecture.image_height, architecture.image_width]}
        experiment = {**images, "text_length": architecture.context_length}
        sizes = {"embed_dim": architecture.embed_dim, "vocab_size": architecture.vocab_size}
        content["config"] = {"experiment": experiment, "model": sizes}
    else:
        options = _options(method, config, architecture)
        options |= {"output_dir": str(placed_at), "root_dir": str(root_dir), "dataset_name": dataset_name}
        if config.backbone.name not in DOWNLOADED:
            towers = {
                openai_name(name): value for name, value in tensors.items() if name.startswith(("vision.", "text."))
            }
            save_torch(towers, folder / BACKBONE_FILE)
            options["pretrain_choice"] = str(placed_at / BACKBONE_FILE)
        (folder / RELEASED_CONFIG).write_text(yaml.dump(options, default_flow_style=False), encoding="utf-8")
    save_torch(content, folder / method.file)
    back = read_released(folder)
    assert back.architecture == architecture and back.state.keys() == state.keys()
    assert all(torch.equal(value, state[name].to(value.dtype)) for name, value in back.state.items())
    stated, trained = flat_values(back.config), flat_values(config)
    return [key for key, value in trained.items() if not key.startswith(NOT_FOR_TRAINING) and value != stated.get(key)]


def _options(method: ReleasedMethod, config: RunConfig, architecture: ClipArchitecture) -> dict[str, Any]:
    """Return the options of configs.yaml, but for those that name places."""
    values = flat_values(config)
    of_method = {name: flag.from_config(values[flag.key]) for name, flag in method.flags.items() if flag.key}
    options = to_published(config, architecture) | RELEASED_OPTIONS | of_method | dict(method.options)
    options["loss_names"] = "+".join(method.loss_words(config.loss.weights))
    return {name: tuple(value) if name in TUPLES else value for name, value in sorted(options.items())}


def _own(value: Tensor) -> Tensor:
    """Return a copy, float32 if it is no count, that shares no memory: `torch.save` writes whole storages."""
    value = value.float() if value.is_floating_point() else value
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _unused(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    return torch.ones(shape) if name.endswith((".running_var", ".bns.1.weight")) else torch.zeros(shape)
