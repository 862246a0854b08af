"""cskt where only torch and numpy are installed: the towers, the losses and the optimiser need nothing else.

A machine with an accelerator often has no way to install a package. Of what this package imports on the way to its
towers, pydantic only checks configs, annotated_types words the checks, and yaml, PIL and simplejpeg read files; a
measurement with constants and random inputs does none of this. So here stand-ins take their places while cskt is
imported: config classes become plain frozen dataclasses whose checks are not made, and every other name of an absent
package becomes an empty class. Afterwards the stand-ins are gone again, so that nobody else who asks for such a package
is told that it is there. What is installed is used as it is.

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
"""Where the package lies in a checkout; it need not be installed."""
PACKAGES = {
    "annotated_types": (),
    "pydantic": ("pydantic.dataclasses",),
    "pydantic_core": (),
    "yaml": (),
    "PIL": (),
    "simplejpeg": (),
}
"""Package that may be absent -> those of its submodules that are imported by name."""


@contextmanager
def imports() -> Iterator[list[str]]:
    """Import cskt inside of this, from the checkout; gives the names of the packages that are stood in for."""
    if str(SOURCE) not in sys.path:
        sys.path.insert(0, str(SOURCE))
    absent = [name for name in PACKAGES if not _is_installed(name)]
    modules = {name: StandIn(name) for package in absent for name in (package, *PACKAGES[package])}
    if "pydantic.dataclasses" in modules:
        modules["pydantic.dataclasses"].dataclass = _plain_dataclass
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
    """A class that has whatever attribute is asked for: another such class."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # Python's own questions are answered by their absence
            raise AttributeError(name)
        return _empty_class(name)


def _empty_class(name: str) -> Any:
    return _EmptyClass(name, (Exception,), {"__init__": _ignore, "__call__": _same})


def _ignore(self: object, *args: object, **kwargs: object) -> None:
    """Take any arguments, as `Gt(0)` and `ConfigDict(extra="forbid")` do."""


def _same(self: object, decorated: Any) -> Any:
    """An object made by `model_validator(mode="after")` decorates a method: leave it as it is, uncalled."""
    return decorated


class StandIn(ModuleType):
    """A module in which every name is an empty class: an annotation, a marker, a decorator or an exception."""

    __path__: list[str] = []  # noqa: RUF012  (marks a package; Python's own protocol)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _empty_class(name)


def _plain_dataclass(*, config: object, **options: Any) -> Callable[[type], type]:
    """`pydantic.dataclasses.dataclass` without pydantic's checks."""
    return dataclasses.dataclass(**options)
