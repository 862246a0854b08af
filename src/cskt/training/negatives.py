"""Batches in which a loss finds nothing to tell apart, and configurations that make no other.

A contrastive loss learns by comparing a pair with others. In a batch of one identity SDM, CMPM and TAL have no wrong
answer; in a batch of one pair ITC and the triplet loss have none. Such a batch teaches nothing, and its loss of about 0
looks like success.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cskt.config import DataConfig, LossConfig, RunConfig
from cskt.data.records import Split
from cskt.errors import CsktError
from cskt.losses import Loss, build_losses


def trained_losses(config: LossConfig) -> dict[str, Loss]:
    """Return the losses that have a weight, by name; one of weight 0 is only recorded."""
    return build_losses([name for name, weight in config.weights.items() if weight], config)


def check_captions_per_image(config: RunConfig) -> None:
    """Raise CsktError for an unknown loss, or one that would take another caption of an image for a wrong answer."""
    per_image, built = config.data.captions_per_image, build_losses(config.loss.weights, config.loss)
    if per_image > 1 and (wrong := [name for name, loss in built.items() if loss.negatives == "pairs"]):
        raise CsktError(
            f"data.captions_per_image {per_image}: {min(wrong)} takes an image's other captions for wrong answers; use"
            " sdm, cmpm, tal, id or mlm, or one caption per image"
        )


def check_negatives(config: RunConfig, train_split: Split) -> None:
    """Check that a batch can contain a wrong answer for every loss that trains.

    Raises:
        CsktError: no batch of this configuration can; the message names the key to change.
    """
    data, num_identities, num_images = config.data, train_split.num_ids, len(train_split.records)
    images_per_batch = min(data.batch_size // data.captions_per_image, num_images)
    largest = {
        "identities": (identities_per_batch(data, num_identities), "identity"),
        "images": (images_per_batch, "image"),
        "pairs": (data.batch_size, "pair"),
    }
    for name, loss in trained_losses(config.loss).items():
        if loss.negatives in ("identities", "classes") and num_identities < 2:
            raise CsktError(
                f"data.root {data.root}: the training split of {train_split.dataset} holds one identity, and the loss"
                f" {name} needs two; add people, or take {name} out of loss.weights"
            )
        number, kind = largest.get(loss.negatives or "", (2, ""))
        if number < 2:
            raise CsktError(
                f"data.batch_size {data.batch_size}{_in_groups(data)}: every batch holds one {kind}, from which the"
                f" loss {name} learns nothing; {_remedy(data)}"
            )


def identities_per_batch(data: DataConfig, num_identities: int) -> int:
    """Return the largest number of identities in a batch."""
    places = data.batch_size // (data.captions_per_image if data.sampler == "random" else data.instances)
    return min(places, num_identities)


def without_negatives(losses: Mapping[str, Loss], pids: Tensor, image_ids: Tensor) -> list[str]:
    """Return the names of the losses that find no wrong answer in a batch.

    Args:
        losses: by name.
        pids: [B] identities of the batch, on the host.
        image_ids: [B] its images.
    """
    without = {"pairs"} if len(pids) == 1 else set()
    without |= {kind for kind, ids in (("identities", pids), ("images", image_ids)) if bool((ids == ids[0]).all())}
    return [name for name, loss in losses.items() if loss.negatives in without]


def _in_groups(data: DataConfig) -> str:
    if data.sampler != "random":
        return f" with data.sampler {data.sampler} and data.instances {data.instances}"
    return f" with data.captions_per_image {data.captions_per_image}" if data.captions_per_image > 1 else ""


def _remedy(data: DataConfig) -> str:
    raised = "raise data.batch_size"
    return raised if data.sampler == "random" else f"{raised} or lower data.instances"
