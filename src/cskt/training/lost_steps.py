"""Steps that teach nothing: counted for each epoch, reported, and refused where an epoch has no other."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from cskt.config import RunConfig
from cskt.errors import CsktError
from cskt.training.checkpoint import Progress
from cskt.training.negatives import trained_losses, without_negatives

logger = logging.getLogger(__name__)


class LostSteps:
    """Counts in a `Progress`, so that a resumed run continues to count where it was saved.

    Two kinds are counted. With fp16 a step is skipped if a scaled gradient overflows: the scale is then halved, so that
    a few at the start of a run are usual. And a loss learns nothing from a batch without a wrong answer, such as a last
    batch of one pair.

    Args:
        config: of the run.
        progress: of the run; its counts are changed.
    """

    def __init__(self, config: RunConfig, progress: Progress) -> None:
        self._config = config
        self._losses = trained_losses(config.loss)
        self._progress = progress
        self._warned_of_negatives = False

    def look_at(self, pids: Tensor, image_ids: Tensor) -> None:
        """Count a batch if a loss that trains finds no wrong answer in it.

        Args:
            pids: [B] identities, on the host.
            image_ids: [B] images.
        """
        if without_negatives(self._losses, pids, image_ids):
            self._progress.batches_without_negatives += 1

    def add_skipped(self, num_steps: int) -> None:
        """Count optimizer steps that were skipped."""
        self._progress.skipped_steps += num_steps

    def counts(self) -> dict[str, Any]:
        """The counts of the epoch so far, for a `step` event; of batches without negatives only if there are any."""
        found = {}
        if self._config.precision == "fp16":
            found["skipped_steps"] = self._progress.skipped_steps
        if self._progress.batches_without_negatives:
            found["batches_without_negatives"] = self._progress.batches_without_negatives
        return found

    def close_epoch(self, num_batches: int, num_updates: int) -> None:
        """Warn of the steps that the epoch has lost, and begin to count anew.

        Args:
            num_batches: in the epoch.
            num_updates: optimizer steps in the epoch, skipped ones included.

        Raises:
            CsktError: every optimizer step was skipped.
        """
        progress = self._progress
        epoch, skipped, lost = progress.epoch + 1, progress.skipped_steps, progress.batches_without_negatives
        progress.skipped_steps = progress.batches_without_negatives = 0
        if skipped == num_updates:
            raise CsktError(
                f"precision fp16: all {skipped} steps of epoch {epoch} were skipped because gradients overflowed, so"
                " nothing was learned; use --precision bf16 or fp32"
            )
        if skipped:
            logger.warning(
                "epoch %d: %d of %d steps were skipped because fp16 gradients overflowed; a few at the start are usual",
                epoch, skipped, num_updates,
            )  # fmt: skip
        if lost and not self._warned_of_negatives:
            self._warned_of_negatives = True
            logger.warning(
                "epoch %d: %d of %d batches hold no wrong answer (one identity, or one pair), and teach the losses (%s)"
                " nothing; later epochs are counted in metrics.jsonl",
                epoch, lost, num_batches, ", ".join(self._losses),
            )  # fmt: skip
