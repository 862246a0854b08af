"""Pages of the reference: every public name of `cskt`, which mkdocstrings fills from the source."""

from __future__ import annotations

import importlib
import inspect

from markdown_text import escape, table

import cskt

SECTION = "reference/python"


def pages() -> dict[str, str]:
    """Return path -> Markdown: a page of all names, and one for each."""
    names = [name for name in cskt.__all__ if not name.startswith("_")]
    rows = [[f"[cskt.{name}]({name}.md)", escape(summary(name))] for name in names]
    index = f"# Python\n\n{escape(inspect.getdoc(cskt).partition(chr(10))[0])}\n\n{table(['name', 'purpose'], rows)}"
    return {f"{SECTION}/index.md": index} | {f"{SECTION}/{name}.md": page(name) for name in names}


def summary(name: str) -> str:
    """Return the first sentence of a docstring."""
    return (inspect.getdoc(getattr(cskt, name)) or "").partition("\n\n")[0]


def page(name: str) -> str:
    """Return the page of a name: a class or a function, or a module with what it offers."""
    found = getattr(cskt, name)
    if not inspect.ismodule(found):
        return f"---\ntitle: {name}\n---\n\n::: {found.__module__}.{name}\n    options: {{heading_level: 1}}\n"
    parts = [f"# {name}\n\n::: {found.__name__}\n    options: {{members: false, show_root_heading: false}}\n"]
    for member in offered(found.__name__):
        parts.append(f"::: {member}\n    options: {{heading_level: 2}}\n")
    return "\n".join(parts)


def offered(module: str) -> list[str]:
    """Return the full names of the classes and functions that a module offers: its own, or those that it passes on."""
    found = importlib.import_module(module)
    is_package = hasattr(found, "__path__")
    members = {
        f"{value.__module__}.{value.__qualname__}": None
        for name, value in vars(found).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and (value.__module__ == module or (is_package and value.__module__.startswith(f"{module}.")))
    }
    return list(members)
