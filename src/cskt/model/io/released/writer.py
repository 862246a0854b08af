"""Writer of folders for the released CSKT and IRRA programs: `configs.yaml` and `best.pth`, as `test.py` reads them.

A run that the released programs cannot express is refused.
"""

from __future__ import annotations

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
    flat_fields,
    flat_values,
    load_config,
    to_dict,
    value_of,
)
from cskt.config.architecture import HEAD_WIDTH, VOCAB_SIZE
from cskt.config.file_names import RELEASED_CONFIG, RELEASED_WEIGHTS
from cskt.config.released_flags import IRRA, REFERENCE, from_published, to_published
from cskt.errors import CsktError
from cskt.model.io.layouts import openai_heads, openai_name
from cskt.model.io.released.methods import released_name
from cskt.model.io.released.reader import read_released
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
CSKT_WIDTHS = {"vision_width": 768, "text_width": 512}
"""Widths that are fixed in the released CSKT program."""
CSKT_METHOD = {
    "prompts.directions": "both", "adapters.sides": "both", "adapters.reduction": 8, "adapters.vision_scale": 0.1,
    "adapters.text_scale": 4.0,
}  # fmt: skip
"""Settings of the method that are fixed in the released CSKT program."""
PREPROCESSING = {
    "data.templates": (("{}",),), "data.apply_orientation": (False,), "backbone.interpolation": ("bilinear",),
    "data.eval_interpolation": (None, "bilinear"), "data.clean_captions": (False,),
}  # fmt: skip
"""Config key -> the values that the released programs support."""
NOT_FOR_TRAINING = (
    "name", "output_dir", "device", "init_from", "backbone.", "loop.", "data.root", "data.num_workers", "data.cache",
    "data.eval_batch_size", "prompts.", "adapters.",
)  # fmt: skip
"""Prefixes of the keys that do not affect how the weights were trained, or that are checked elsewhere."""


def recipe_for(config: RunConfig) -> str:
    """Return the recipe of the released program that can run a model: CSKT's, or IRRA's for plain towers."""
    if config.parts:
        raise CsktError(f"parts.{min(config.parts)}: released CSKT and IRRA programs have no such part; use --merge")
    if (config.prompts.directions, config.adapters.sides) == ("none", "none"):
        return IRRA
    for key, value in CSKT_METHOD.items():
        if (own := value_of(config, key)) != value:
            raise CsktError(f"{key} {own}: the released CSKT program has {value} only; use --merge or --format onnx")
    return REFERENCE


def check_expressible(config: RunConfig, architecture: ClipArchitecture) -> None:
    """Check that a released program computes the same function as a run."""
    fixed: dict[str, Any] = {"activation": "quick_gelu", "vocab_size": VOCAB_SIZE}
    fixed |= CSKT_WIDTHS if recipe_for(config) == REFERENCE else {}
    fixed |= openai_heads(to_dict(architecture))
    for key, value in fixed.items():
        if (own := getattr(architecture, key)) != value:
            raise CsktError(f"the model's {key} is {own}: the released program takes {value} only")
    for key, clips in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        if (own := getattr(architecture, key)) != clips:
            raise CsktError(f"the model's {key} is {own}: the released program has CLIP's only")
    if "mlm" in config.loss.weights and architecture.embed_dim < HEAD_WIDTH:
        raise CsktError(
            f"the model's embed_dim is {architecture.embed_dim}: the released interaction encoder needs {HEAD_WIDTH}"
        )
    if config.data.caption_length != architecture.context_length:
        raise CsktError(
            f"data.caption_length {config.data.caption_length}: the released program takes"
            f" {architecture.context_length} only, the context of the model"
        )
    for key, values in PREPROCESSING.items():
        if key in {name for name, _ in flat_fields()} and (own := value_of(config, key)) not in values:
            raise CsktError(f"{key} {own}: the released program has {values[-1]} only")


def inexpressible_keys(config: RunConfig, architecture: ClipArchitecture) -> list[str]:
    """Return the config keys that affected a run's training and that the released options cannot express."""
    expressed = load_config(recipe_for(config), from_published(to_published(config, architecture)), fit=False)
    written = flat_values(expressed)
    return [
        key
        for key, value in flat_values(config).items()
        if not key.startswith(NOT_FOR_TRAINING) and value != written.get(key)
    ]


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
) -> None:
    """Write a folder that the released `test.py` accepts, and check that it reads back to the same tensors.

    Args:
        folder: an empty folder.
        config, architecture: of the run.
        state: every tensor of the model, our names.
        heads: the training heads of every loss that has one, our names.
        placed_at: final path of the folder; the released program looks for `best.pth` in `output_dir`.
        root_dir, dataset_name: folder and released name of its data set.
        epoch: of the weights.

    Raises:
        CsktError: the released program cannot express the run.
        OSError: the folder cannot be written.
    """
    check_expressible(config, architecture)
    options = to_published(config, architecture) | RELEASED_OPTIONS
    options = {name: tuple(value) if name in TUPLES else value for name, value in sorted(options.items())}
    options |= {"output_dir": str(placed_at), "root_dir": str(root_dir), "dataset_name": dataset_name}
    if config.backbone.name not in DOWNLOADED:
        towers = {
            openai_name(name): _own(value) for name, value in state.items() if name.startswith(("vision.", "text."))
        }
        save_torch(towers, folder / BACKBONE_FILE)
        options["pretrain_choice"] = str(placed_at / BACKBONE_FILE)
    model = {released_name(name): _own(value) for name, value in [*state.items(), *heads.items()]}
    save_torch({"model": model, "epoch": epoch}, folder / RELEASED_WEIGHTS[0])
    (folder / RELEASED_CONFIG).write_text(yaml.dump(options, default_flow_style=False), encoding="utf-8")
    back = read_released(folder)
    assert back.architecture == architecture and back.state.keys() == state.keys()
    assert all(torch.equal(value, state[name].float()) for name, value in back.state.items())


def _own(value: Tensor) -> Tensor:
    """Return a float32 copy that shares no memory: `torch.save` writes whole storages."""
    return value.detach().float().cpu().clone(memory_format=torch.contiguous_format)
