"""Import towers, losses and optimizer of cskt where only torch and numpy are installed.

On a GPU machine it is often impossible to install packages. Importing the towers also imports pydantic and
annotated_types (checks of configs), yaml, PIL and simplejpeg (files). A measurement with constants and random inputs
uses none of them. Inside `imports()`, missing packages are replaced: config classes become plain frozen dataclasses
without checks, and every other name of a missing package becomes an empty class. Installed packages are used. The
replacements are removed afterwards, so that other code still finds the packages missing.

    with bare.imports():
        from cskt.model.dual_encoder import DualEncoder
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "src"
"""Folder of the package in a checkout; it need not be installed."""
PACKAGES = {
    "annotated_types": (),
    "pydantic": ("pydantic.dataclasses",),
    "pydantic_core": (),
    "yaml": (),
    "PIL": (),
    "simplejpeg": (),
}
"""Package that may be missing -> its submodules that are imported by name."""


@contextmanager
def imports() -> Iterator[list[str]]:
    """Make the cskt of the checkout importable in this context, which yields the names of the replaced packages."""
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    absent = [name for name in PACKAGES if not _is_installed(name)]
    modules = {name: StandIn(name) for package in absent for name in (package, *PACKAGES[package])}
    if "pydantic.dataclasses" in modules:
        modules["pydantic.dataclasses"].dataclass = _plain_dataclass
    for name, module in modules.items():
        parent, _, submodule = name.rpartition(".")
        if parent:
            setattr(modules[parent], submodule, module)
    sys.modules.update(modules)
    try:
        yield absent
    finally:
        for name in modules:
            del sys.modules[name]


def _is_installed(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


class _EmptyClass(type):
    """Metaclass of classes that have every attribute: another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # Python's own questions are answered by their absence
            raise AttributeError(name)
        return _empty_class(name)


def _empty_class(name: str) -> Any:
    return _EmptyClass(name, (Exception,), {"__init__": _ignore, "__call__": _same})


def _ignore(self: object, *args: object, **kwargs: object) -> None:
    """Accept any arguments, for example those of `Gt(0)` and `ConfigDict(extra="forbid")`."""


def _same(self: object, decorated: Any) -> Any:
    """Return the decorated method unchanged, for example of `model_validator(mode="after")`."""
    return decorated


class StandIn(ModuleType):
    """Module in which every name is an empty class, usable as annotation, marker, decorator or exception."""

    __path__: list[str] = []  # noqa: RUF012  (marks a package; Python's own protocol)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _empty_class(name)


def _plain_dataclass(*, config: object, **options: Any) -> Callable[[type], type]:
    """Replacement of `pydantic.dataclasses.dataclass` without checks."""

    def decorate(plain: type) -> type:
        made: Any = dataclasses.dataclass(**options)(plain)
        made.__pydantic_fields__ = {}  # by which method parts recognise their config
        return made

    return decorate
