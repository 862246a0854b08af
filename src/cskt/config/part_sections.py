"""Settings of the package's method parts and hooks in the sections `parts` and `hooks`, beside those of plug-ins.

They are here, apart from the parts and hooks, so that flags and help need no torch.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import model_validator

from cskt.config.types import STRICT, Positive, PositiveReal, Real, Size, Whole
from cskt.errors import CsktError
from cskt.utils.checked import checked_dataclass

NumBlocks = Annotated[Whole, Ge(0), Le(200)]
"""Number of blocks; a tower that has fewer has the addition in all of its blocks."""


@checked_dataclass(STRICT)
class UpPersonConfig:
    """UP-Person: prefixes, low-rank updates and adapters before attention and MLP (Liu et al., TCSVT 2025)."""

    prefix_length: Size = 10
    """Keys and values that are added to the attention of a block."""
    depth_prefix: NumBlocks = 12
    """Blocks, from the first, that have a prefix."""
    prefix_factor: PositiveReal = 100.0
    """Initial factor of a prefix's attention weights, which are not normalised again."""
    prefix_init: PositiveReal = 0.01
    """Prefix tokens start uniform between 0 and this value."""
    rank: Size = 32
    """Rank of the updates of keys and values."""
    depth_lora: NumBlocks = 12
    """Blocks, from the first, whose keys and values are updated."""
    depth_adapter: NumBlocks = 0
    """First block, counted from 0, with adapters; the blocks after it have them too."""
    reduction: Positive = 8
    """Tower width divided by the width of an adapter's bottleneck."""


@checked_dataclass(STRICT)
class DMAdapterConfig:
    """DM-Adapter: a mixture of adapters beside the MLP of every block, with a router (Liu et al., AAAI 2025)."""

    num_experts: Size = 6
    """Adapters in a block."""
    topk: Positive = 2
    """Adapters that compute a token."""
    reduction: Positive = 8
    """Tower width divided by the width of an adapter's bottleneck."""
    vision_scale: Real = 0.1
    """Factor of the adapters' output in the vision tower."""
    text_scale: Real = 4.0
    """Factor of the adapters' output in the text tower."""
    task_share: Real = 0.5
    """Initial share of a block's task vector in the logits of its router (alpha); learned."""
    gate_std: PositiveReal = 0.02
    """Standard deviation of the initial weights of the router."""

    @model_validator(mode="after")
    def _check(self) -> DMAdapterConfig:
        if self.topk > self.num_experts:
            raise CsktError(f"topk {self.topk} is above num_experts {self.num_experts}")
        return self


@checked_dataclass(STRICT)
class TokenSelectionConfig:
    """Token selection embedding (RDE, Qin et al., CVPR 2024, section 3.2)."""

    ratio: Annotated[Real, Gt(0), Le(1)] = 0.3
    """Share of the patches, and of the context without start and end token, that is selected."""
    width: Size = 1024
    """Numbers in the embedding."""
    train_mode_after_division: bool = True
    """The head trains in training mode: batch normalisation uses the statistics of the batch. With false it keeps the
    statistics that it starts from (mean 0, variance 1): the code that the published results and checkpoints come from
    never left the evaluation mode in which it divides the pairs. The authors switch to training mode since 2024-11-28,
    and warn that this costs accuracy on noisy data."""


PART_CONFIGS: dict[str, type] = {
    "up_person": UpPersonConfig, "dm_adapter": DMAdapterConfig, "tse": TokenSelectionConfig,
}  # fmt: skip
"""Name of a method part -> its config."""


@dataclasses.dataclass
class NoiseDivisionConfig:
    """Division of noisy pairs (RDE, section 3.4): fields of the hook `noise_division`."""

    losses: tuple[str, ...] = ("tal", "tse_tal")
    """Losses of `loss.weights` by which pairs are divided; a coin decides where they disagree."""
    mixture: Literal["auto", "low", "high", "none"] = "auto"
    """Fit of the mixtures: low, for little noise (10 iterations, variance at least 5e-4) | high (100, 1e-6) | auto:
    high for RSTPReid and if more than 40 % of the captions are replaced | none: no division, all pairs count."""


HOOK_FIELDS: dict[str, type] = {"noise_division": NoiseDivisionConfig}
"""Dataclass with the fields of a hook by its name."""
