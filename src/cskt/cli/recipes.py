"""`cskt recipes`: the methods that ship with the package, and how much of CLIP each of them trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from cskt.cli.parsing import Parser
from cskt.config import RECIPES, ClipArchitecture, RunConfig, load_config, recipe_names
from cskt.model.dual_encoder import DualEncoder
from cskt.training.objective import Objective
from cskt.utils.console import console, literal
from cskt.utils.terminal import json_text


@dataclass(frozen=True)
class RecipeSize:
    """Number of parameters of a recipe, with the classifier of a number of identities."""

    name: str
    about: str
    """First sentence of the recipe's own comment."""
    trained: int
    """Parameters that train and that inference needs."""
    total: int
    """All parameters that inference needs."""
    heads: int
    """Parameters that train and are dropped after training: classifier, interaction encoder, MLM head."""


def main(argv: Sequence[str]) -> int:
    """See `cskt recipes --help`."""
    parser = Parser(
        prog="cskt recipes",
        description="The methods that ship with the package, with the parameters that they train over CLIP ViT-B/16\n"
        "(or over their own towers, where a recipe gives some).",
    )
    parser.add_argument(
        "--identities", type=int, default=11003, help="classes of the id loss (%(default)s, CUHK-PEDES)"
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    flags = parser.parse(argv)
    sizes = [size_of(name, flags.identities) for name in recipe_names() if name != "demo"]  # that is cskt, made small
    if flags.json:
        print(json_text([vars(size) for size in sizes], indent=1))
        return 0
    table = Table(
        "recipe", "trained", "share", "heads", "", title="parameters over CLIP ViT-B/16", title_justify="left"
    )
    for size in sizes:
        share = f"{100 * size.trained / size.total:.2f} %"
        table.add_row(
            size.name, f"{size.trained:,}", share, f"{size.heads:,}" if size.heads else "", literal(size.about)
        )
    console().print(table)
    print("heads: only in training; no checkpoint for inference has them")
    return 0


def size_of(name: str, num_identities: int) -> RecipeSize:
    """Count the parameters of a recipe on its model, which takes no memory."""
    config = load_config(name)
    architecture = config.backbone.architecture or architecture_at(config)
    with torch.device("meta"):
        model = DualEncoder(architecture, config.prompts, config.adapters, config.lora, config.trainable)
        objective = Objective(config.loss, config.mlm, architecture, num_identities)
    return RecipeSize(
        name=name,
        about=about(RECIPES / f"{name}.yaml"),
        trained=model.num_parameters(trainable_only=True),
        total=model.num_parameters(),
        heads=sum(parameter.numel() for parameter in objective.parameters()),
    )


def architecture_at(config: RunConfig) -> ClipArchitecture:
    """Return ViT-B/16 at the image size of a recipe."""
    default = ClipArchitecture()
    return ClipArchitecture(
        image_height=config.backbone.image_height or default.image_height,
        image_width=config.backbone.image_width or default.image_width,
        stride=config.backbone.stride or default.stride,
    )


def about(path: Path) -> str:
    """Return the first sentence of the comment at the head of a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return comment.split(". ")[0].removesuffix(".")
