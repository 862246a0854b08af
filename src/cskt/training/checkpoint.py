"""`last.pt`: everything that a run needs to go on as if it had never stopped; `last.previous.pt`: the one before."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cskt.config import RunConfig, as_trained, completed_like, to_dict, validate
from cskt.errors import CsktError
from cskt.model.io.tensors import load_plain, save_torch
from cskt.training.checksum import is_broken, seal
from cskt.training.ema import Average
from cskt.training.objective import Objective
from cskt.training.run_folder import DAMAGED, PREVIOUS
from cskt.utils.files import write_atomically

logger = logging.getLogger(__name__)

FREE_ON_RESUME = {
    "name", "output_dir", "device", "backbone.name", "data.root", "data.num_workers", "data.cache_images",
    "data.cache_dir", "data.eval_batch_size", "loop.log_period_steps", "loop.save_period_steps",
    "loop.micro_batch_size", "loop.fit", "loop.compile", "loop.checkpoint_activations", "loop.stop_after_epochs",
}  # fmt: skip
"""Keys that may differ when a run is resumed: they change where and how fast, not what is computed. The backbone is
held to its SHA-256, wherever it lies."""
PARTS = {"config", "backbone_sha256", "data_sha256", "model", "objective", "optimizer", "scaler", "progress"}
"""What every last.pt holds."""


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Steps completed in the epoch under way."""
    total_steps: int = 0
    """Steps completed in all."""
    best_r1: float = -1.0
    """Best selection score so far, t2i R1 as a fraction; below 0 before the first evaluation."""
    best_epoch: int = 0
    """Epoch (from 1) of that score; 0 before."""
    seconds: float = 0.0
    """Time spent in training and its evaluations, over all sessions."""
    skipped_steps: int = 0
    """Optimizer steps of the epoch under way that were skipped because a scaled gradient overflowed (fp16)."""
    batches_without_negatives: int = 0
    """Batches of the epoch under way in which a loss found no wrong answer."""


@dataclass(frozen=True)
class Trainee:
    """What changes while training; `model` saves only what trains, the frozen rest comes from the backbone."""

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    """Moving average of the model's trained weights, where the config asks for one."""
    backbone_sha256: str
    data_sha256: str
    """Of the training pairs."""


def trainable_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters by name, detached."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def save_last(path: Path, trainee: Trainee, config: RunConfig, progress: Progress) -> None:
    """Write `last.pt` atomically; the one before stays as `last.previous.pt`.

    Raises:
        CsktError: the folder cannot be written or the disk is full, or a parameter is no longer finite (a loss tells
            only one step later); the file before is intact.
    """
    model, objective = trainable_state(trainee.model), trainable_state(trainee.objective)
    broken = next((name for name, value in (model | objective).items() if not value.isfinite().all()), None)
    if broken is not None:
        raise CsktError(
            f"{path}: not written, '{broken}' holds NaN or infinity after step {progress.total_steps}; the file"
            " before is intact. Lower optim.lr, set optim.clip_grad_norm, or use --precision fp32"
        )
    content = {
        "config": to_dict(config),
        "backbone_sha256": trainee.backbone_sha256,
        "data_sha256": trainee.data_sha256,
        "model": model,
        "objective": objective,
        "optimizer": trainee.optimizer.state_dict(),
        "scaler": trainee.scaler.state_dict(),
        "average": None if trainee.average is None else trainee.average.state_dict(),
        "progress": dataclasses.asdict(progress),
    }

    def write(temporary: Path) -> None:
        save_torch(content, temporary)
        seal(temporary)
        _keep_previous(path)  # only now: a disk that is full leaves both as they were

    write_atomically(path, write)


def _keep_previous(path: Path) -> None:
    """A second name for the file, whose content stays when the first is given to another."""
    link = path.with_name(f".{PREVIOUS}.{os.getpid()}.tmp")
    try:
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
        link.replace(path.with_name(PREVIOUS))
    except FileNotFoundError:
        return  # this is the first
    except OSError as error:  # some file systems know no links
        logger.debug("%s: no link to it: %s", path, error)
        path.replace(path.with_name(PREVIOUS))
    finally:
        link.unlink(missing_ok=True)  # replacing a name of the very same file does nothing


