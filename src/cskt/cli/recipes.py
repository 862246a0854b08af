"""`cskt recipes`: the methods that ship with the package, and how much of CLIP each of them trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cskt.cli.parsing import Parser
from cskt.config import RECIPES, BackboneConfig, ClipArchitecture, continues_run, load_config, recipe_names
from cskt.model.dual_encoder import DualEncoder
from cskt.model.io.cache import CLIP_TINY
from cskt.model.io.weights import load_backbone
from cskt.training.objective import Objective
from cskt.utils.console import console, literal
from cskt.utils.terminal import json_text


def main(argv: Sequence[str]) -> int:
    """See `cskt recipes --help`."""
    parser = Parser(
        prog="cskt recipes",
        description="The methods that ship with the package, with the parameters that they train over CLIP ViT-B/16\n"
        "(or over their own towers: demo, tiny).",
    )
    classes = "classes of the id loss (%(default)s, CUHK-PEDES)"
    parser.add_argument("--identities", type=int, default=11003, help=classes)
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    flags = parser.parse(argv)
    sizes = [sizes_of(name, flags.identities) for name in recipe_names()]
    if flags.json:
        print(json_text(sizes, indent=1))
        return 0
    table = Table(
        "recipe", "trained", "share", "heads", "", title="parameters over CLIP ViT-B/16", title_justify="left"
    )
    for size in sizes:
        trained, share = "as the run", ""
        if size["trained"] is not None:
            trained, share = f"{size['trained']:,}", f"{100 * size['trained'] / size['total']:.2f} %"
        heads = f"{size['heads']:,}" if size["heads"] else ""
        table.add_row(size["name"], trained, share, heads, literal(size["about"]))
    console().print(table)
    print("heads: only in training; no checkpoint for inference has them")
    return 0


def sizes_of(name: str, num_identities: int) -> dict[str, Any]:
    """Count the parameters of a recipe on its model, by default ViT-B/16, which takes no memory.

    Returns:
        The name; `about`, the first sentence of the recipe's own comment; `trained` and `total`, the parameters that
        inference needs; `heads`, those that are dropped after training: classifier, interaction encoder, MLM head. The
        numbers are None for a recipe that continues the model of a run.
    """
    path = RECIPES / f"{name}.yaml"
    numbers: dict[str, int | None] = {"trained": None, "total": None, "heads": None}
    if not continues_run(path):
        config = load_config(name)
        architecture = _architecture(config.backbone)
        with torch.device("meta"):
            model = DualEncoder(architecture, config.method, config.trainable, config.frozen)
            objective = Objective(config.loss, config.mlm, architecture, num_identities)
        numbers = {
            "trained": model.num_parameters(trainable_only=True),
            "total": model.num_parameters(),
            "heads": sum(parameter.numel() for parameter in objective.parameters()),
        }
    return {"name": name, "about": about(path), **numbers}


def _architecture(backbone: BackboneConfig) -> ClipArchitecture:
    """Return the sizes of a recipe's towers; only the backbone that ships with the package is read."""
    if backbone.architecture is not None:
        return backbone.architecture
    if backbone.name == CLIP_TINY:
        return load_backbone(backbone).architecture
    sides = {side: getattr(backbone, side) for side in ("image_height", "image_width", "stride")}
    return ClipArchitecture(**{side: value for side, value in sides.items() if value is not None})


def about(path: Path) -> str:
    """Return the first sentence of the comment at the head of a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return comment.split(". ")[0].removesuffix(".")
