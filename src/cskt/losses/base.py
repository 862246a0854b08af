"""Interface of the losses, and the terms that several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Negatives = Literal["identities", "images", "pairs", "classes"]
"""Wrong answers that a loss compares with: the pairs of other identities or of other images in the batch, all other
pairs of the batch, or the other identities of the training split."""


@dataclass(frozen=True)
class LossInputs:
    """Tensors of a batch of B pairs, image i with caption i.

    Features, identities and images are those of the whole batch. Logits, which need no other row, are those of the b
    rows that this process computes.
    """

    image_features: Tensor
    text_features: Tensor
    """[B, D] raw, not normalised."""
    pids: Tensor
    """[B] int64 identities."""
    image_ids: Tensor | None = None
    """[B] int64 images."""
    image_logits: Tensor | None = None
    text_logits: Tensor | None = None
    id_labels: Tensor | None = None
    """[b, C] identity logits of one classifier, and [b] int64 identities in [0, C)."""
    mlm_logits: Tensor | None = None
    mlm_labels: Tensor | None = None
    """[M, V] logits of masked words, and their [M] int64 ids."""

    def __post_init__(self) -> None:
        assert self.image_features.shape == self.text_features.shape, "image i belongs to caption i"
        assert self.pids.shape == self.image_features.shape[:1], "one identity per pair"


class Loss(ABC):
    """A loss: its constants are its fields, its value is the result of calling it.

    A subclass is a frozen dataclass in a file of its own, with a pure function that computes the value.
    """

    config_keys: ClassVar[Mapping[str, str]] = {}
    """Field -> key of the section `loss` of a config."""
    head: ClassVar[Literal["classifier", "interaction"] | None] = None
    """Training head whose logits the loss needs."""
    by_row: ClassVar[bool] = False
    """True for a mean over rows that look at no other row: the loss of a batch in parts is then the mean of the losses
    of its parts, weighted by their sizes."""

    @property
    def negatives(self) -> Negatives | None:
        """Wrong answers that the loss compares with; None if it needs none."""
        return None

    def num_terms(self, inputs: LossInputs) -> int | None:
        """Return the number of terms in the mean of a by-row loss; None if it has one term per row."""
        return None

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> Tensor:
        """Return the loss of a batch, a scalar in float32."""


def full_precision(features: Tensor) -> torch.autocast:
    """Return a context that turns autocast off: at a temperature of 0.02 a rounded cosine gives another loss."""
    return torch.autocast(features.device.type, enabled=False)


def cosines(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return the cosine of every image and caption, [B, B], from raw features [B, D]."""
    return F.normalize(image_features.float(), dim=1) @ F.normalize(text_features.float(), dim=1).T


def same(ids: Tensor) -> Tensor:
    """Return [B, B] float 1 where row and column share an id, else 0."""
    return (ids[:, None] == ids[None, :]).float()


def divergence(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Return the mean over rows of KL(softmax(logits) || labels + epsilon)."""
    log_predicted = F.log_softmax(logits, dim=1)
    return (log_predicted.exp() * (log_predicted - torch.log(labels + epsilon))).sum(dim=1).mean()
