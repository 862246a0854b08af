"""Learned prompts and their couplings: BPT, bidirectional prompts transferring (CSKT section 2.2).

Both towers may learn prompts of their own for each of the first `depth` blocks; a linear coupling per block maps them
into the other tower. MaPLe (Khattak et al. 2023) is the special case `t2v`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cskt.config import ClipArchitecture, PromptConfig
from cskt.errors import CsktError

NO_PROMPTS = PromptConfig(directions="none")
LEARNS_TEXT = {"text", "own", "t2v", "both"}
LEARNS_VISION = {"vision", "own", "v2t", "both"}


class PromptTokens(NamedTuple):
    """Prompts of each prompted block for both towers; empty where a tower has none."""

    vision: list[Tensor]
    """[P, vision_width] per block: coupled text prompts, then own vision prompts."""
    text: list[Tensor]
    """[P, text_width] per block: own text prompts, then coupled vision prompts."""


class PromptLearner(nn.Module):
    """Text and vision prompts and the couplings `t2v` and `v2t` that `config.directions` names."""

    def __init__(self, config: PromptConfig, architecture: ClipArchitecture) -> None:
        super().__init__()
        directions, depth = config.directions, config.depth
        if directions != "none" and depth > min(architecture.vision_layers, architecture.text_layers):
            raise CsktError(
                f"prompts.depth {depth} is above the blocks of a tower"
                f" (vision {architecture.vision_layers}, text {architecture.text_layers})"
            )
        text_width, vision_width = architecture.text_width, architecture.vision_width

        def tokens(learned: bool, width: int) -> nn.ParameterList:
            return nn.ParameterList(torch.empty(config.length, width) for _ in range(depth if learned else 0))

        def couplings(learned: bool, width: int, other_width: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Linear(width, other_width) for _ in range(depth if learned else 0))

        self.config = config
        self.text = tokens(directions in LEARNS_TEXT, text_width)
        self.vision = tokens(directions in LEARNS_VISION, vision_width)
        self.t2v = couplings(directions in ("t2v", "both"), text_width, vision_width)
        self.v2t = couplings(directions in ("v2t", "both"), vision_width, text_width)
        if self.num_text_slots > architecture.context_length - 3:
            raise CsktError(
                f"prompts.length {config.length} leaves no position for words in {architecture.context_length} tokens"
            )

    @property
    def num_text_slots(self) -> int:
        """Number of prompt tokens in every caption."""
        return self.config.length * (bool(self.text) + bool(self.v2t))

    def forward(self) -> PromptTokens:
        """Return the prompts of every prompted block, with gradients for prompts and couplings."""
        coupled_text = [couple(own) for couple, own in zip(self.t2v, self.text, strict=False)]
        coupled_vision = [couple(own) for couple, own in zip(self.v2t, self.vision, strict=False)]
        return PromptTokens(vision=_join(coupled_text, self.vision), text=_join(self.text, coupled_vision))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, word_embeddings: Tensor | None = None) -> None:
        """Draw prompts and coupling weights from N(0, init_std), couplings' biases zero.

        Given token embeddings [n, text_width] initialise block 0's text prompts, repeated if fewer than `length`.
        """
        for parameter in [*self.text, *self.vision, *(layer.weight for layer in [*self.t2v, *self.v2t])]:
            parameter.normal_(std=self.config.init_std, generator=generator)
        for layer in [*self.t2v, *self.v2t]:
            layer.bias.zero_()
        if word_embeddings is not None and self.text:
            rows = torch.arange(self.config.length) % len(word_embeddings)
            self.text[0].copy_(word_embeddings[rows])


def _join(*kinds: Iterable[Tensor]) -> list[Tensor]:
    """Concatenate the prompts of all kinds, block by block."""
    present = [list(kind) for kind in kinds]
    return [torch.cat(block) for block in zip(*(kind for kind in present if kind), strict=True)]
