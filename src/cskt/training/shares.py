"""A batch and a split, shared out among the processes of a training; see `cskt.training.distributed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.evaluation.evaluate import SplitFeatures
from cskt.training.distributed import ALONE, Processes
from cskt.types import Batch


@dataclass(frozen=True)
class Rows:
    """The pairs of a batch, as they lie on the processes."""

    processes: Processes
    own: slice
    """Those that this process computes."""
    num_images: int
    """Of the whole batch."""
    per_image: int
    """Captions to an image."""

    @classmethod
    def of(cls, batch: Batch, processes: Processes) -> Rows:
        """Of a batch of which this process has its share."""
        num_images, per_image = len(batch.image_ids), len(batch.pids) // len(batch.image_ids)
        stop = batch.first_image + len(batch.images)
        own = slice(per_image * batch.first_image, per_image * stop)
        return cls(processes, own, num_images, per_image)

    @property
    def counted(self) -> range:
        """Those of the own rows that count: all, or none; see `Processes.share`."""
        images = self.processes.shares(self.num_images)[self.processes.rank]
        return range(self.per_image * images.start, self.per_image * images.stop)

    def gather(self, own: Tensor) -> Tensor:
        """[b, D] -> [B, D] of all processes; the gradient of the whole goes into the own rows."""
        if self.processes.count == 1:
            return own
        return _Gather.apply(own[: len(self.counted)], self)  # type: ignore[no-untyped-call]

    def fraction(self, num_own: int | None = None) -> float:
        """The part of a mean over all rows that the mean over the own rows makes up.

        Args:
            num_own: terms of the own mean, where it is not one to a row.
        """
        if self.processes.count == 1:
            return 1.0
        if num_own is None:
            return len(self.counted) / (self.num_images * self.per_image)
        counted = num_own if self.counted else 0
        total = int(self.processes.sum(torch.tensor(counted)))
        return counted / max(total, 1)


WHOLE = Rows(ALONE, slice(None), num_images=0, per_image=1)
"""Of a process that has all of a batch."""


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: Rows) -> Tensor:
        ctx.own = slice(rows.counted.start, rows.counted.stop)
        return rows.processes.gather(own, rows.num_images, rows.per_image)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.own], None


def encode_shared(encoder: Encoder, split: Split, processes: Processes) -> SplitFeatures:
    """Every image and caption of a split encoded once, by one process or another; all have all features.

    Raises:
        CsktError: an image cannot be read.
    """
    images, captions = processes.share(len(split.records)), processes.share(len(split.captions))
    image_features = encoder.encode_image(split.image_paths[images.start : images.stop])
    text_features = encoder.encode_text(split.captions[captions.start : captions.stop])
    return SplitFeatures(
        image_features=processes.gather(image_features, len(split.records)),
        text_features=processes.gather(text_features, len(split.captions)),
        image_pids=torch.tensor(split.image_pids),
        caption_pids=torch.tensor(split.caption_pids),
    )
