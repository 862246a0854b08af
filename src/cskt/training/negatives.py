"""Batches in which a loss finds nothing to tell apart, and configurations that make no other.

A contrastive loss learns by comparing a pair with others. In a batch of one identity SDM, CMPM and TAL have no wrong
answer; in a batch of one pair ITC and the triplet loss have none. Such a batch teaches nothing, and its loss of about 0
looks like success.
"""

from __future__ import annotations

from torch import Tensor

from cskt.config import DataConfig, LossConfig, RunConfig
from cskt.data.records import Split
from cskt.errors import CsktError

OTHER_IDENTITIES = ("sdm", "cmpm", "tal")
"""Losses whose wrong answers are the pairs of other identities."""
OTHER_PAIRS = ("itc", "triplet")
"""Losses whose wrong answers are all other pairs."""


def check_negatives(config: RunConfig, train_split: Split) -> None:
    """Check that a batch can hold a wrong answer for every loss that trains.

    Raises:
        CsktError: no batch of this configuration can; names the key to change.
    """
    num_identities, num_images = train_split.num_ids, len(train_split.records)
    data = config.data
    for name in trained(config.loss):
        few = f"the training split of {train_split.dataset} holds one identity, and the loss {name} needs two"
        if name in (*OTHER_IDENTITIES, "id") and num_identities < 2 and not _tells_images_apart(name, config.loss):
            raise CsktError(f"data.root {data.root}: {few}; add people, or take {name} out of loss.weights")
        if name in OTHER_IDENTITIES:
            if _tells_images_apart(name, config.loss):
                enough, kind = min(data.batch_size // data.captions_per_image, num_images) > 1, "image"
            else:
                enough, kind = identities_per_batch(data, num_identities) > 1, "identity"
        else:
            enough, kind = name not in OTHER_PAIRS or data.batch_size > 1, "pair"
        if not enough:
            raise CsktError(
                f"data.batch_size {data.batch_size}{_in_groups(data)}: every batch holds one {kind}, from which the"
                f" loss {name} learns nothing; {_remedy(data)}"
            )


def identities_per_batch(data: DataConfig, num_identities: int) -> int:
    """The most identities that a batch can hold."""
    places = data.batch_size // (data.captions_per_image if data.sampler == "random" else data.instances)
    return min(places, num_identities)


def without_negatives(loss: LossConfig, pids: Tensor, image_ids: Tensor) -> list[str]:
    """Names of the losses that train, but find no wrong answer in a batch.

    Args:
        loss: weights and constants.
        pids: [B] identities of the batch, on the host.
        image_ids: [B] its images.
    """
    one_identity, one_image = (bool((ids == ids[0]).all()) for ids in (pids, image_ids))
    return [
        name
        for name in trained(loss)
        if (name in OTHER_IDENTITIES and (one_image if _tells_images_apart(name, loss) else one_identity))
        or (name in OTHER_PAIRS and len(pids) == 1)
    ]


def trained(loss: LossConfig) -> list[str]:
    """Names of the losses that have a weight; one of weight 0 is only recorded."""
    return [name for name, weight in loss.weights.items() if weight]


def _tells_images_apart(name: str, loss: LossConfig) -> bool:
    return name == "sdm" and loss.sdm_other_image < 1


def _in_groups(data: DataConfig) -> str:
    if data.sampler != "random":
        return f" with data.sampler {data.sampler} and data.instances {data.instances}"
    return f" with data.captions_per_image {data.captions_per_image}" if data.captions_per_image > 1 else ""


def _remedy(data: DataConfig) -> str:
    raised = "raise data.batch_size"
    return raised if data.sampler == "random" else f"{raised} or lower data.instances"