def load_last(path: Path, trainee: Trainee, config: RunConfig) -> tuple[Progress, Path]:
    """Put a run back to where `last.pt` left it, or `last.previous.pt` where that is damaged.

    Returns:
        How far the run has come, and the file that says so.

    Raises:
        CsktError: the file is missing, or both are damaged or carry code; it is of another config or backbone.
    """
    content, source = read_last(path)
    try:
        return _restore(content, source, trainee, config), source
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:  # parts that are not what they are called
        raise _useless(source, str(error)) from None


def set_aside(path: Path) -> None:
    """Take the name from a damaged `last.pt`, which the next would make `last.previous.pt` in place of the good one."""
    if path.is_file():
        path.replace(path.with_name(DAMAGED))


def _restore(content: dict[str, Any], path: Path, trainee: Trainee, config: RunConfig) -> Progress:
    before = as_trained(validate(RunConfig, content["config"], f"{path}: config"))  # newer keys: defaults
    asked = as_trained(config)
    different = config_differences(to_dict(completed_like(before, asked)), to_dict(asked))
    if different:
        raise CsktError(f"{path}: made with another config ({'; '.join(different)}); use the same or start a new run")
    if content["backbone_sha256"] != trainee.backbone_sha256:
        raise CsktError(
            f"{path}: trained over another backbone (SHA-256 {content['backbone_sha256']}); name it (--backbone.name)"
        )
    if content["data_sha256"] != trainee.data_sha256:
        raise CsktError(f"{path}: trained on other images or captions; give the folder that holds them (--data.root)")
    for module, saved in ((trainee.model, content["model"]), (trainee.objective, content["objective"])):
        own = trainable_state(module)
        if unlike := [name for name in own.keys() | saved.keys() if _shape(own, name) != _shape(saved, name)]:
            raise CsktError(
                f"{path}: '{min(unlike)}' has another shape than here; resume with the data and the program it was made"
                " with, or start a new run"
            )
        if broken := next((name for name in own if not saved[name].isfinite().all()), None):
            raise _useless(path, f"'{broken}' holds NaN or infinity")
        for name, value in own.items():
            value.copy_(saved[name])
    trainee.optimizer.load_state_dict(content["optimizer"])
    for parameter, state in trainee.optimizer.state.items():
        if any(isinstance(one, torch.Tensor) and one.ndim and one.shape != parameter.shape for one in state.values()):
            raise _useless(path, "the optimiser's state does not fit the weights")
    trainee.scaler.load_state_dict(content["scaler"])
    if trainee.average is not None:
        trainee.average.load_state_dict(content["average"])
    progress = content["progress"]
    if not progress or not all(isinstance(value, int | float) for value in progress.values()):
        raise _useless(path, "its progress is not told in numbers")
    return Progress(**progress)


def config_differences(saved: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: saved -> asked` for every key that must not differ between a run and its resumption."""
    found = []
    for key in sorted(saved.keys() | asked.keys()):
        name, before, now = prefix + key, saved.get(key), asked.get(key)
        if isinstance(before, dict) and isinstance(now, dict) and key != "weights":
            found += config_differences(before, now, f"{name}.")
        elif before != now and name not in FREE_ON_RESUME:
            found.append(f"{name}: {before} -> {now}")
    return found


def _shape(state: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None


def read_last(path: Path) -> tuple[dict[str, Any], Path]:
    """Read the newest checkpoint that is intact.

    Args:
        path: `last.pt`; the `last.previous.pt` beside it is read where that is damaged.

    Returns:
        The content, and the file that holds it.

    Raises:
        CsktError: both are missing or damaged.
    """
    previous = path.with_name(PREVIOUS)
    try:
        return _read(path), path
    except ValueError as error:
        if not previous.is_file():
            raise
        damage = error
    content = _read(previous)
    logger.warning("%s; going on from %s", damage, previous.name)
    return content, previous


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CsktError(f"{path}: no such file; nothing to resume")
    try:
        if is_broken(path):
            raise CsktError("its checksum is wrong")
        content: dict[str, Any] = load_plain(path)
    except OSError as error:
        raise CsktError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _useless(path, str(error)) from None
    if not isinstance(content, dict) or not content.keys() >= PARTS or not isinstance(content["config"], dict):
        raise CsktError(f"{path}: not a last.pt of this program")
    return content


def _useless(path: Path, reason: str) -> CsktError:
    reason = " ".join(reason.removeprefix(f"{path}: ").split())
    return CsktError(f"{path}: cannot be resumed from, truncated or altered; start a new run ({reason})")
