"""Files of `torch.save`, read by the restricted unpickler: zip archives, and the format before torch 1.6.

`torch.load(weights_only=True)` comes first (`tensors.load_checkpoint`); this reader takes what it refuses although it
is harmless: objects beside the tensors, and pickle protocols above 2.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cskt.model.io.unpickling import RestrictedUnpickler

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_archive(archive: zipfile.ZipFile) -> Any:
    """Return what a zip archive of `torch.save` holds, with stand-ins for everything but plain values and tensors.

    Raises:
        pickle.UnpicklingError, zipfile.BadZipFile, KeyError, EOFError, ...: it is damaged, or asks for code.
    """
    return ArchiveUnpickler(archive).load()


def read_legacy(path: Path) -> Any:
    """Return what a file of `torch.save` before torch 1.6 holds; see `read_archive`."""
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
    (count,) = struct.unpack("<q", stream.read(8))
    if count != storage.numel():
        raise pickle.UnpicklingError(f"a storage holds {count} numbers instead of {storage.numel()}")
    raw = stream.read(count * storage.element_size())
    if len(raw) < count * storage.element_size():
        raise EOFError("a storage is cut short")
    if count:
        storage.copy_(torch.frombuffer(bytearray(raw), dtype=storage.dtype))


class ArchiveUnpickler(RestrictedUnpickler):
    """Reads data.pkl of a zip archive, and the storages beside it."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        (pickled,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        self.archive, self.root = archive, pickled.removesuffix("/data.pkl")
        self.storages: dict[tuple[str, torch.dtype], Tensor] = {}
        if f"{self.root}/byteorder" in archive.namelist() and self._stored("byteorder") != b"little":
            raise pickle.UnpicklingError("written on another kind of processor")
        content = self._stored("data.pkl")
        super().__init__(io.BytesIO(content), len(content))

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor."""
        _, dtype, key, _, count = pid
        if (key, dtype) in self.storages:
            return self.storages[key, dtype]
        raw = self._stored(f"data/{key}")
        if len(raw) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} holds {len(raw)} bytes instead of {count} x {dtype.itemsize}")
        whole = torch.frombuffer(bytearray(raw), dtype=dtype) if count else torch.empty(0, dtype=dtype)
        self.storages[key, dtype] = whole  # asked for again and again, it is read once
        return whole

    def _stored(self, name: str) -> bytes:
        entry = self.archive.getinfo(f"{self.root}/{name}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"{entry.filename} is compressed")
        return self.archive.read(entry)


class _LegacyUnpickler(RestrictedUnpickler):
    """Reads the content of a legacy file; its storages follow behind and are filled later."""

    def __init__(self, stream: BinaryIO, num_bytes: int) -> None:
        super().__init__(stream, num_bytes)
        self.storages: dict[str, Tensor] = {}
        self._left = num_bytes

    def persistent_load(self, pid: Any) -> Tensor:
        """Return a storage as a flat tensor, not yet filled."""
        _, dtype, key, _, count, view = pid
        if view is not None:
            raise pickle.UnpicklingError("a storage that is a part of another is not supported")
        if str(key) not in self.storages:
            self._left -= count * dtype.itemsize
            if count < 0 or self._left < 0:
                raise EOFError("its storages are larger than the file")
            self.storages[str(key)] = torch.empty(count, dtype=dtype)
        if self.storages[str(key)].dtype != dtype:
            raise pickle.UnpicklingError(f"storage {key} has two types")
        return self.storages[str(key)]
