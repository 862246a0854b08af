"""Everything that changes while a model trains: weights, heads, optimizer, scaler, moving average and progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from cskt.errors import CsktError
from cskt.model.dual_encoder import DualEncoder
from cskt.training.objective import Objective
from cskt.utils.modules import named_tensors


@dataclass
class Progress:
    """Position of a run."""

    epoch: int = 0
    """Epochs completed."""
    step: int = 0
    """Steps completed in the current epoch."""
    total_steps: int = 0
    """Steps completed in all."""
    best_r1: float = -1.0
    """Best selection score so far, t2i R1 as a fraction; below 0 before the first evaluation."""
    best_epoch: int = 0
    """Epoch (from 1) of that score; 0 before."""
    seconds: float = 0.0
    """Time spent in training and its evaluations, over all sessions."""
    skipped_steps: int = 0
    """Optimizer steps of the current epoch that were skipped because a scaled gradient overflowed (fp16)."""
    batches_without_negatives: int = 0
    """Batches of the current epoch in which a loss found no negative."""
    has_updated: bool = False
    """True after an optimizer step that was not skipped."""


class ExponentialMovingAverage:
    """Exponential moving average of trained parameters and buffers, in float32 (Polyak and Juditsky 1992).

    Buffers are averaged, so that statistics of activations belong to the averaged weights; integers, such as
    counts, are not, and keep their current values.

    At update t, counted from 1, the average keeps the share min(decay, (1 + t) / (10 + t)) of itself and takes the
    rest from the parameters. Without this ramp, that of TensorFlow's class of the same name, a short run would end
    near the weights that it started from.
    """

    def __init__(self, candidates: Iterable[tuple[str, Tensor]], decay: float) -> None:
        trained = [
            (name, tensor)
            for name, tensor in candidates
            if tensor.requires_grad or (not isinstance(tensor, Parameter) and tensor.is_floating_point())
        ]
        self._parameters = dict(trained)
        assert len(self._parameters) == len(trained), "names are distinct"
        self._averages = {name: p.detach().to(torch.float32, copy=True) for name, p in trained}
        self._decay = decay
        self._num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the parameters, after an optimizer step."""
        self._num_updates += 1
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        own = [parameter.detach().float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self._averages.values()), own, 1 - decay)  # one kernel for all parameters

    @torch.no_grad()
    def restart(self) -> None:
        """Start again from the current parameters."""
        self._num_updates = 0
        _copy(self._parameters, self._averages)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the parameters hold their averages; afterwards they hold their own values."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        try:
            _copy(self._averages, self._parameters)
            yield
        finally:
            _copy(own, self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by name (the tensors themselves, no copies) and the number of updates."""
        return {"averages": dict(self._averages), "num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a `state_dict` into this average."""
        if unlike := unlike_names(self._averages, state["averages"]):
            raise CsktError(
                f"the moving average of '{unlike[0]}' has another shape than here; resume with the config that it was"
                " made with, or start a new run"
            )
        _copy(state["averages"], self._averages)
        self._num_updates = state["num_updates"]


class Stateful(Protocol):
    """Something with a state that a checkpoint saves."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, empty if there is none."""

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""


@dataclass
class TrainState:
    """State of a training; a checkpoint saves of `model` only what trains, the frozen rest is in the backbone."""

    model: DualEncoder
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ExponentialMovingAverage | None
    """Moving average of the trained weights of the model, if the config asks for one."""
    backbone_sha256: str
    """Digest of the backbone's weight file; empty for random weights."""
    data_sha256: str
    """Digest of the training pairs."""
    progress: Progress = field(default_factory=Progress)
    hooks: Stateful | None = None
    """Hooks of the training."""


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters and the buffers by name, detached."""
    return {name: value.detach() for name, value in named_tensors(module, trainable_only=True).items()}


def unlike_names(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that only one of two states has, or that have another shape, in order."""
    return sorted(
        name
        for name in own.keys() | saved.keys()
        if name not in own or name not in saved or own[name].shape != saved[name].shape
    )


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
