"""Named tensors from a weight file of any common format, recognised by its content; no code of a file ever runs."""

from __future__ import annotations

import logging
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cskt.config.types import WeightsChoice
from cskt.errors import CsktError
from cskt.model.io.files import read_safetensors
from cskt.model.io.sharded import is_index, shard_paths, weight_map
from cskt.model.io.torch_archive import read_archive, read_legacy
from cskt.model.io.torchscript import is_torchscript, read_torchscript
from cskt.model.io.unpickling import StandIn
from cskt.utils.messages import one_line

logger = logging.getLogger(__name__)

MODEL_KEYS = (
    "state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "params", "weights",
)  # fmt: skip
"""Entries under which checkpoints hold the weights of the model; the first that is there is taken."""
EMA_KEYS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "ema_model_state_dict",
    "model_ema_state_dict", "averaged_model", "swa_model", "params_ema", "shadow",
)  # fmt: skip
"""Entries under which they hold the moving average of the weights."""
MOST_WRAPPERS = 8
"""Entries within entries, and prefixes before prefixes, that are taken off."""
COMPILED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of names that torch.compile and others put in at any place."""
ROOTS = frozenset({
    "visual", "transformer", "vision_model", "text_model", "vision", "text", "base_model", "prompt_learner",
})  # fmt: skip
"""First parts of names that belong to a CLIP itself, and are no prefix."""
COUNTER = "n_averaged"
"""Tensor of torch's AveragedModel beside the weights."""
SIZES = ("input_resolution", "context_length", "vocab_size")
"""Entries without a dot in their names that may be plain numbers in state dicts of OpenAI's."""
DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError, ValueError, LookupError,
    AttributeError, TypeError, ArithmeticError, AssertionError, ImportError, MemoryError,
)  # fmt: skip
"""What the readers of torch, zipfile and pickle raise on files that are cut short, altered or hostile."""


def read_tensors(path: Path, choice: WeightsChoice = "model") -> dict[str, Tensor]:
    """Read a TorchScript archive, a `torch.save` file, a safetensors file, or the shards of an index.

    Args:
        path: the file.
        choice: which weights of a checkpoint that also holds their moving average.

    Returns:
        The tensors in the precision they are stored in (half precision of safetensors as float32), by the names of the
        model: prefixes that wrappers such as DataParallel, torch.compile or Lightning add are taken off.

    Raises:
        CsktError: the file is missing, damaged, no weight file, or holds anything that would have to be executed.
    """
    if is_index(path):
        return named_tensors(_read_shards(path), path, choice)
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
        if start.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(path) as archive:
                _check_archive(archive, path)
                if is_torchscript(archive):
                    return named_tensors(read_torchscript(archive), path, choice)
    except OSError as error:
        raise CsktError(f"{path}: {error.strerror or error}") from None
    except DAMAGE as error:
        raise _one_line(path, error) from None
    if is_safetensors(start):
        return named_tensors(read_safetensors(path)[0], path, choice)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return named_tensors(load_checkpoint(path), path, choice)
    raise CsktError(f"{path}: {_describe(start)}")


def load_plain(path: Path) -> Any:
    """Read a `torch.save` file that holds tensors and plain values alone.

    Raises:
        CsktError: damaged, or it holds objects that only code could rebuild.
    """
    try:
        _check_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CsktError(f"{path}: {error.strerror or error}") from None
    except DAMAGE as error:
        raise _one_line(path, error) from None


def load_checkpoint(path: Path) -> Any:
    """Read a `torch.save` file of another program: as `load_plain`, but objects beside the tensors are skipped.

    Raises:
        CsktError: damaged, or it asks for functions that are no plain data.
    """
    try:
        _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about pickle protocols that the reader below understands
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CsktError(f"{path}: {error.strerror or error}") from None
    except DAMAGE:
        pass
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(4) == b"PK\x03\x04"
        if not is_zip:
            return read_legacy(path)
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
            return read_archive(archive)
    except OSError as error:
        raise CsktError(f"{path}: {error.strerror or error}") from None
    except DAMAGE as error:
        raise _one_line(path, error) from None


