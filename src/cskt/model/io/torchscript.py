"""Tensors of a TorchScript archive (OpenAI publishes CLIP as such), read without running what it holds.

An archive is a zip: `<root>/data.pkl` describes a tree of objects, `<root>/data/<key>` holds one raw storage each, and
`<root>/code/` the programs, which are not opened here. The pickle may name tensors, lists and inert modules only.
"""

from __future__ import annotations

import itertools
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from cskt.model.io.torch_archive import ArchiveUnpickler
from cskt.model.io.unpickling import StandIn, Stateful, refused

MOST_MODULES = 10_000
"""In the tree; one that names its own parts twice at every level has few objects and no end."""


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether a zip is a TorchScript archive; those of `torch.save` have no constants."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Every tensor of the module tree by its dotted name, in the precision it was saved in.

    Raises:
        pickle.UnpicklingError: the pickle asks for anything but tensors and modules, or contradicts itself.
        zipfile.BadZipFile, KeyError, EOFError, ...: the archive is damaged.
    """
    root = _Unpickler(archive).load()
    if not isinstance(root, _Module):
        raise pickle.UnpicklingError("its root is no module")
    return dict(_walk(root, "", itertools.count(1)))


class _Module(Stateful):
    """Stands in for every class of the archive: holds the attributes, has no behaviour."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module's state is no mapping")
        self.attributes = state


def _walk(module: _Module, prefix: str, visits: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    if next(visits) > MOST_MODULES:
        raise pickle.UnpicklingError(f"a tree of more than {MOST_MODULES:,} modules")
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _walk(value, f"{prefix}{name}.", visits)


class _Unpickler(ArchiveUnpickler):
    """Follows the names that TorchScript writes, and no stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch.jit._pickle":  # lists of one type, and values tagged with their type
            return _untagged
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        found = super().find_class(module, name)
        is_stand_in = isinstance(found, type) and issubclass(found, StandIn)
        if is_stand_in or (module == "torch._utils" and name != "_rebuild_tensor_v2"):
            raise refused(module, name)
        return found


def _untagged(value: object, *_: object) -> object:
    return value
