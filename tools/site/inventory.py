"""Pages of the reference: the recipes, and everything that a config or a flag can name, such as losses and stores."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from markdown_text import code, escape, table

from cskt.cli.recipes import sizes_of
from cskt.config import RECIPES, recipe_names
from cskt.model.io.released.methods import ReleasedMethod
from cskt.plugins import REGISTRIES, Registry

RECIPES_PAGE = "reference/recipes.md"
NAMES_PAGE = "reference/names.md"
ABOUT_RECIPES = """\
# Recipes

Files of settings that ship with the package: `cskt train --config NAME`. [Methods](../methods.md) explains them,
[Config keys](config.md) their keys. Parameters are counted over CLIP ViT-B/16, those of `demo` and `tiny` over their
own towers.
"""
IDENTITIES = 11003
"""People of CUHK-PEDES's training split, for the classifier of the loss `id`."""
REGISTERED = {
    "cskt.losses": ("Losses", "cskt.losses", "Named by `--weights '{sdm: 1}'`."),
    "cskt.parts": ("Method parts", "cskt.model.parts", "Named by sections of a config."),
    "cskt.datasets": ("Data sets", "cskt.data.datasets", "Named by `--dataset NAME`."),
    "cskt.operations": ("Operations on images", "cskt.data.operations", "Named by `--augment.ops '{flip: {}}'`."),
    "cskt.hooks": ("Hooks", "cskt.training.hooks", "Named by `--hooks.NAME.FIELD`."),
    "cskt.loggers": ("Loggers", "cskt.training.loggers", "Named by `--loggers NAME,NAME`."),
    "cskt.stores": ("Stores of galleries", "cskt.gallery.stores", "Named by `cskt index --store NAME`."),
    "cskt.released": ("Released codes", "cskt.model.io.released", "Recognised by the tensors of their checkpoints."),
}
"""Group of a registry -> its title, the package whose import fills it, and how its entries are chosen."""


def pages() -> dict[str, str]:
    """Return path -> Markdown."""
    return {RECIPES_PAGE: recipes(), NAMES_PAGE: names()}


def recipes() -> str:
    """Return the page of the recipes: a table, and the file of each."""
    rows, files = [], []
    for name in recipe_names():
        size = sizes_of(name, IDENTITIES)
        trained, share = "as the run", ""
        if size["trained"] is not None:
            trained, share = f"{size['trained']:,}", f"{100 * size['trained'] / size['total']:.2f} %"
        rows.append([f"[{name}](#{name})", trained, share, escape(size["about"])])
        files.append(f"## {name}\n\n```yaml\n{(RECIPES / f'{name}.yaml').read_text(encoding='utf-8')}```\n")
    head = ["recipe", "trained parameters", "share", "purpose"]
    return "\n".join([ABOUT_RECIPES, table(head, rows), *files])


def names() -> str:
    """Return the page of everything that is registered."""
    parts = ["# Names\n\nWhat a config or a flag can name. Plug-ins add others ([Extending](../extending.md)).\n"]
    for group, (title, package, use) in REGISTERED.items():
        importlib.import_module(package)
        registry: Registry[Any] = REGISTRIES[group]
        own = [name for name in registry if registry.provider(name) is None]
        parts += [
            f"## {title}\n\n{escape(use)}\n",
            table(["name", "purpose"], [[code(name), escape(purpose(registry[name]))] for name in own]),
        ]
    return "\n".join(parts)


def purpose(entry: object) -> str:
    """Return the first paragraph of a docstring, without the hint at the function that computes it."""
    if isinstance(entry, ReleasedMethod):
        return f"Folders of the released code of {entry.title}."
    return re.sub(r"; see `\w+`", "", (inspect.getdoc(entry) or "").partition("\n\n")[0])
