"""Losses and gradients of the steps, read from the device now and then and checked."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cskt.config import RunConfig
from cskt.errors import CsktError
from cskt.losses import sdm_at_collapse
from cskt.training.checks import trained_losses, without_negatives
from cskt.training.state import TrainState
from cskt.training.step import image_ids_per_pair
from cskt.types import Batch

logger = logging.getLogger(__name__)

COLLAPSE_STEPS = 100
COLLAPSE_TOLERANCE = 0.01
NO_CONTRAST = 1e-3
"""Value at collapse below which a batch holds one identity and says nothing; rounding keeps it from being 0."""


class _Step(NamedTuple):
    epoch: int
    step: int
    losses: dict[str, Tensor]
    is_update: bool
    largest_gradient: Tensor
    pids: Tensor
    image_ids: Tensor
    weights: Tensor | None


class StepMonitor:
    """Reads the losses and gradients of all steps since the last reading in one transfer, and checks them.

    Steps that teach nothing are counted in the progress of the run. With fp16 a step is skipped if a scaled gradient
    overflows: the scale is then halved, so a few at the start are usual. And a loss learns nothing from a batch without
    a negative, such as a last batch of one pair.
    """

    def __init__(self, config: RunConfig, state: TrainState, folder: Path) -> None:
        self._config, self._state, self._folder = config, state, folder
        self._losses = trained_losses(config.loss)
        self._watch = CollapseWatch(config.loss.constants_of("sdm")["other_image"])
        self._unread: list[_Step] = []
        self._warned_of_negatives = False

    def add(self, step: int, losses: dict[str, Tensor], largest_gradient: Tensor | None, batch: Batch) -> int:
        """Add the results of `forward_backward` and `optimizer_step`; return how many steps were not read yet."""
        image_ids = image_ids_per_pair(batch)
        if without_negatives(self._losses, batch.pids, image_ids):
            self._state.progress.batches_without_negatives += 1
        is_update = largest_gradient is not None
        largest = losses["loss"].new_zeros(()) if largest_gradient is None else largest_gradient
        weights, epoch = self._state.objective.weights_of(batch.pair_ids), self._state.progress.epoch
        self._unread.append(_Step(epoch, step, losses, is_update, largest, batch.pids, image_ids, weights))
        return len(self._unread)

    def read(self) -> tuple[float, dict[str, float]]:
        """Check all steps since the last reading; return total and single losses of the last step.

        Raises:
            CsktError: a total or a gradient is NaN or infinite.
        """
        losses: dict[str, float] = {}
        columns = [torch.stack([*one.losses.values(), one.largest_gradient]) for one in self._unread]
        rows = torch.stack(columns).tolist()
        for one, (*row, largest) in zip(self._unread, rows, strict=True):
            losses = dict(zip(one.losses, row, strict=True))
            if not math.isfinite(losses["loss"]):
                raise self._diverged(f"loss is {losses['loss']}", one)
            if not math.isfinite(largest):
                if not self._state.scaler.is_enabled():
                    raise self._diverged("a gradient is not finite", one)
                self._state.progress.skipped_steps += 1
            elif one.is_update:
                self._state.progress.has_updated = True
            self._watch.add(losses.get("sdm"), one.pids, one.image_ids, one.weights)
        self._unread = []
        return losses.pop("loss"), losses

    def counts(self) -> dict[str, Any]:
        """Return the counts of the epoch so far for a `step` event; of batches without negatives only if above 0."""
        found = {}
        if self._config.precision == "fp16":
            found["skipped_steps"] = self._state.progress.skipped_steps
        if self._state.progress.batches_without_negatives:
            found["batches_without_negatives"] = self._state.progress.batches_without_negatives
        return found

    def end_epoch(self, num_batches: int) -> None:
        """Warn of the steps of the epoch that taught nothing, and start to count again.

        Raises:
            CsktError: all steps were skipped, and halving the scale further cannot help, or no epoch is left for it.
        """
        progress = self._state.progress
        num_due = -(-num_batches // self._config.loop.accumulate_steps)
        epoch, skipped, lost = progress.epoch + 1, progress.skipped_steps, progress.batches_without_negatives
        progress.skipped_steps = progress.batches_without_negatives = 0
        is_last = epoch == self._config.loop.num_epochs
        if skipped == num_due and (self._state.scaler.get_scale() < 1 or (is_last and not progress.has_updated)):
            raise CsktError(
                f"precision fp16: all {skipped} steps of epoch {epoch} were skipped because gradients overflowed, so"
                " nothing was learned; use --precision bf16 or fp32"
            )
        if skipped:
            logger.warning(
                "epoch %d: %d of %d steps were skipped because fp16 gradients overflowed; a few at the start are usual",
                epoch, skipped, num_due,
            )  # fmt: skip
        if lost and not self._warned_of_negatives:
            self._warned_of_negatives = True
            logger.warning(
                "epoch %d: %d of %d batches without negatives (one identity, or one pair) do not contribute to the"
                " losses (%s); later epochs are counted in metrics.jsonl",
                epoch, lost, num_batches, ", ".join(self._losses),
            )  # fmt: skip

    def _diverged(self, problem: str, one: _Step) -> CsktError:
        return CsktError(
            f"{problem} at epoch {one.epoch + 1}, step {one.step + 1}; {self._folder} keeps the last good checkpoint."
            " Lower optim.lr, set optim.clip_grad_norm, or use --precision fp32"
        )


@dataclass
class CollapseWatch:
    """Warns once when SDM has had its value for uniform similarities for `COLLAPSE_STEPS` steps.

    The gradient there is close to zero, so waiting does not help. Weak features at temperature 0.02 and a high
    learning rate lead to it.
    """

    other_image: float = 1.0
    """As in the SDM loss."""
    collapsed_steps: int = 0

    def add(self, sdm: float | None, pids: Tensor, image_ids: Tensor, pair_weights: Tensor | None = None) -> None:
        """Add a step: its SDM loss (None if there is none), and identities, images and weights of its pairs, [B]."""
        if sdm is None:
            return
        uniform = sdm_at_collapse(
            pids, image_ids=image_ids, other_image=self.other_image, pair_weights=pair_weights
        ).item()
        if uniform < NO_CONTRAST:
            return
        is_collapsed = abs(sdm - uniform) < COLLAPSE_TOLERANCE * uniform
        self.collapsed_steps = self.collapsed_steps + 1 if is_collapsed else 0
        if self.collapsed_steps == COLLAPSE_STEPS:
            logger.warning(
                "collapse: for %d steps all similarities have been equal (sdm %.2f). Lower optim.lr, raise"
                " loss.temperature (0.05 or 0.1), or start from a better backbone",
                COLLAPSE_STEPS, sdm,
            )  # fmt: skip
