"""Tensors of a weight file of any common format, recognised by its content; no code of a file ever runs."""

from __future__ import annotations

import pickle
import struct
import traceback
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Len
from pydantic.dataclasses import dataclass
from torch import Tensor

from cskt.config.types import WeightsChoice
from cskt.errors import CsktError, FileSystemError, file_system_errors, from_os_error
from cskt.model.io.checkpoints import named_tensors, stand_in_note
from cskt.model.io.native import read_safetensors
from cskt.model.io.torch_files import is_torchscript, read_archive, read_legacy, read_torchscript
from cskt.utils.json_files import FOREIGN, read_json
from cskt.utils.messages import one_line

INDEX = ".index.json"
"""End of the name of an index of shards, as Hugging Face writes large models: `model.safetensors.index.json`."""
MAX_SHARDS = 1000
DAMAGE = (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, MemoryError)
"""Exceptions of all readers for files that are cut short, altered or hostile."""
DAMAGE_OF_LIBRARIES = (
    struct.error, RuntimeError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, AssertionError,
    ImportError,
)  # fmt: skip
"""Further ones of `LIBRARIES`; raised anywhere else, they are bugs."""
LIBRARIES = ("pickle", "zipfile", "torch", "codecs", "encodings")
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""First bytes of files of `torch.save`."""


def read_tensors(path: Path, choice: WeightsChoice = "model") -> dict[str, Tensor]:
    """Read a TorchScript archive, a `torch.save` file, a safetensors file, or the shards of an index.

    The tensors are in the precision they are stored in (half precision of safetensors as float32), and have the names
    of the model: prefixes that wrappers such as DataParallel, torch.compile or Lightning add are removed.
    """
    return named_tensors(_read_shards(path) if is_index(path) else _read_file(path), path, choice)


def _read_file(path: Path) -> Any:
    if is_safetensors(path):
        return read_safetensors(path)[0]
    if _first_bytes(path).startswith(ZIP):
        with _opened_archive(path) as archive:
            if is_torchscript(archive):
                with _reader_errors(path):
                    return read_torchscript(archive)
    return load_checkpoint(path)


def load_plain(path: Path) -> Any:
    """Read a `torch.save` file that holds tensors and plain values alone."""
    if _is_archive(path):
        with _opened_archive(path):
            pass  # it has been checked
    with _reader_errors(path):
        return torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(path: Path) -> Any:
    """Read a `torch.save` file of another program: as `load_plain`, but objects beside the tensors are skipped."""
    start = _first_bytes(path)
    if not start.startswith((ZIP, PICKLE)):
        raise CsktError(f"{path}: {_describe(start)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickle protocols that the reader below understands
            return load_plain(path)
    except FileSystemError:
        raise
    except CsktError:  # the readers below take more
        pass
    if not start.startswith(ZIP):
        with _reader_errors(path):
            return read_legacy(path)
    with _opened_archive(path) as archive, _reader_errors(path):
        return read_archive(archive)


def stored_names(path: Path) -> list[str]:
    """Return the names in a `torch.save` file of another program, and in the mappings that it holds; of an archive no
    numbers are read."""
    if _is_archive(path):
        with _opened_archive(path) as archive, _reader_errors(path):
            content = read_archive(archive, only_shapes=True)
    else:
        content = load_checkpoint(path)
    outer = content if isinstance(content, Mapping) else {}
    inner = [value for value in outer.values() if isinstance(value, Mapping)]
    return [name for mapping in (outer, *inner) for name in mapping if isinstance(name, str)]


def save_torch(content: Any, path: Path) -> None:
    """Write a file with `torch.save`.

    Raises:
        OSError: the disk is full, which torch reports as a RuntimeError, or the file cannot be written.
    """
    try:
        torch.save(content, path)
    except RuntimeError as error:
        raise OSError(one_line(error)) from error


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors: the header's length in eight bytes, then JSON."""
    return _first_bytes(path)[8:9] == b"{"


