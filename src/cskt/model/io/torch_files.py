"""Archives of `torch.save` and TorchScript, and files of `torch.save` before torch 1.6, read without running code.

`torch.load(weights_only=True)` comes first (`tensors.load_checkpoint`); these readers take what it refuses although it
is harmless: objects beside the tensors, pickle protocols above 2, and TorchScript (the format of OpenAI's CLIP).

An archive is a zip: `<root>/data.pkl` describes a tree of objects, `<root>/data/<key>` is one raw storage each;
TorchScript's programs in `<root>/code/` are not opened.

For a file that is corrupt or asks for code, the functions here raise one of `tensors.DAMAGE` themselves; the libraries
that they call may also raise one of `tensors.DAMAGE_OF_LIBRARIES`.
"""

from __future__ import annotations

import io
import itertools
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cskt.model.io.unpickling import Module, RestrictedUnpickler, StandIn, first_argument, refused

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_DEPTH = 100
"""Levels of modules within modules."""
MAX_MODULES = 10_000
"""Visits of modules in a TorchScript tree; a tree that names its own parts twice at every level would never end."""


def read_archive(archive: zipfile.ZipFile, *, only_shapes: bool = False) -> Any:
    """Return the content of an archive of `torch.save`, with stand-ins for all but plain values and tensors.

    With `only_shapes` no storage is read, and tensors are on the device `meta`.
    """
    return ArchiveUnpickler(archive, only_shapes=only_shapes).load()


def read_legacy(path: Path) -> Any:
    """Return the content of a file of `torch.save` before torch 1.6; see `read_archive`."""
    num_bytes = path.stat().st_size
    with path.open("rb") as stream:
        magic = RestrictedUnpickler(stream, num_bytes).load()
        if magic != LEGACY_MAGIC:
            raise pickle.UnpicklingError("a pickle that torch.save did not write")
        protocol, system = (RestrictedUnpickler(stream, num_bytes).load() for _ in range(2))
        if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise pickle.UnpicklingError("written by another version of torch, or on another kind of processor")
        unpickler = _LegacyUnpickler(stream, num_bytes)
        content = unpickler.load()
        keys = RestrictedUnpickler(stream, num_bytes).load()
        if not isinstance(keys, list) or {str(key) for key in keys} != unpickler.storages.keys():
            raise pickle.UnpicklingError("its storages are not those that its tensors name")
        for key in keys:
            _fill(unpickler.storages[str(key)], stream)
        return content


def _fill(storage: Tensor, stream: BinaryIO) -> None:
    size = stream.read(8)
    if len(size) < 8:
        raise EOFError("a storage is cut short")
    (count,) = struct.unpack("<q", size)
    if count != storage.numel():
        raise pickle.UnpicklingError(f"a storage holds {count} numbers instead of {storage.numel()}")
    raw = stream.read(count * storage.element_size())
    if len(raw) < count * storage.element_size():
        raise EOFError("a storage is cut short")
    if count:
        storage.copy_(torch.frombuffer(bytearray(raw), dtype=storage.dtype))


class ArchiveUnpickler(RestrictedUnpickler):
    """Reads data.pkl of an archive, and the storages beside it."""

    def __init__(self, archive: zipfile.ZipFile, *, only_shapes: bool = False) -> None:
        pickled = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise pickle.UnpicklingError(f"it has {len(pickled)} files data.pkl instead of one")
        self.archive, self.root = archive, pickled[0].removesuffix("/data.pkl")
        self.only_shapes = only_shapes
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}
        if f"{self.root}/byteorder" in archive.namelist() and self._stored("byteorder") != b"little":
            raise pickle.UnpicklingError("written on another kind of processor")
        content = self._stored("data.pkl")
        super().__init__(io.BytesIO(content), len(content))

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor, read once."""
        dtype, key, count = _storage_of(pid, 5)
        if (key, dtype) in self.storages:
            return self.storages[key, dtype]
        if self.only_shapes:
            return torch.empty(count, dtype=dtype, device="meta")
        raw = self._stored(f"data/{key}")
        if len(raw) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} holds {len(raw)} bytes instead of {count} x {dtype.itemsize}")
        whole = torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)
        self.storages[key, dtype] = whole
        return whole

    def _stored(self, name: str) -> bytes:
        try:
            entry = self.archive.getinfo(f"{self.root}/{name}")
        except KeyError:
            raise pickle.UnpicklingError(f"{name} is missing") from None
        if entry.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"{entry.filename} is compressed")
        return self.archive.read(entry)


def _storage_of(pid: Any, length: int) -> tuple[torch.dtype, str, int]:
    """Return type, key and number of values of a storage, from the tuple of `length` parts that names it."""
    if not isinstance(pid, tuple) or len(pid) != length:
        raise pickle.UnpicklingError("a storage is named in an unknown form")
    _, dtype, key, _, count = pid[:5]
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str | int) or not isinstance(count, int):
        raise pickle.UnpicklingError("a storage is named in an unknown form")
    return dtype, str(key), count


class _LegacyUnpickler(RestrictedUnpickler):
    """Reads the content of a legacy file; its storages come after it and are filled later."""

    def __init__(self, stream: BinaryIO, num_bytes: int) -> None:
        super().__init__(stream, num_bytes)
        self.storages: dict[str, Tensor] = {}
        self._left = num_bytes

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor, not yet filled."""
        dtype, key, count = _storage_of(pid, 6)
        if pid[5] is not None:
            raise pickle.UnpicklingError("a storage that is a part of another is not supported")
        if key not in self.storages:
            self._left -= count * dtype.itemsize
            if count < 0 or self._left < 0:
                raise EOFError("its storages are larger than the file")
            self.storages[key] = torch.empty(count, dtype=dtype)
        if self.storages[key].dtype != dtype:
            raise pickle.UnpicklingError(f"storage {key} has two types")
        return self.storages[key]


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Return whether a zip is a TorchScript archive; those of `torch.save` have no constants."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Return every tensor of the module tree by its dotted name, in the precision it was saved in."""
    root = _TorchScriptUnpickler(archive).load()
    if not isinstance(root, Module):
        raise pickle.UnpicklingError("its root is no module")
    return dict(_tensors_of(root, "", itertools.count(1)))


def _tensors_of(module: Module, prefix: str, visits: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    if next(visits) > MAX_MODULES:
        raise pickle.UnpicklingError(f"a tree of more than {MAX_MODULES:,} modules")
    if prefix.count(".") > MAX_DEPTH:
        raise pickle.UnpicklingError(f"modules within modules, more than {MAX_DEPTH} deep")
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Module):
            yield from _tensors_of(value, f"{prefix}{name}.", visits)


class _TorchScriptUnpickler(ArchiveUnpickler):
    """Follows the names that TorchScript writes, and no stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch.jit._pickle":  # lists of one type, and values tagged with their type
            return first_argument
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        found = super().find_class(module, name)
        is_stand_in = isinstance(found, type) and issubclass(found, StandIn)
        if is_stand_in or (module == "torch._utils" and name != "_rebuild_tensor_v2"):
            raise refused(module, name)
        return found