def save_torch(content: Any, path: Path) -> None:
    """Write a file with `torch.save`.

    Raises:
        OSError: the disk is full, which torch reports as a RuntimeError, or the file cannot be written.
    """
    try:
        torch.save(content, path)
    except RuntimeError as error:
        raise OSError(one_line(error)) from error


def named_tensors(content: Any, path: Path, choice: WeightsChoice = "model") -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by the names of its model.

    Args:
        content: what the file holds: tensors by name, or a mapping that holds such mappings.
        path: for messages.
        choice: which weights, where the file also holds their moving average.

    Raises:
        CsktError: no tensors by name, tensors that unfold to more than the file holds, or no moving average although
            it is asked for.
    """
    found, has_both = _unwrapped(content, path, choice)
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(name, str):
            raise CsktError(f"{path}: entry '{str(name)[:80]}' is no name of a tensor")
        if isinstance(value, int | float) and ("." in name or name in SIZES) and abs(value) < 2**31:
            value = torch.tensor(value)  # noqa: PLW2901
        if not isinstance(value, Tensor):
            continue  # epochs, arguments and the like beside the tensors; one that is missing is noticed later
        if not _is_plain(value):
            raise CsktError(f"{path}: entry '{name[:80]}' is sparse, quantised or unfolds to more than the file holds")
        tensors[name] = value
    if not tensors:
        raise CsktError(f"{path}: holds no named tensors{_instead(content)}")
    tensors, has_both_by_name = _stripped(tensors, path, choice)
    if has_both or has_both_by_name:
        other = "the model's own weights" if choice == "ema" else "their moving average"
        logger.info("%s: holds a model and its moving average; --weights %s is taken, not %s", path, choice, other)
    return tensors


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins so is safetensors: the header's length in eight bytes, then JSON."""
    return start[8:9] == b"{"


