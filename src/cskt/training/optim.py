"""Optimizer and learning rates: per parameter, and over the epochs.

The rules are those of the released codes made from IRRA's (CSKT, RDE, UP-Person, DM-Adapter), so that published
recipes keep their meaning: biases learn faster and do not decay, heads that start from nothing learn fastest, and the
rate is constant within an epoch. The released TBPS-CLIP differs in the last (`schedule_period`) and in what decays
(`weight_decay_vectors`).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import Parameter

from cskt.config import OptimConfig
from cskt.errors import CsktError

HEAD_PARAMETERS = ("classifier", "mlm_head")
BLOCK = re.compile(r"(vision|text)\.blocks\.(\d+)\.")
BELOW_BLOCKS = ("conv1", "class_embedding", "token_embedding", "positional_embedding", "ln_pre")
"""Parts of a tower before its first block."""


def parameter_groups(
    named_parameters: Iterable[tuple[str, Parameter]], optim: OptimConfig, heads: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return the trainable parameters in one group for each pair of rate and weight decay.

    A name decides, the later rule over the earlier: `cross` learns at head_lr_factor; `bias` at bias_lr_factor with
    weight_decay_bias; `classifier` and `mlm_head` at head_lr_factor, their biases too (which keep weight_decay_bias),
    and so do names that begin with one of `heads`. Other tensors of fewer than two dimensions have
    weight_decay_vectors, if it is set.
    With layer_decay below 1 the lower blocks of a tower, and the parts below them, learn slower than the upper ones.
    `lr_scale` of a group is its rate relative to the base rate. Without parameters the result is one empty group.
    """
    named, heads = list(named_parameters), tuple(heads)
    blocks = {(block[1], block[2]) for name, _ in named if (block := BLOCK.match(name))}
    depths = Counter(tower for tower, _ in blocks)
    members: dict[tuple[float, float], list[Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            scale, decay = _scale_and_decay(name, parameter.ndim, optim, heads)
            members.setdefault((scale * _layer_scale(name, depths, optim.layer_decay), decay), []).append(parameter)
    if named and not members:
        raise CsktError(
            "no parameter is trainable: set trainable to projections or all, or to added with a method that adds some"
        )
    members = members or {(1.0, 0.0): []}
    return [
        {"params": parameters, "lr": optim.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in members.items()
    ]


def _scale_and_decay(name: str, ndim: int, optim: OptimConfig, heads: tuple[str, ...]) -> tuple[float, float]:
    is_bias, decay = "bias" in name, optim.weight_decay
    if is_bias:
        decay = optim.weight_decay_bias
    elif ndim < 2 and optim.weight_decay_vectors is not None:
        decay = optim.weight_decay_vectors
    if any(head in name for head in HEAD_PARAMETERS) or name.startswith(heads):
        return optim.head_lr_factor, decay
    if is_bias:
        return optim.bias_lr_factor, decay
    return (optim.head_lr_factor if "cross" in name else 1.0), decay


def _layer_scale(name: str, depths: Mapping[str, int], layer_decay: float) -> float:
    """Return the factor of the rate by the place in the tower: 1 for the topmost block and the parts after it."""
    if block := BLOCK.match(name):
        return layer_decay ** (depths[block[1]] - 1 - int(block[2]))
    tower, _, rest = name.partition(".")
    return layer_decay ** depths[tower] if tower in depths and rest.startswith(BELOW_BLOCKS) else 1.0


def build_optimizer(
    named_parameters: Iterable[tuple[str, Parameter]], optim: OptimConfig, heads: Iterable[str] = ()
) -> torch.optim.Optimizer:
    """Return the optimizer over `parameter_groups`.

    `adam` adds the decay to the gradient (L2), as the released code does; `adamw` shrinks the weights apart from the
    gradient (Loshchilov and Hutter 2019). The state dict holds rates and scales, so loading it resumes a run.
    """
    groups = parameter_groups(named_parameters, optim, heads)
    if optim.name == "sgd":  # not fused: a first step that a GradScaler skips would leave its momentum uninitialised
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
    # On CUDA one kernel updates all parameters; everywhere else torch decides.
    fused = True if any(parameter.is_cuda for group in groups for parameter in group["params"]) else None
    optimizer = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return optimizer(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the base rate: every group gets `rate` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def learning_rate(
    epoch_index: int, optim: OptimConfig, num_epochs: int, *, step: int = 0, num_steps: int | None = None
) -> float:
    """Return the learning rate of an epoch, or of a step in it: warm-up first, then the schedule over the rest.

    Args:
        epoch_index: from 0.
        optim: rate, warm-up and schedule.
        num_epochs: of the whole run.
        step: from 0, of the `num_steps` of this epoch; has an effect where `optim.schedule_period` is `step`. Warm-up
            then ends with the last of its steps at the full rate, as in the released code of TBPS-CLIP.

    Returns:
        The rate of parameters whose `lr_scale` is 1.

    Raises:
        CsktError: `epoch_index` is outside the run.
    """
    if not 0 <= epoch_index < num_epochs:
        raise CsktError(f"epoch {epoch_index + 1} is outside a run of {num_epochs}; raise num_epochs")
    position, last = float(epoch_index), float(optim.warmup_epochs)
    if optim.schedule_period == "step" and num_steps:
        position, last = epoch_index + step / num_steps, optim.warmup_epochs - 1 / num_steps
    if epoch_index < optim.warmup_epochs:
        done = position / last if optim.warmup_method == "linear" and last else 0.0
        return optim.lr * (optim.warmup_factor * (1 - done) + done)
    if optim.schedule == "step":
        return optim.lr * optim.gamma ** bisect_right(sorted(optim.milestones), epoch_index)
    progress = (position - optim.warmup_epochs) / (num_epochs - optim.warmup_epochs)
    floor = optim.target_lr if optim.schedule in ("cosine", "poly", "poly-released") else 0.0
    return floor + (optim.lr - floor) * DECAYS[optim.schedule](progress, optim.power)


DECAYS: dict[str, Callable[[float, float], float]] = {
    "cosine": lambda progress, power: (1 + math.cos(math.pi * progress)) / 2,
    "exp": lambda progress, power: power**progress,
    "linear": lambda progress, power: 1 - progress,
    "poly": lambda progress, power: (1 - progress) ** power,
    # Drops at once to `power` and rises back to 1: an error of the released schedule, kept to reproduce it.
    "poly-released": lambda progress, power: power ** (1 - progress),
}
"""Share of the base rate by schedule, at a progress in [0, 1) from warm-up to the end of the run."""
