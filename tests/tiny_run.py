"""A CLIP of two thin blocks per tower, and recipes that train over it within a second."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig, RunConfig, load_config
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.files import save_backbone

Configure = Callable[..., RunConfig]
"""Changes and a recipe -> that recipe, made quick."""
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
"""Laid over a recipe. The rate is high enough to tell one step from the next."""


def plain_clip(seed: int = 0) -> DualEncoder:
    """The bare towers with random weights."""
    model = DualEncoder(ARCHITECTURE, PromptConfig(directions="none"), AdapterConfig(sides="none"), trainable="none")
    model.initialise_backbone(torch.Generator().manual_seed(seed))
    return model


def write_backbone(path: Path, seed: int = 0) -> Path:
    """A weight file of `plain_clip(seed)`."""
    state = {name: value.detach() for name, value in plain_clip(seed).named_parameters()}
    save_backbone(path, state, ARCHITECTURE, facts={"seed": str(seed)})
    return path


def quick_config(
    root: Path, backbone: Path, recipe: str = "cskt", changes: Mapping[str, Any] | None = None
) -> RunConfig:
    """A recipe, made quick, over a data set in `root`; `changes` are dotted config keys."""
    settled = {
        "data.root": str(root), "backbone.name": str(backbone),
        "backbone.image_height": HEIGHT, "backbone.image_width": WIDTH,
    }  # fmt: skip
    return load_config(recipe, QUICK | settled | dict(changes or {}))
