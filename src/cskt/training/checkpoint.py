"""`last.pt`, from which a run resumes as if it had never stopped; `last.previous.pt`, the checkpoint before it.

A checkpoint is a `torch.save` file. `torch.load` verifies no checksum, and those of the zip archive do not cover its
directory, where one flipped bit makes a tensor of arbitrary memory. So the SHA-256 of all bytes is stored in the file,
as the comment of the archive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cskt.config import RunConfig, as_trained, completed_like, flat_values, to_dict, validate
from cskt.config.file_names import DAMAGED, PREVIOUS
from cskt.errors import CsktError, MissingFileError, file_system_errors
from cskt.model.io.cache import label_of
from cskt.model.io.tensors import load_plain, save_torch
from cskt.training.state import Progress, TrainState, trainable_state, unlike_names
from cskt.utils.files import write_atomically
from cskt.utils.messages import one_line

logger = logging.getLogger(__name__)

FREE_ON_RESUME = {
    "name", "output_dir", "device", "backbone.name", "data.root", "data.num_workers", "data.cache_images",
    "data.cache_dir", "data.noise_file", "data.eval_batch_size", "loop.log_period_steps", "loop.save_period_steps",
    "loop.micro_batch_size", "loop.fit", "loop.compile", "loop.checkpoint_activations", "loop.stop_after_epochs",
    "loop.loggers",
}  # fmt: skip
"""Keys that may differ when a run is resumed: they change where and how fast, not what is computed. The backbone is
identified by its SHA-256."""
REQUIRED_ENTRIES = {"config", "backbone_sha256", "data_sha256", "model", "objective", "optimizer", "scaler", "progress"}
"""Entries of every checkpoint."""
START_AGAIN = "; start a new run"
NOTHING_TO_RESUME = "; nothing to resume, start the run again with --output"
"""Ends of messages about a file that no `last.previous.pt` replaces."""

IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
"""Keys of an optimizer's groups that say how it computes on its device."""

MARK = b"cskt sha256 "
NUM_CHECKSUM_BYTES = len(MARK) + 2 * hashlib.sha256().digest_size
END_OF_ARCHIVE, NUM_END_BYTES = b"PK\x05\x06", 22
"""First bytes and length of the last record of a zip archive; its last two bytes are the length of the comment."""
MAX_COMMENT_BYTES = 65_535
CHUNK_BYTES = 1 << 20


def save_last(path: Path, state: TrainState, config: RunConfig) -> None:
    """Write `last.pt` atomically, if all parameters are finite; the one before stays as `last.previous.pt`."""
    model, objective = trainable_state(state.model), trainable_state(state.objective)
    broken = next((name for name, value in (model | objective).items() if not value.isfinite().all()), None)
    if broken is not None:
        raise CsktError(
            f"{path}: not written, '{broken}' holds NaN or infinity after step {state.progress.total_steps}; the file"
            " before is intact. Lower optim.lr, set optim.clip_grad_norm, or use --precision fp32"
        )
    content = {
        "config": to_dict(config),
        "backbone_sha256": state.backbone_sha256,
        "data_sha256": state.data_sha256,
        "model": model,
        "objective": objective,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "average": None if state.ema is None else state.ema.state_dict(),
        "progress": dataclasses.asdict(state.progress),
    }
    if state.hooks is not None and (hooks := state.hooks.state_dict()):
        content["hooks"] = hooks

    def write(temporary: Path) -> None:
        save_torch(content, temporary)
        add_checksum(temporary)
        _keep_previous(path)  # only now: a disk that is full leaves both as they were

    write_atomically(path, write)


def _keep_previous(path: Path) -> None:
    """Link a checkpoint as `last.previous.pt`, which keeps its content when `path` is replaced."""
    link = path.with_name(f".{PREVIOUS}.{os.getpid()}.tmp")
    try:
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
        link.replace(path.with_name(PREVIOUS))
    except FileNotFoundError:
        return  # this is the first
    except OSError as error:  # some file systems have no links
        logger.debug("%s: no link to it: %s", path, error)
        path.replace(path.with_name(PREVIOUS))
    finally:
        link.unlink(missing_ok=True)  # replacing a name of the same file leaves the link


def load_last(path: Path, state: TrainState, config: RunConfig) -> Path:
    """Restore a training from `last.pt`, or from `last.previous.pt` if that is corrupt; return the file."""
    content, source = read_last(path)
    _check_same_run(content, source, state, config)
    weights = [(trainable_state(getattr(state, part)), content[part]) for part in ("model", "objective")]
    for own, saved in weights:
        if unlike := unlike_names(own, saved):
            raise CsktError(
                f"{source}: '{unlike[0]}' has another shape than here; resume with the data and the program it was made"
                " with, or start a new run"
            )
        if broken := next((name for name in own if not saved[name].isfinite().all()), None):
            raise _corrupt(source, f"'{broken}' holds NaN or infinity")
    for own, saved in weights:
        for name, value in own.items():
            value.copy_(saved[name])
    try:
        state.optimizer.load_state_dict(_implemented_as(state.optimizer, content["optimizer"]))
        state.scaler.load_state_dict(content["scaler"])
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:  # of torch, on altered content
        raise _corrupt(source, error) from None
    for parameter, moments in state.optimizer.state.items():
        if any(isinstance(one, Tensor) and one.ndim and one.shape != parameter.shape for one in moments.values()):
            raise _corrupt(source, "the state of the optimizer does not fit the weights")
    if state.ema is not None:
        state.ema.load_state_dict(content["average"])
    if state.hooks is not None:
        state.hooks.load_state_dict(content.get("hooks", {}))
    state.progress = Progress(**content["progress"])
    return source


