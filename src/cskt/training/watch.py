"""Notices when SDM has collapsed to uniform similarities, and says what helps."""

from __future__ import annotations

import logging

from torch import Tensor

from cskt.losses import sdm_at_collapse

logger = logging.getLogger(__name__)

PATIENCE_STEPS = 100
TOLERANCE = 0.01
NO_CONTRAST = 1e-3
"""Below this value a batch holds one identity only and says nothing; rounding keeps it from being 0."""


class CollapseWatch:
    """Warns once when the SDM loss has stood at its value for uniform similarities for `PATIENCE_STEPS` steps.

    There the gradient is all but gone, so waiting does not help. Weak features at temperature 0.02 and a high rate
    lead there.

    Args:
        other_image: as the SDM loss has it.
    """

    def __init__(self, other_image: float = 1.0) -> None:
        self.other_image = other_image
        self.collapsed_steps = 0

    def look(self, sdm: float | None, pids: Tensor, image_ids: Tensor) -> None:
        """Take note of one step.

        Args:
            sdm: the step's unweighted SDM loss; None where SDM is not trained with.
            pids: [B] identities of the batch.
            image_ids: [B] its images.
        """
        if sdm is None:
            return
        uniform = sdm_at_collapse(pids, image_ids=image_ids, other_image=self.other_image).item()
        if uniform < NO_CONTRAST:
            return
        stuck = abs(sdm - uniform) < TOLERANCE * uniform
        self.collapsed_steps = self.collapsed_steps + 1 if stuck else 0
        if self.collapsed_steps == PATIENCE_STEPS:
            logger.warning(
                "collapse: for %d steps all similarities have been equal (sdm %.2f). Lower optim.lr, raise"
                " loss.temperature (0.05 or 0.1), or start from a better backbone",
                PATIENCE_STEPS,
                sdm,
            )
