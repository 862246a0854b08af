"""Division of the training pairs into clean and noisy ones (RDE, Qin et al., CVPR 2024, section 3.4).

Two Gaussians are fitted to the losses of all pairs; pairs that belong to the one with the smaller mean are clean. Noisy
pairs have weight 0 in the next epoch. Where losses of several embeddings disagree about a pair, a fair coin decides.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cskt.config import NoiseDivisionConfig
from cskt.errors import CsktError
from cskt.training.hooks.base import Hook, register
from cskt.utils.messages import nearest, require

if TYPE_CHECKING:
    from cskt.training.run_hooks import TrainingRun

logger = logging.getLogger(__name__)

STREAM = 3
"""Keeps the draws of the division apart from others that start from the seed and the epoch."""
LITTLE_NOISE = 0.4
"""Largest share of replaced captions for which the mixture is fitted coarsely."""
MIN_PAIRS = 10
"""Fewest pairs of a division: a mixture of two Gaussians has five parameters."""


class MixtureSettings(NamedTuple):
    """Settings of expectation maximisation."""

    max_iterations: int
    tolerance: float
    """Smallest change of the mean log-likelihood with which it continues."""
    variance_floor: float
    """Added to each variance."""


SETTINGS: Mapping[str, MixtureSettings] = {
    "low": MixtureSettings(10, 1e-2, 5e-4),
    "high": MixtureSettings(100, 1e-4, 1e-6),
}
"""Settings of the released code by `NoiseDivisionConfig.mixture`."""


@register("noise_division")
@dataclass
class NoiseDivision(NoiseDivisionConfig, Hook):
    """Gives the pairs of an epoch the weights of `divide`; a function of the seed, the epoch and the losses.

    It logs the share of clean pairs and, where captions are replaced (`data.noise_rate`, `data.noise_file`), the shares
    of the replaced ones that have weight 0, and of the others that do.
    """

    def check(self, run: TrainingRun) -> None:
        """See `Hook.check`."""
        if self.mixture == "none":
            return
        require("rde", "sklearn")
        where, known = "hooks.noise_division", list(run.config.loss.weights)
        if not self.losses:
            raise CsktError(f"{where}.losses is empty; name losses of loss.weights")
        if unknown := next((name for name in self.losses if name not in known), None):
            raise CsktError(
                f"{where}.losses: '{unknown}' is not in loss.weights ({nearest(unknown, known)}); a weight of 0 there"
                " suffices"
            )
        run.check_takes_pair_weights()
        num_pairs = len(run.train_split.captions)
        if num_pairs < MIN_PAIRS:
            raise CsktError(
                f"{where}: {num_pairs} training pairs are too few for a mixture of two Gaussians; give at least"
                f" {MIN_PAIRS}, or set {where}.mixture to none"
            )

    def before_epoch(self, run: TrainingRun) -> None:
        """Divide the pairs by their losses with the current weights."""
        if self.mixture == "none":
            return
        config = run.config
        found = run.pair_losses(self.losses)
        is_replaced = torch.tensor(run.train_split.is_replaced)
        settings = SETTINGS[self._mixture(float(is_replaced.double().mean()), config.data.dataset)]
        random = np.random.RandomState([*_words(config.seed), run.epoch, STREAM])
        weights = divide(found, settings, random)
        values = {"clean": float(weights.mean())}
        if is_replaced.any():
            parts = {"noisy_of_replaced": is_replaced, "noisy_of_others": ~is_replaced}
            values |= {name: 1 - float(weights[part].mean()) for name, part in parts.items() if part.any()}
        run.log(values)
        if not weights.any():
            logger.warning("noise_division: no pair is clean before epoch %d, so all count", run.epoch)
        run.pair_weights = weights if weights.any() else None

    def _mixture(self, share: float, dataset: str) -> str:
        if self.mixture != "auto":
            return self.mixture
        return "high" if share > LITTLE_NOISE or dataset == "rstpreid" else "low"


def divide(losses: Mapping[str, Tensor], settings: MixtureSettings, random: np.random.RandomState) -> Tensor:
    """Return 1 for the clean pairs and 0 for the noisy ones, [num_pairs] float32.

    Args:
        losses: of all pairs by name, [num_pairs] each. A pair that is clean by some and noisy by others is one or the
            other with equal chances.
        settings: of the mixtures.
        random: starts the mixtures, in the order of the losses, and throws the coins.

    Raises:
        CsktError: a loss is not finite.

    Example:
        >>> losses = {"tal": torch.tensor([0.0, 0.1, 0.05, 0.1, 2.0, 1.9])}
        >>> divide(losses, SETTINGS["low"], np.random.RandomState(0))
        tensor([1., 1., 1., 1., 0., 0.])
    """
    votes = []
    for name, values in losses.items():
        if not values.isfinite().all():
            raise CsktError(
                f"hooks.noise_division: the loss {name} of {int((~values.isfinite()).sum())} pairs is not finite; lower"
                " optim.lr, or use --precision fp32"
            )
        normalised = normalise(values)
        if normalised is None:  # equal losses separate nothing; the released code divides by 0
            votes.append(torch.ones(len(values), dtype=torch.bool))
        else:
            votes.append(clean_pairs(posteriors(fit_mixture(normalised, settings, random), normalised)))
    return consensus(votes, random)


def normalise(losses: Tensor) -> NDArray[np.float32] | None:
    """Scale losses [N] to 0 to 1, [N, 1]; None if all are equal."""
    low, high = losses.min(), losses.max()
    return None if low == high else ((losses - low) / (high - low)).float().numpy()[:, None]


def fit_mixture(values: NDArray[np.float32], settings: MixtureSettings, random: np.random.RandomState) -> Any:
    """Fit two Gaussians to values [N, 1], from one run of k-means; return scikit-learn's `GaussianMixture`."""
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415  (an extra, and slow to import)
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    mixture = GaussianMixture(
        n_components=2, max_iter=settings.max_iterations, tol=settings.tolerance, reg_covar=settings.variance_floor,
        random_state=random,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are few on purpose
        return mixture.fit(values)


def posteriors(mixture: Any, values: NDArray[np.float32]) -> Tensor:
    """Return the probability of each value [N, 1] to belong to the component with the smaller mean, [N]."""
    return torch.from_numpy(mixture.predict_proba(values)[:, mixture.means_.argmin()])


def clean_pairs(probabilities: Tensor) -> Tensor:
    """Return the pairs that are clean, [N] bool: those with a probability above 0.5.

    If that is so for all, the pairs up to the one at place N // 100 in ascending order are noisy nevertheless.
    """
    clean = probabilities > 0.5
    if clean.all():
        clean = probabilities > probabilities.sort().values[len(probabilities) // 100]
    return clean


def consensus(votes: Sequence[Tensor], random: np.random.RandomState) -> Tensor:
    """Return 1 for pairs that are clean in all votes ([N] bool each), 0 if they are in none, else a fair coin."""
    stacked = torch.stack(list(votes))
    coins = torch.from_numpy(random.random_sample(stacked.shape[1]) < 0.5)
    return torch.where(stacked.all(dim=0) | (stacked.any(dim=0) & coins), 1.0, 0.0)


def _words(seed: int) -> list[int]:
    """Return a seed as the numbers of 32 bits that NumPy's older generators take."""
    return [seed & 0xFFFFFFFF, seed >> 32]
