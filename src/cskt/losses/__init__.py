"""Losses of text-to-image retrieval: one file each, a class with its constants and a pure function of raw features.

Image i and caption i of a batch belong together; captions and images of the same identity do too, except where a loss
says otherwise. Features are not normalised: SDM, ITC and TAL normalise them, CMPM, the identity loss and the triplet
loss need their lengths. All losses compute in float32, under autocast as well.

To add a loss, write a subclass of `Loss` in a file of its own, add it to `LOSSES`, and test it against a naive loop.

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

import torch
from torch import Tensor

from cskt.errors import CsktError
from cskt.losses.base import Loss, LossInputs, Negatives
from cskt.losses.cmpm_loss import CMPMLoss, cmpm
from cskt.losses.identity_loss import IdentityLoss, identity
from cskt.losses.itc_loss import ITCLoss, itc
from cskt.losses.mlm_loss import MLMLoss, mlm
from cskt.losses.sdm_loss import SDMLoss, sdm, sdm_at_collapse
from cskt.losses.tal_loss import TALLoss, tal
from cskt.losses.triplet_loss import TripletLoss, triplet
from cskt.utils.messages import nearest

__all__ = [
    "LOSSES", "CMPMLoss", "ITCLoss", "IdentityLoss", "Loss", "LossInputs", "MLMLoss", "Negatives", "SDMLoss", "TALLoss",
    "TripletLoss", "build_losses", "cmpm", "identity", "itc", "mlm", "sdm", "sdm_at_collapse", "tal", "triplet",
    "weighted_total",
]  # fmt: skip

LOSSES: dict[str, type[Loss]] = {
    "sdm": SDMLoss, "itc": ITCLoss, "cmpm": CMPMLoss, "id": IdentityLoss, "mlm": MLMLoss, "triplet": TripletLoss,
    "tal": TALLoss,
}  # fmt: skip
"""Loss by its name in a config."""


def build_losses(names: Iterable[str], settings: object) -> dict[str, Loss]:
    """Return losses by name, with the constants of a config.

    Args:
        names: keys of `LOSSES`.
        settings: section `loss` of a config; its attributes are the constants (`Loss.config_keys`).

    Raises:
        CsktError: a name is not in `LOSSES`; the message suggests the nearest.
    """
    found = {}
    for name in names:
        if name not in LOSSES:
            raise CsktError(f"unknown loss '{name}': {nearest(name, LOSSES)}")
        kind = LOSSES[name]
        found[name] = kind(**{field: getattr(settings, key) for field, key in kind.config_keys.items()})
    return found


def weighted_total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum that is back-propagated; losses of weight 0 stay out of the graph.

    Raises:
        CsktError: no loss has a weight above 0.
    """
    terms = [weights[name] * loss for name, loss in losses.items() if weights[name]]
    if not terms:
        raise CsktError("no loss has a weight above 0; set one in loss.weights")
    return torch.stack(terms).sum()