def _implemented_as(own: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the saved state of an optimizer with the implementation of another one, which depends on the device."""
    groups = [
        group | {name: current[name] for name in IMPLEMENTATION if name in current}
        for group, current in zip(saved["param_groups"], own.param_groups, strict=True)
    ]
    return saved | {"param_groups": groups}


def set_aside(path: Path) -> None:
    """Rename a corrupt `last.pt`, which would otherwise replace the intact `last.previous.pt` at the next save."""
    with file_system_errors(path):
        if path.is_file():
            path.replace(path.with_name(DAMAGED))


def _check_same_run(content: dict[str, Any], path: Path, state: TrainState, config: RunConfig) -> None:
    saved = as_trained(validate(RunConfig, content["config"], f"{path}: config"))  # newer keys: defaults
    current = as_trained(config)
    if different := config_differences(completed_like(saved, current), current):
        raise CsktError(f"{path}: made with another config ({'; '.join(different)}); use the same or start a new run")
    if content["backbone_sha256"] != state.backbone_sha256:
        raise CsktError(
            f"{path}: trained over another backbone ({label_of(str(content['backbone_sha256']))}); name its"
            " file: --backbone.name FILE"
        )
    if content["data_sha256"] != state.data_sha256:
        raise CsktError(f"{path}: trained on other images or captions; give the folder that holds them (--data.root)")
    if state.ema is not None and not _is_average(content.get("average")):
        raise _corrupt(path, "its moving average is missing")


def config_differences(saved: RunConfig, current: RunConfig) -> list[str]:
    """Return `key: saved -> current` for every key that must not differ between a run and its resumption."""
    before, now = (flat_values(_without_roots_of_mix(config)) for config in (saved, current))
    different = {key for key in before | now if before.get(key) != now.get(key)} - FREE_ON_RESUME
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in sorted(different)]


def _without_roots_of_mix(config: RunConfig) -> RunConfig:
    """Return a config without the places of its data sets, which are identified by their SHA-256."""
    mix = tuple(dataclasses.replace(other, root="") for other in config.data.mix)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, mix=mix))


def read_last(path: Path) -> tuple[dict[str, Any], Path]:
    """Read `last.pt`, or the `last.previous.pt` beside it if that is corrupt; return the content and the file."""
    previous = path.with_name(PREVIOUS)
    try:
        return _read(path), path
    except CsktError as error:
        if not previous.is_file():
            raise
        content = _read(previous)
        problem = str(error).removesuffix(NOTHING_TO_RESUME).removesuffix(START_AGAIN)
        logger.warning("%s; the run resumes from %s", problem, previous.name)
        return content, previous


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file{NOTHING_TO_RESUME}")
    with file_system_errors(path):
        if is_corrupt(path):
            raise _corrupt(path, "its checksum is wrong")
    try:
        content = load_plain(path)
    except CsktError as error:
        raise _corrupt(path, error) from None
    if (
        not isinstance(content, dict)
        or not content.keys() >= REQUIRED_ENTRIES
        or not isinstance(content["config"], dict)
    ):
        raise CsktError(f"{path}: not a last.pt of this program{START_AGAIN}")
    for part in ("model", "objective"):
        if not _is_tensors(content[part]):
            raise _corrupt(path, f"'{part}' is no table of tensors")
    if not _is_progress(content["progress"]):
        raise _corrupt(path, "'progress' is no table of numbers")
    return content


def _is_tensors(part: object) -> bool:
    return isinstance(part, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in part.items()
    )


def _is_average(part: object) -> bool:
    return isinstance(part, dict) and _is_tensors(part.get("averages")) and isinstance(part.get("num_updates"), int)


def _is_progress(part: object) -> bool:
    names = {field.name for field in dataclasses.fields(Progress)}
    return (
        isinstance(part, dict)
        and bool(part)
        and part.keys() <= names
        and all(isinstance(value, int | float) for value in part.values())
    )


def _corrupt(path: Path, reason: object) -> CsktError:
    reason = one_line(str(reason).removeprefix(f"{path}: "))
    return CsktError(f"{path}: corrupt: {reason}{START_AGAIN}")


def add_checksum(path: Path) -> None:
    """Add the checksum to a file that `torch.save` has just written."""
    with path.open("rb+") as stream:
        stream.seek(-2, 2)  # without a comment, the file ends with the length of the comment
        stream.write(struct.pack("<H", NUM_CHECKSUM_BYTES))
        digest = _digest(stream, stream.tell())
        stream.write(MARK + digest)


def is_corrupt(path: Path) -> bool:
    """Return whether any byte changed since `add_checksum`, or is missing; False for a file without a checksum."""
    num_bytes = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, num_bytes - MAX_COMMENT_BYTES - NUM_END_BYTES))
        _, found, end = stream.read().rpartition(END_OF_ARCHIVE)
        end = found + end
        if not found or (len(end) == NUM_END_BYTES and end.endswith(b"\0\0")):
            return False  # no archive, which its reader will notice; or one without a comment
        return end[NUM_END_BYTES:] != MARK + _digest(stream, num_bytes - NUM_CHECKSUM_BYTES)


def _digest(stream: BinaryIO, num_bytes: int) -> bytes:
    """Return the digest of the first bytes and leave the stream behind them."""
    digest = hashlib.sha256()
    stream.seek(0)
    while chunk := stream.read(min(CHUNK_BYTES, num_bytes - stream.tell())):
        digest.update(chunk)
    return digest.hexdigest().encode()
