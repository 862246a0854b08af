"""Losses of the token selection embeddings: those of the features, computed on the embeddings of the part `tse`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cskt.losses.base import LossInputs, PairLoss, Reduction, register
from cskt.losses.itc_loss import ITCLoss
from cskt.losses.sdm_loss import SDMLoss
from cskt.losses.tal_loss import TALLoss
from cskt.losses.trl_loss import TRLLoss


class _OfTokenSelection(PairLoss):
    part: ClassVar[str] = "tse"

    def value(self, inputs: LossInputs, pair_weights: Tensor | None, reduction: Reduction) -> Tensor:
        return super().value(inputs.of_head(self.part), pair_weights, reduction)


@register("tse_tal")
@dataclass(eq=False)
class TokenSelectionTAL(_OfTokenSelection, TALLoss):
    """Triplet alignment of the token selection embeddings; see `tal`."""


@register("tse_trl")
@dataclass(eq=False)
class TokenSelectionTRL(_OfTokenSelection, TRLLoss):
    """Triplet ranking of the token selection embeddings; see `trl`."""


@register("tse_itc")
@dataclass(eq=False)
class TokenSelectionITC(_OfTokenSelection, ITCLoss):
    """Image-text contrast of the token selection embeddings; see `itc`."""


@register("tse_sdm")
@dataclass(eq=False)
class TokenSelectionSDM(_OfTokenSelection, SDMLoss):
    """Similarity distribution matching of the token selection embeddings; see `sdm`."""
