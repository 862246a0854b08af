"""Losses on the device, and when the host looks at them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cskt.train.step import per_pair
from cskt.train.watch import CollapseWatch
from cskt.types import Batch


class _Step(NamedTuple):
    epoch: int
    step: int
    parts: dict[str, Tensor]
    pids: Tensor
    image_ids: Tensor


class Readings:
    """The losses of the steps since the last look: all are looked at, in one transfer.

    Args:
        watch: is shown every step.
    """

    def __init__(self, watch: CollapseWatch) -> None:
        self.num_read = 0
        """Steps that the last look was at."""
        self._watch = watch
        self._unread: list[_Step] = []

    def add(self, epoch: int, step: int, parts: dict[str, Tensor], batch: Batch) -> None:
        """Take note of a step, both counted from 0; nothing is read yet."""
        self._unread.append(_Step(epoch, step, parts, batch.pids, per_pair(batch)))

    def read(self, folder: Path) -> dict[str, float]:
        """The losses of the last step, after all that are unread have been looked at.

        Args:
            folder: of the run, for the message.

        Raises:
            ValueError: a loss was not finite; names the first such step.
        """
        rows = torch.stack([torch.stack(list(entry.parts.values())) for entry in self._unread]).tolist()
        for entry, row in zip(self._unread, rows, strict=True):
            values = dict(zip(entry.parts, row, strict=True))
            if not math.isfinite(values["loss"]):
                raise ValueError(
                    f"loss is {values['loss']} at epoch {entry.epoch + 1}, step {entry.step + 1}; {folder} keeps the"
                    " last good checkpoint. Lower optim.lr, set optim.clip_grad_norm, or use --precision fp32"
                )
            self._watch.look(values.get("sdm"), entry.pids, entry.image_ids)
        self.num_read, self._unread = len(rows), []
        return values
