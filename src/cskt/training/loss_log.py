"""Losses on the device, and when the host looks at them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cskt.errors import CsktError
from cskt.training.step import per_pair
from cskt.training.watch import CollapseWatch
from cskt.types import Batch


class _Step(NamedTuple):
    epoch: int
    step: int
    parts: dict[str, Tensor]
    largest_gradient: Tensor
    pids: Tensor
    image_ids: Tensor


class Readings:
    """The losses and gradients of the steps since the last look: all are looked at, in one transfer.

    Args:
        watch: is shown every step.
        skips_steps: whether a step whose gradients are not finite is skipped, as with a `GradScaler`; otherwise it is
            an error.
    """

    def __init__(self, watch: CollapseWatch, *, skips_steps: bool) -> None:
        self.num_read = 0
        """Steps that the last look was at."""
        self.num_skipped = 0
        """Optimizer steps that were skipped, of those that the last look was at."""
        self._watch = watch
        self._skips_steps = skips_steps
        self._unread: list[_Step] = []

    def add(
        self, epoch: int, step: int, parts: dict[str, Tensor], batch: Batch, largest_gradient: Tensor | None
    ) -> None:
        """Take note of a step, both counted from 0; nothing is read yet.

        Args:
            epoch, step: of the run, and of the epoch.
            parts: what `add_gradients` returns.
            batch: of the step.
            largest_gradient: what `update` returns.
        """
        largest = parts["loss"].new_zeros(()) if largest_gradient is None else largest_gradient
        self._unread.append(_Step(epoch, step, parts, largest, batch.pids, per_pair(batch)))

    def read(self, folder: Path) -> dict[str, float]:
        """The losses of the last step, after all that are unread have been looked at.

        Args:
            folder: of the run, for the message.

        Raises:
            CsktError: a loss was not finite, or a gradient that is not skipped; names the first such step.
        """
        columns = [torch.stack([*entry.parts.values(), entry.largest_gradient]) for entry in self._unread]
        rows = torch.stack(columns).tolist()
        self.num_read, self.num_skipped = len(rows), 0
        for entry, (*row, largest) in zip(self._unread, rows, strict=True):
            values = dict(zip(entry.parts, row, strict=True))
            if not math.isfinite(values["loss"]):
                raise _diverged(f"loss is {values['loss']}", entry, folder)
            if not math.isfinite(largest):
                if not self._skips_steps:
                    raise _diverged("a gradient is not finite", entry, folder)
                self.num_skipped += 1
            self._watch.look(values.get("sdm"), entry.pids, entry.image_ids)
        self._unread = []
        return values


def _diverged(what: str, entry: _Step, folder: Path) -> CsktError:
    return CsktError(
        f"{what} at epoch {entry.epoch + 1}, step {entry.step + 1}; {folder} keeps the last good checkpoint."
        " Lower optim.lr, set optim.clip_grad_norm, or use --precision fp32"
    )
