"""Losses of text-to-image retrieval: of each a class with its constants, and a pure function of raw features.

Image i and caption i of a batch belong together; captions and images of the same identity do too, except where a loss
says otherwise. Features are raw: CMPM and the triplet loss use their lengths, and all other losses of features
normalise them. All losses compute in float32, under autocast as well.

To add a loss, write a subclass of `Loss` in a file of its own and decorate it with `register`.

Example:
    >>> from cskt import losses
    >>> image_features, text_features, pids = torch.eye(4), torch.eye(4), torch.arange(4)
    >>> round(losses.itc(image_features, text_features, temperature=0.5).item(), 4)
    0.3408
    >>> loss = losses.LOSSES["itc"](temperature=0.5)
    >>> round(loss(losses.LossInputs(image_features, text_features, pids)).item(), 4)
    0.3408
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from cskt.errors import CsktError
from cskt.losses.balance_loss import BalanceLoss, balance
from cskt.losses.base import (
    LOSSES,
    Embeddings,
    Loss,
    LossInputs,
    Negatives,
    PairLoss,
    Reduction,
    Sizes,
    reduced,
    register,
)
from cskt.losses.citc_loss import CITCLoss, citc
from cskt.losses.cmpm_loss import CMPMLoss, cmpm
from cskt.losses.identity_loss import IdentityLoss, identity
from cskt.losses.itc_loss import ITCLoss, itc
from cskt.losses.mlm_loss import MLMLoss, mlm
from cskt.losses.nitc_loss import NITCLoss, nitc
from cskt.losses.ritc_loss import RITCLoss, ritc
from cskt.losses.sdm_loss import SDMLoss, sdm, sdm_at_collapse
from cskt.losses.simclr_loss import SimCLRLoss, simclr
from cskt.losses.tal_loss import TALLoss, tal
from cskt.losses.token_selection_losses import (
    TokenSelectionITC,
    TokenSelectionSDM,
    TokenSelectionTAL,
    TokenSelectionTRL,
)
from cskt.losses.triplet_loss import TripletLoss, triplet
from cskt.losses.trl_loss import TRLLoss, trl
from cskt.utils.arguments import listed
from cskt.utils.messages import nearest

__all__ = [
    "LOSSES", "BalanceLoss", "CITCLoss", "CMPMLoss", "Embeddings", "ITCLoss", "IdentityLoss", "Loss", "LossInputs",
    "MLMLoss", "NITCLoss", "Negatives", "PairLoss", "RITCLoss", "Reduction", "SDMLoss", "SimCLRLoss", "Sizes",
    "TALLoss", "TRLLoss", "TokenSelectionITC", "TokenSelectionSDM", "TokenSelectionTAL", "TokenSelectionTRL",
    "TripletLoss", "balance", "build_losses", "citc", "cmpm", "identity", "itc", "mlm", "nitc", "reduced", "register",
    "ritc", "sdm", "sdm_at_collapse", "simclr", "tal", "triplet", "trl", "weighted_total",
]  # fmt: skip


class Settings(Protocol):
    """Section `loss` of a config."""

    def constants_of(self, name: str) -> Mapping[str, Any]:
        """Return the constants that are set for a loss, by field."""


def build_losses(names: str | Iterable[str], settings: Settings) -> dict[str, Loss]:
    """Return losses by name, with the constants of a config.

    Args:
        names: a key of `LOSSES`, or several.
        settings: `RunConfig.loss`.

    Raises:
        CsktError: a name is not in `LOSSES`, or a loss has no such constant.

    Example:
        >>> build_losses(["sdm", "id"], cskt.RunConfig().loss)["sdm"].temperature
        0.02
    """
    found = {}
    for name in listed(names, str, "names"):
        kind, constants = LOSSES[name], settings.constants_of(name)
        known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
        if unknown := next((key for key in constants if key not in known), None):
            raise CsktError(f"unknown key 'loss.{name}.{unknown}': {nearest(unknown, known)}")
        found[name] = kind(**constants)
    return found


def weighted_total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum that is back-propagated; losses of weight 0 stay out of the graph.

    Raises:
        CsktError: a loss has no weight, or none has one above 0.

    Example:
        >>> weighted_total({"itc": torch.tensor(2.0), "id": torch.tensor(3.0)}, {"itc": 1.0, "id": 0.5}).item()
        3.5
    """
    if without := losses.keys() - weights.keys():
        raise CsktError(f"loss '{min(without)}' has no weight; set one in loss.weights")
    terms = [weights[name] * loss for name, loss in losses.items() if weights[name]]
    if not terms:
        raise CsktError("no loss has a weight above 0; set one in loss.weights")
    return torch.stack(terms).sum()
