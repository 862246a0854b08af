"""Exponential moving average of the trained weights (Polyak and Juditsky 1992), to be evaluated and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cskt.errors import CsktError


class Average:
    """Moving average of named parameters, in float32.

    At update t, counted from 1, the average keeps the share min(decay, (1 + t) / (10 + t)) of itself and takes the
    rest from the parameters. Without this ramp, that of TensorFlow's `ExponentialMovingAverage`, a short run would
    end near the weights that it started from.

    Args:
        named_parameters: as `Module.named_parameters` gives them, names distinct; frozen ones are passed over.
        decay: in (0, 1).
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Parameter]], decay: float) -> None:
        trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        self._parameters = dict(trained)
        assert len(self._parameters) == len(trained), "names are distinct"
        self._averages = {name: p.detach().to(torch.float32, copy=True) for name, p in trained}
        self._decay = decay
        self._num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in, after an optimiser step."""
        self._num_updates += 1
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        own = [parameter.detach().float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self._averages.values()), own, 1 - decay)  # one kernel for all, not one for each

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the parameters as they are now."""
        self._num_updates = 0
        for name, average in self._averages.items():
            average.copy_(self._parameters[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold their averages inside the `with` block, and their own values again after it."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        try:
            _copy(self._averages, self._parameters)
            yield
        finally:
            _copy(own, self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: the averages by name (the tensors themselves, no copies) and the number of updates."""
        return {"averages": dict(self._averages), "num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, copied to where the averages live.

        Raises:
            CsktError: it is of other parameters; nothing is changed.
        """
        saved, own = state["averages"], self._averages
        unlike = [name for name in own.keys() | saved.keys() if _shape(own, name) != _shape(saved, name)]
        if unlike:
            raise CsktError(
                f"the moving average of '{min(unlike)}' has another shape than here; resume with the config that it was"
                " made with, or start a new run"
            )
        _copy(saved, own)
        self._num_updates = state["num_updates"]


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor] | dict[str, Parameter]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
