"""`cskt recipes`: the methods that ship with the package, and how much of CLIP each of them trains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from cskt.cli.parsing import Parser
from cskt.config import RECIPES, ClipArchitecture, load_config, recipe_names
from cskt.model.dual_encoder import DualEncoder
from cskt.training.objective import Objective
from cskt.utils.console import console, literal
from cskt.utils.terminal import json_text


def main(argv: Sequence[str]) -> int:
    """See `cskt recipes --help`."""
    parser = Parser(
        prog="cskt recipes",
        description="The methods that ship with the package, with the parameters that they train over CLIP ViT-B/16\n"
        "(or over their own towers, where a recipe gives some).",
    )
    classes = "classes of the id loss (%(default)s, CUHK-PEDES)"
    parser.add_argument("--identities", type=int, default=11003, help=classes)
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of a table")
    flags = parser.parse(argv)
    sizes = [sizes_of(name, flags.identities) for name in recipe_names() if name != "demo"]  # that is cskt, made small
    if flags.json:
        print(json_text(sizes, indent=1))
        return 0
    table = Table(
        "recipe", "trained", "share", "heads", "", title="parameters over CLIP ViT-B/16", title_justify="left"
    )
    for size in sizes:
        share = f"{100 * size['trained'] / size['total']:.2f} %"
        heads = f"{size['heads']:,}" if size["heads"] else ""
        table.add_row(size["name"], f"{size['trained']:,}", share, heads, literal(size["about"]))
    console().print(table)
    print("heads: only in training; no checkpoint for inference has them")
    return 0


def sizes_of(name: str, num_identities: int) -> dict[str, Any]:
    """Count the parameters of a recipe on its model, by default ViT-B/16, which takes no memory.

    Returns:
        The name; `about`, the first sentence of the recipe's own comment; `trained` and `total`, the parameters that
        inference needs; `heads`, those that are dropped after training: classifier, interaction encoder, MLM head.
    """
    config = load_config(name)
    sides = {side: getattr(config.backbone, side) for side in ("image_height", "image_width", "stride")}
    stated = {side: value for side, value in sides.items() if value is not None}
    architecture = config.backbone.architecture or ClipArchitecture(**stated)
    with torch.device("meta"):
        model = DualEncoder(architecture, config.method, config.trainable)
        objective = Objective(config.loss, config.mlm, architecture, num_identities)
    return {
        "name": name,
        "about": about(RECIPES / f"{name}.yaml"),
        "trained": model.num_parameters(trainable_only=True),
        "total": model.num_parameters(),
        "heads": sum(parameter.numel() for parameter in objective.parameters()),
    }


def about(path: Path) -> str:
    """Return the first sentence of the comment at the head of a YAML file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return comment.split(". ")[0].removesuffix(".")