def is_torchscript_file(path: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return is_torchscript(archive)


def _unwrapped(content: Any, path: Path, choice: WeightsChoice) -> tuple[Mapping[Any, Any], bool]:
    """The mapping that holds the chosen tensors, and whether both kinds of weights are there."""
    average: Any = None
    has_both = False
    for _ in range(MOST_WRAPPERS):
        if not isinstance(content, Mapping):
            break
        model, ema = _entry(content, MODEL_KEYS), _entry(content, EMA_KEYS)
        is_model = model is None and any(isinstance(value, Tensor) for value in content.values())
        has_both = has_both or (ema is not None and (model is not None or is_model))
        if ema is not None and (choice == "ema" or (model is None and not is_model)):
            average = content = ema
        elif model is not None:
            content = model
        else:
            break
    if not isinstance(content, Mapping) or not content:
        raise CsktError(f"{path}: holds no named tensors{_instead(content)}")
    if average is not None and choice == "model":
        raise CsktError(f"{path}: holds a moving average alone, no model; give --weights ema")
    names = [name for name in content if isinstance(name, str)]
    if choice == "ema" and average is None and not _prefixes(names) & set(EMA_KEYS):
        raise CsktError(f"{path}: holds no moving average of the weights; leave out --weights ema")
    return content, has_both


def _entry(content: Mapping[Any, Any], keys: Iterable[str]) -> Any:
    return next((content[key] for key in keys if isinstance(content.get(key), Mapping) and content[key]), None)


def _stripped(tensors: dict[str, Tensor], path: Path, choice: WeightsChoice) -> tuple[dict[str, Tensor], bool]:
    """The same without prefixes that all names share, and whether prefixes told a model from its moving average."""
    as_stored = tensors
    tensors = _renamed(tensors, lambda name: ".".join(part for part in name.split(".") if part not in COMPILED), path)
    has_both = False
    for _ in range(MOST_WRAPPERS):
        counted = {name: value for name, value in tensors.items() if name != COUNTER}
        first = _prefixes(counted)
        if len(first) == 2 and first & set(EMA_KEYS) and first & set(MODEL_KEYS):
            (chosen,) = first & set(EMA_KEYS if choice == "ema" else MODEL_KEYS)
            counted, has_both = {n: v for n, v in counted.items() if n.startswith(f"{chosen}.")}, True
        elif len(first) != 1 or first & ROOTS or not all("." in name for name in counted):
            break
        tensors = _renamed(counted, lambda name: name.partition(".")[2], path)
    return (tensors, has_both) if _prefixes(tensors) & ROOTS else (as_stored, False)  # else errors name what is stored


def _prefixes(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _renamed(tensors: Mapping[str, Tensor], rename: Any, path: Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {rename(name): value for name, value in tensors.items()}
    if len(renamed) < len(tensors):
        raise CsktError(f"{path}: two tensors have one name once the prefixes of their wrappers are taken off")
    return renamed


def _read_shards(index: Path) -> dict[str, Tensor]:
    wanted, found = weight_map(index), dict[str, Tensor]()
    for shard in shard_paths(index):
        if is_index(shard):
            raise CsktError(f"{index}: 'weight_map' names an index, {shard.name}, as a shard")
        tensors = _read_shard(shard)
        if twice := found.keys() & tensors.keys():
            raise CsktError(f"{index}: tensor '{min(twice)[:80]}' is in two shards")
        if lost := [name for name, place in wanted.items() if place == shard.name and name not in tensors]:
            raise CsktError(f"{index}: tensor '{min(lost)[:80]}' is missing in {shard.name}")
        found |= tensors
    return found


def _read_shard(shard: Path) -> dict[str, Tensor]:
    """The tensors of a shard by the names that its index gives them."""
    try:
        with shard.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise CsktError(f"{shard}: {error.strerror or error}") from None
    if is_safetensors(start):
        return read_safetensors(shard)[0]
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise CsktError(f"{shard}: {_describe(start)}")
    content = load_checkpoint(shard)
    if not isinstance(content, Mapping):
        raise CsktError(f"{shard}: holds no named tensors{_instead(content)}")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _check_zip(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """See that what is read of an archive is no larger than its file: torch unpacks, and reads overlapping entries."""
    entries = archive.infolist()
    stored = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
    if len(stored) < len(entries) and not is_torchscript(archive):  # those pack their programs, which are not opened
        raise zipfile.BadZipFile("an entry is compressed")
    if sum(entry.file_size for entry in stored) > path.stat().st_size:
        raise zipfile.BadZipFile("its entries claim more bytes than the file has")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has a number of its own in memory for each place."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _instead(content: Any) -> str:
    """A clause that says what a file holds in place of tensors."""
    if isinstance(content, StandIn):
        return f", but an object of {content.origin}; save its tensors: torch.save(model.state_dict(), FILE)"
    return ""


def _one_line(path: Path, error: BaseException) -> CsktError:
    reason = " ".join(str(error).split())
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
        return CsktError(f"{path}: damaged, it ends too early ({reason[:160]}); fetch it again")
    clause = f" ({reason[:160]})" if reason else ""
    return CsktError(f"{path}: damaged, or not written by torch.save (nothing in it was executed){clause}")


def _is_cut_short(path: Path, error: BaseException) -> bool:
    """Return whether a file that could not be read ends before its content does."""
    if isinstance(error, zipfile.BadZipFile):
        return not zipfile.is_zipfile(path)  # the directory of an archive is at its end
    return isinstance(error, EOFError) or "truncated" in str(error) or "exhausted before" in str(error)


def _describe(start: bytes) -> str:
    """Describe a file that is no weight file, and what to do."""
    text = start.lstrip().lower()
    expected = "expected a weight file (.pt, .pth, .bin, .safetensors)"
    if not start:
        return f"an empty file, {expected}; fetch it again"
    if text.startswith(b"<"):
        return f"a web page, {expected}; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return f"a Git LFS pointer, {expected}; fetch the content with 'git lfs pull'"
    return f"an unknown format, {expected}"
