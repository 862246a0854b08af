"""Modules of plug-ins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


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
