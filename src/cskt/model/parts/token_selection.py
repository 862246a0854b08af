"""Token selection embedding: a further vector of an image or a caption, made of the tokens that matter most.

Source: RDE (Qin et al., CVPR 2024), section 3.2, as in its released code.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cskt.config import ClipArchitecture, TokenSelectionConfig
from cskt.errors import CsktError
from cskt.model.parts.base import Part, Side, register

EPSILON = 1e-8
"""Added to the length of a token before it is divided by it."""
EXCLUDED = -2.0
"""Score of a token that is never selected: the class, start or end token. Attention is at least 0, padding above -1."""


class SelectionHead(nn.Module):
    """Two layers with a batch normalisation between them, and a linear layer beside them: one of each tower."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 2)
        self.skip = nn.Linear(in_width, width)
        self.first = nn.Linear(in_width, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.second = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, in_width] -> [N, width]."""
        return self.second(F.relu(self.norm(self.first(tokens)))) + self.skip(tokens)


@register("tse")
class TokenSelection(Part):
    """Embedding of the tokens that the class or end token attends to most, in the last block (TSE).

    The share `ratio` of the tokens with the largest attention, the mean over the heads, is selected; no gradient passes
    through the choice. Each token is divided by its length and passes a head; the embedding is the maximum over the
    tokens. Start and end tokens are not selected, and padding never decides the maximum. In training it counts in the
    statistics of the batch normalisation: captions with fewer words are filled up with the first tokens of their
    padding, as in the released code.

    Two rules are ours: equal attention is ordered by position, and a caption without words is embedded by its end
    token, where the released code computes NaN.
    """

    needs_attention = True

    Config = TokenSelectionConfig
    config: TokenSelectionConfig

    def __init__(self, config: TokenSelectionConfig, architecture: ClipArchitecture) -> None:
        super().__init__(config, architecture)
        numbers = {"vision": architecture.grid[0] * architecture.grid[1], "text": architecture.context_length - 2}
        self.num_selected = {side: int(config.ratio * number) for side, number in numbers.items()}
        """Number k of tokens by tower."""
        if empty := next((side for side, number in self.num_selected.items() if not number), None):
            raise CsktError(
                f"parts.tse.ratio {config.ratio:g} selects none of the {numbers[empty]} tokens of the {empty} tower;"
                " give a larger share"
            )
        self.embedding_width = config.width
        # With constant statistics no row looks at another.
        self.by_row = not config.train_mode_after_division
        self.vision = SelectionHead(architecture.embed_dim, config.width)
        self.text = SelectionHead(architecture.embed_dim, config.width)

    def train(self, mode: bool = True) -> Self:
        """Choose training or evaluation mode; the batch normalisation may stay in the latter."""
        super().train(mode)
        for head in (self.vision, self.text):
            head.norm.train(mode and self.config.train_mode_after_division)
        return self

    def embed(self, side: Side, tokens: Tensor, attention: Tensor | None, mask: Tensor) -> Tensor:
        """See `Part.embed`."""
        assert attention is not None
        num_selected = self.num_selected[side]
        if side == "text":  # a batch of short captions has fewer tokens than are selected
            tokens, attention = F.pad(tokens, (0, 0, 0, num_selected)), F.pad(attention, (0, num_selected))
            mask = F.pad(mask, (0, num_selected))
        scores, positions = selection_scores(side, attention.detach(), mask).topk(num_selected, dim=1)
        selected = tokens.gather(1, positions[:, :, None].expand(-1, -1, tokens.shape[2]))
        selected = selected / (selected.norm(dim=2, keepdim=True) + EPSILON)
        head = self.vision if side == "vision" else self.text
        embeddings = head(selected.flatten(0, 1)).unflatten(0, positions.shape)
        return embeddings.masked_fill((scores < 0)[:, :, None], -torch.inf).amax(dim=1)


def selection_scores(side: Side, attention: Tensor, mask: Tensor) -> Tensor:
    """Return the scores [B, L] in whose descending order tokens are selected.

    Patches and words have their attention; the rest is below 0, padding before it, in the order of its positions.

    Args:
        side: tower of the tokens.
        attention, mask: [B, L] as for `Part.embed`.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    counts = mask & (places > 0)
    if side == "text":
        is_end = places == (places * mask).amax(dim=1, keepdim=True)
        words = counts & ~is_end
        counts = words | (is_end & ~words.any(dim=1, keepdim=True))
    filling = -(places + 1) / (mask.shape[1] + 1)
    return torch.where(counts, attention, torch.where(mask, EXCLUDED, filling.to(attention.dtype)))
