"""Imports of a command that answers once and ends.

`import lancedb` spends half of its time on `lance_namespace_urllib3_client`, the classes of a client for remote
catalogues, which a gallery in a folder never uses. Here each of these classes is a stand-in that imports the client
when it is first used. Another part of the time is pandas, if it is installed: pyarrow imports it to recognise its
arrays, which no store of ours gives to pyarrow.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CLIENT = "lance_namespace_urllib3_client"


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: modules are none, and looking for some takes a sixth of an import's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # so that later collections leave the modules out
        if enabled:
            gc.enable()


def quicken_lancedb() -> None:
    """Let LanceDB, unless it is imported already, import the client of remote catalogues and pandas only when used."""
    if not any(name in sys.modules for name in ("lancedb", CLIENT)):
        sys.meta_path[:0] = [DeferredClient(), PandasHider()]


class PandasHider(MetaPathFinder):
    """Imports pyarrow before LanceDB does, and lets it find no pandas; a conversion to pandas looks for it again."""

    def __init__(self) -> None:
        self.hides = False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """Find nothing; fail for pandas while pyarrow is imported."""
        if self.hides and fullname == "pandas":
            raise ModuleNotFoundError("pandas is hidden", name=fullname)
        if fullname == "lancedb":
            self.hides = True
            with suppress(ImportError):  # LanceDB reports it
                importlib.import_module("pyarrow.dataset")
            self.hides = False
        return None


class DeferredClient(MetaPathFinder, Loader):
    """Finds modules of `CLIENT`, all of whose names are `DeferredClass`es."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """Return the module's place, for this package alone."""
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == CLIENT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return an empty module."""
        return DeferredModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""


class DeferredModule(ModuleType):
    """Module that makes a `DeferredClass` of every name that is imported from it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = DeferredClass(name, (), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class DeferredClass(type):
    """Class that stands for one of the client, which is imported for the first instance or attribute."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        return _original(cls)(*args, **values)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # what annotations and decorators look for
            raise AttributeError(name)
        return getattr(_original(cls), name)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _original(cls))


def _original(stand_in: type) -> Any:
    """Return the class of the client, which is imported unless it is already."""
    deferred = [name for name, module in sys.modules.items() if isinstance(module, DeferredModule)]
    if deferred:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, DeferredClient)]
        for name in deferred:
            del sys.modules[name]
    return getattr(importlib.import_module(stand_in.__module__), stand_in.__name__)
