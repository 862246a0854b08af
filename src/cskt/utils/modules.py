"""Tensors of modules: names of those that files hold, initial values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def named_tensors(module: nn.Module, *, trainable_only: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a module that a file holds by name: parameters, and the buffers that are persistent.

    With `trainable_only`, of the parameters those that train.
    """
    persistent = module.state_dict(keep_vars=True).keys()
    parameters = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad or not trainable_only
    }
    return parameters | {name: buffer for name, buffer in module.named_buffers() if name in persistent}


def reset_parameters(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the parameters of a module with the `reset_parameters` of its layers, and leave torch's own state as it was.

    Args:
        module: layers without such a method keep their values.
        generator: CPU generator; the same state gives the same values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        layers: Iterable[Any] = module.modules()
        for layer in layers:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