def is_torchscript_file(path: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    if not _is_archive(path):
        return False
    with _opened_archive(path) as archive:
        return is_torchscript(archive)


def is_index(path: Path) -> bool:
    """Return whether a file is, by its name, an index of shards."""
    return path.name.endswith(INDEX)


@dataclass(config=FOREIGN, frozen=True)
class _Index:
    weight_map: Annotated[dict[str, str], Len(min_length=1, max_length=1_000_000)]
    """Name of a tensor -> name of the shard that holds it."""


def _weight_map(index: Path) -> dict[str, str]:
    return read_json(index, _Index, remedy="copy the index of the model's repository anew").weight_map


def shard_names(index: Path) -> list[str]:
    """Return the names of the shards of an index, in order, each once."""
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        # Not `paths.inside`: in the cache of huggingface_hub every file is a link to elsewhere.
        if Path(name).name != name or "\\" in name or "\0" in name or name in ("", ".", ".."):
            raise CsktError(f"{index}: 'weight_map' names the shard {name[:80]!r}; a shard is a file beside its index")
    if len(names) > MAX_SHARDS:
        raise CsktError(f"{index}: 'weight_map' names {len(names):,} shards, at most {MAX_SHARDS:,} are read")
    return names


def shard_paths(index: Path) -> list[Path]:
    """Return the files of the shards of an index."""
    paths = [index.with_name(name) for name in shard_names(index)]
    if missing := [path.name for path in paths if not path.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CsktError(f"{index}: the shard {missing[0]}{more} is missing; put it beside the index")
    return paths


def _read_shards(index: Path) -> dict[str, Tensor]:
    wanted, found = _weight_map(index), dict[str, Tensor]()
    for shard in shard_paths(index):
        if is_index(shard):
            raise CsktError(f"{index}: 'weight_map' names an index, {shard.name}, as a shard")
        content = _read_file(shard)
        if not isinstance(content, Mapping):
            raise CsktError(f"{shard}: holds no named tensors{stand_in_note(content)}")
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if twice := found.keys() & tensors.keys():
            raise CsktError(f"{index}: tensor '{min(twice)[:80]}' is in two shards")
        if lost := [name for name, place in wanted.items() if place == shard.name and name not in tensors]:
            raise CsktError(f"{index}: tensor '{min(lost)[:80]}' is missing in {shard.name}")
        found |= tensors
    return found


def _first_bytes(path: Path) -> bytes:
    with file_system_errors(path), path.open("rb") as stream:
        return stream.read(64)


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # an end of a directory whose numbers are wrong
        return True


@contextmanager
def _reader_errors(path: Path) -> Iterator[None]:
    """Turn the errors of readers into a CsktError; the block only reads a file with torch, zipfile or pickle."""
    try:
        yield
    except DAMAGE as error:
        raise _damage(path, error) from None
    except DAMAGE_OF_LIBRARIES as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].partition(".")[0] not in LIBRARIES:
            raise
        raise _damage(path, error) from None


@contextmanager
def _opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Return a context with an open archive that has been checked."""
    with _reader_errors(path):
        archive = zipfile.ZipFile(path)
    with archive:
        _check_archive(archive, path)
        yield archive


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Check that no more is read of an archive than its file holds: torch unpacks, and reads overlapping entries.

    Raises:
        CsktError: more would be read.
    """
    entries = archive.infolist()
    stored = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
    if len(stored) < len(entries) and not is_torchscript(archive):  # those pack their programs, which are not opened
        raise _damage(path, zipfile.BadZipFile("an entry is compressed"))
    if sum(entry.file_size for entry in stored) > path.stat().st_size:
        raise _damage(path, zipfile.BadZipFile("its entries claim more bytes than the file has"))


def _damage(path: Path, error: BaseException) -> CsktError:
    """Return the error for a file on which a reader raised one of `DAMAGE`."""
    if isinstance(error, CsktError):
        return error
    if isinstance(error, OSError):
        return from_os_error(error, path)
    reason = one_line(error)
    if reason.startswith(str(path)):
        return CsktError(reason)
    if reason.startswith("it asks for ") or "Weights only load failed" in reason:
        _, found, asked_for = reason.partition("GLOBAL ")
        reason = f"it asks for {asked_for.split()[0]}" if found else reason
        clause = f": {reason[:160]}" if reason.startswith("it asks") else ""
        return CsktError(
            f"{path}: holds more than tensors and plain data (nothing in it was executed){clause}; save its tensors"
            " alone: torch.save(model.state_dict(), FILE)"
        )
    if _is_cut_short(path, error):
        return CsktError(f"{path}: corrupt, it ends too early ({reason[:160]}); fetch it again")
    clause = f" ({reason[:160]})" if reason else ""
    return CsktError(f"{path}: corrupt, or not written by torch.save (nothing in it was executed){clause}")


def _is_cut_short(path: Path, error: BaseException) -> bool:
    """Return whether a file that could not be read ends before its content does."""
    if isinstance(error, zipfile.BadZipFile):
        return not _is_archive(path)  # the directory of an archive is at its end
    return isinstance(error, EOFError) or "truncated" in str(error) or "exhausted before" in str(error)


def _describe(start: bytes) -> str:
    """Return a clause that describes a file that is no weight file, with the remedy."""
    text = start.lstrip().lower()
    expected = "expected a weight file (.pt, .pth, .bin, .safetensors)"
    if not start:
        return f"an empty file, {expected}; fetch it again"
    if text.startswith(b"<"):
        return f"a web page, {expected}; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return f"a Git LFS pointer, {expected}; fetch the content with 'git lfs pull'"
    return f"an unknown format, {expected}"
