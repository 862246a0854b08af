"""Named tensors from a weight file of any common format, recognised by its content; no code of a file ever runs."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cskt.model.files import read_safetensors
from cskt.model.torchscript import is_torchscript, read_torchscript

WRAPPERS = ("state_dict", "model")
DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError, ValueError, LookupError,
    AttributeError, TypeError, ArithmeticError, AssertionError, ImportError, MemoryError,
)  # fmt: skip
"""What the readers of torch, zipfile and pickle raise on files that are cut short, altered or hostile."""


class NamedTensors(NamedTuple):
    """The tensors of a file and where they came from."""

    tensors: dict[str, Tensor]
    """As stored: the file's names without a common `module.`, any dtype."""
    is_torchscript: bool
    """A TorchScript archive: the form in which OpenAI, and nobody else, publishes CLIP."""


def read_tensors(path: Path) -> NamedTensors:
    """Read a TorchScript archive, a `torch.save` file or a safetensors file.

    Raises:
        ValueError: the file is missing, damaged, no weight file, or holds anything that would have to be executed.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                _check_archive(archive, path)
                if is_torchscript(archive):
                    return NamedTensors(read_torchscript(archive), is_torchscript=True)
        if is_safetensors(start):
            return NamedTensors(read_safetensors(path)[0], is_torchscript=False)
        if start.startswith((b"PK\x03\x04", b"\x80")):
            return NamedTensors(state_dict(load_plain(path), path), is_torchscript=False)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except DAMAGE as error:
        raise ValueError(_one_line(path, error)) from None
    raise ValueError(f"{path}: {_describe(start)}, not a weight file (.pt, .pth, .safetensors); fetch it again")


def load_plain(path: Path) -> Any:
    """What a `torch.save` file holds, if that is tensors and plain values.

    Raises:
        ValueError: damaged, or it holds objects that only code could rebuild.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_archive(archive, path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except DAMAGE as error:
        raise ValueError(_one_line(path, error)) from None


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, out of its wrapper and without a common `module.` prefix.

    Raises:
        ValueError: no mapping of names to tensors; names the entry.
    """
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: holds no named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | int | float | None):
            raise ValueError(f"{path}: entry '{str(name)[:80]}' is a {type(value).__name__}, expected a tensor")
        if isinstance(value, Tensor) and not _is_plain(value):
            raise ValueError(f"{path}: entry '{name[:80]}' is sparse, quantised or unfolds to more than the file holds")
    shared = "module." if all(name.startswith("module.") for name in content) else ""
    try:
        return {
            name.removeprefix(shared): torch.as_tensor(value) for name, value in content.items() if value is not None
        }
    except (RuntimeError, OverflowError) as error:
        raise ValueError(_one_line(path, error)) from None


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so is safetensors: the header's length in eight bytes, then JSON."""
    return start[8:9] == b"{"


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """See that what is read of an archive is no larger than its file: torch unpacks, and reads overlapping entries."""
    entries = archive.infolist()
    stored = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
    if len(stored) < len(entries) and not is_torchscript(archive):  # those pack their programs, which stay closed
        raise zipfile.BadZipFile("an entry is compressed")
    if sum(entry.file_size for entry in stored) > path.stat().st_size:
        raise zipfile.BadZipFile("its entries claim more bytes than the file has")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has a number of its own in memory for each place."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _one_line(path: Path, error: BaseException) -> str:
    reason = " ".join(str(error).split())
    if reason.startswith(str(path)):
        return reason
    if reason.startswith("Weights only load failed"):  # and torch goes on to say how to let the file have its way
        asked_for = re.search(r"GLOBAL ([\w.]+)", reason)
        reason = f"it asks for {asked_for[1]}" if asked_for else ""
    clause = f" ({reason[:160]})" if reason else ""
    return f"{path}: damaged, or it holds more than tensors (nothing in it was executed); fetch it again{clause}"


def _describe(start: bytes) -> str:
    text = start.lstrip().lower()
    if not start:
        return "an empty file"
    if text.startswith(b"<"):
        return "a web page"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    return "an unknown format"
