"""Learned prompts and their couplings: BPT, bidirectional prompts transferring (CSKT section 2.2).

Both towers may learn prompts of their own for each of the first `depth` blocks; a linear coupling per block maps them
into the other tower. MaPLe (Khattak et al. 2023) is the special case `t2v`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cskt.config import ClipArchitecture, PromptConfig
from cskt.errors import CsktError
from cskt.model.parts.base import EmbedWords, Part, PartExtras, Side, register

LEARNS_TEXT = {"text", "own", "t2v", "both"}
LEARNS_VISION = {"vision", "own", "v2t", "both"}


@register("prompts")
class PromptLearner(Part):
    """Text and vision prompts and the couplings `t2v` and `v2t` that `config.directions` names."""

    Config = PromptConfig

    def __init__(self, config: PromptConfig, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        directions, depth = config.directions, config.depth
        if depth > min(architecture.vision_layers, architecture.text_layers):
            raise CsktError(
                f"prompts.depth {depth} is above the blocks of a tower"
                f" (vision {architecture.vision_layers}, text {architecture.text_layers})"
            )
        text_width, vision_width = architecture.text_width, architecture.vision_width

        def tokens(learned: bool, width: int) -> nn.ParameterList:
            return nn.ParameterList(torch.empty(config.length, width) for _ in range(depth if learned else 0))

        def couplings(learned: bool, width: int, other_width: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(width, other_width) for _ in range(depth if learned else 0))

        self.text = tokens(directions in LEARNS_TEXT, text_width)
        self.vision = tokens(directions in LEARNS_VISION, vision_width)
        self.t2v = couplings(directions in ("t2v", "both"), text_width, vision_width)
        self.v2t = couplings(directions in ("v2t", "both"), vision_width, text_width)
        num_slots = config.length * (bool(self.text) + bool(self.v2t))
        if num_slots > architecture.context_length - 3:
            raise CsktError(
                f"prompts.length {config.length} leaves no position for words in {architecture.context_length} tokens"
            )

    @classmethod
    def is_active(cls, config: PromptConfig) -> bool:
        return config.directions != "none"

    def extras(self, side: Side) -> PartExtras:
        """Return the prompts of a tower: its own, and those that are coupled in from the other.

        In the text tower its own come first, in the vision tower the coupled ones.
        """
        if side == "vision":
            coupled = [couple(own) for couple, own in zip(self.t2v, self.text, strict=False)]
            return PartExtras(prompts=_join(coupled, self.vision))
        coupled = [couple(own) for couple, own in zip(self.v2t, self.vision, strict=False)]
        return PartExtras(prompts=_join(self.text, coupled))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, embed_words: EmbedWords | None = None) -> None:
        """Draw prompts and coupling weights from N(0, init_std), couplings' biases zero.

        With `init` words, the words initialise block 0's text prompts, repeated if fewer than `length`.
        """
        for parameter in [*self.text, *self.vision, *(layer.weight for layer in [*self.t2v, *self.v2t])]:
            parameter.normal_(std=self.config.init_std, generator=generator)
        for layer in [*self.t2v, *self.v2t]:
            layer.bias.zero_()
        if embed_words is not None and self.config.init == "words" and self.text:
            words = embed_words(self.config.words)[: self.config.length]
            if len(words):
                self.text[0].copy_(words[torch.arange(self.config.length) % len(words)])


def _join(*kinds: Iterable[Tensor]) -> list[Tensor]:
    """Concatenate the prompts of all kinds, block by block."""
    present = [list(kind) for kind in kinds]
    return [torch.cat(block) for block in zip(*(kind for kind in present if kind), strict=True)]
