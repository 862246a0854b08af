"""Tensors of a TorchScript archive (OpenAI publishes CLIP as such), read without running what it holds.

An archive is a zip: `<root>/data.pkl` describes a tree of objects, `<root>/data/<key>` holds one raw storage each, and
`<root>/code/` the programs, which stay closed here. The pickle may name tensors, lists and inert modules only.
"""

from __future__ import annotations

import io
import itertools
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


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
    (pickled,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
    root = _Unpickler(archive, pickled.removesuffix("/data.pkl")).load()
    if not isinstance(root, _Module):
        raise pickle.UnpicklingError("its root is no module")
    return dict(_walk(root, "", itertools.count(1)))


class _Module:
    """Stands in for every class of the archive: keeps the attributes, has no behaviour."""

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


class _Unpickler(pickle._Unpickler):
    """Resolves a closed list of names, each to something that only builds tensors and lists.

    The one written in Python: that in C makes a table as long as a pickle says, of gigabytes for ten bytes.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self.archive, self.root = archive, root
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}
        super().__init__(io.BytesIO(self._stored("data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # lists of one type, and values tagged with their type
            return self._untagged
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if (key, dtype) in self.storages:
            return self.storages[key, dtype]
        raw = self._stored(f"data/{key}")
        if len(raw) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} holds {len(raw)} bytes instead of {count} x {dtype.itemsize}")
        whole = torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)
        self.storages[key, dtype] = whole  # asked for again and again, it is read once
        return whole

    def _rebuild_tensor(
        self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> Tensor:
        tensor = storage.as_strided(size, stride, offset)  # refuses to reach beyond the storage
        if tensor.numel() > storage.numel():  # overlapping rows: a small file that would unfold to a vast tensor
            raise pickle.UnpicklingError(f"a tensor of {list(size)} is larger than its storage")
        return tensor

    def _untagged(self, value: object, *_: object) -> object:
        return value

    def _stored(self, name: str) -> bytes:
        entry = self.archive.getinfo(f"{self.root}/{name}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"{entry.filename} is compressed")
        return self.archive.read(entry)
