"""A CLIP with two narrow blocks per tower, and recipes that train it within a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cskt.config import ClipArchitecture, RunConfig, load_config
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.native import save_backbone

Configure = Callable[..., RunConfig]
"""Takes overrides and a recipe; returns the quick config of the recipe."""
HEIGHT, WIDTH = 32, 16
ARCHITECTURE = ClipArchitecture(
    embed_dim=16, image_height=HEIGHT, image_width=WIDTH, patch_size=8, stride=8, vision_width=32, vision_layers=2,
    vision_heads=2, text_width=32, text_layers=2, text_heads=2,
)  # fmt: skip

QUICK: dict[str, Any] = {
    "device": "cpu", "prompts.depth": 2, "prompts.length": 2, "optim.lr": 1e-2, "optim.warmup_epochs": 0,
    "data.batch_size": 8, "data.eval_batch_size": 5, "data.num_workers": 0, "loop.num_epochs": 1,
    "loop.log_period_steps": 1, "loop.evaluate_before": False,
}  # fmt: skip
"""Overrides of a recipe. The rate is high enough that every step changes the weights visibly."""


def plain_clip(seed: int = 0) -> DualEncoder:
    """Return the towers with random weights, without method parts."""
    model = DualEncoder(ARCHITECTURE, trainable="none")
    model.initialise_backbone(torch.Generator().manual_seed(seed))
    return model


def write_backbone(path: Path, seed: int = 0) -> Path:
    """Write the weights of `plain_clip(seed)`."""
    state = {name: value.detach() for name, value in plain_clip(seed).named_parameters()}
    save_backbone(path, state, ARCHITECTURE, facts={"seed": str(seed)})
    return path


def quick_config(
    root: Path, backbone: Path, recipe: str = "cskt", changes: Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the quick config of a recipe for a data set in `root`; `changes` maps dotted config keys to values."""
    overrides = {
        "data.root": str(root), "backbone.name": str(backbone),
        "backbone.image_height": HEIGHT, "backbone.image_width": WIDTH,
    }  # fmt: skip
    return load_config(recipe, QUICK | overrides | dict(changes or {}))
