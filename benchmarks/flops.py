"""Operations of a training step of CSKT: those of its matrix products, two for a multiplication with its addition.

Counted is what the method asks for, each caption at its own length: padding, casts and recomputation are time lost, not
work done. Frozen layers hand gradients through and need none of their own, so their backward pass costs as much as the
forward pass; what trains costs twice as much, and so does attention. Left out is what is computed once per batch
(prompts, couplings, the captions' common prefix, below 1 % at 128 pairs) and all that is no matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig


@dataclass(frozen=True)
class Flops:
    """Operations of one pass each way."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Of a training step."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


def cskt_step(
    architecture: ClipArchitecture, prompts: PromptConfig, adapters: AdapterConfig, caption_lengths: Sequence[int]
) -> Flops:
    """What one step needs: prompts are keys and values, the last block computes one token of each sequence.

    Args:
        architecture: sizes of the towers.
        prompts: with all directions, in all blocks.
        adapters: in both towers.
        caption_lengths: tokens of each caption, start and end included; as many images stand beside them.
    """
    num_prompts, num_tokens = 2 * prompts.length, 1 + architecture.grid[0] * architecture.grid[1]
    words = [length - 1 for length in caption_lengths]  # the start token belongs to the prefix
    vision, text = _towers(architecture, adapters)
    return (
        _patches(architecture, len(words))
        + vision.step([num_tokens] * len(words), seen=num_prompts, one_asks=True, input_learns=False)
        + text.step(words, seen=1 + num_prompts, one_asks=True, input_learns=False)
    )


def released_step(
    architecture: ClipArchitecture, prompts: PromptConfig, adapters: AdapterConfig, num_pairs: int
) -> Flops:
    """What the released wiring spends on a step: the whole context, and all tokens through all blocks."""
    num_tokens = 1 + architecture.grid[0] * architecture.grid[1] + 2 * prompts.length
    vision, text = _towers(architecture, adapters)
    return (
        _patches(architecture, num_pairs)
        + vision.step([num_tokens] * num_pairs, seen=0, one_asks=False, input_learns=True)
        + text.step([architecture.context_length] * num_pairs, seen=0, one_asks=False, input_learns=True)
    )


@dataclass(frozen=True)
class _Tower:
    width: int
    num_blocks: int
    bottleneck: int
    embed_dim: int

    def step(self, lengths: Sequence[int], *, seen: int, one_asks: bool, input_learns: bool) -> Flops:
        """Blocks and projection, for sequences of these lengths.

        Args:
            seen: keys and values beside a sequence's own.
            one_asks: of the last block one token of each sequence is wanted, and alone projected.
            input_learns: the first block's input holds tokens that learn.
        """
        asking = len(lengths) if one_asks else sum(lengths)
        projection = 2 * self.width * self.embed_dim * asking
        total = Flops(projection, projection)
        for index in range(self.num_blocks):
            one = one_asks and index + 1 == self.num_blocks
            total += self._block(lengths, seen, one=one, input_learns=input_learns or index > 0)
        return total

    def _block(self, lengths: Sequence[int], seen: int, *, one: bool, input_learns: bool) -> Flops:
        square, tokens = 2 * self.width**2, sum(lengths)
        asking = len(lengths) if one else tokens
        pairs = sum((1 if one else length) * (length + seen) for length in lengths)
        query_key_value = square * (asking + 2 * tokens)
        out_and_mlp = square * (1 + 4 + 4) * asking
        adapter = 2 * 2 * self.width * self.bottleneck * asking
        attention = 2 * 2 * self.width * pairs
        # An input that learns nothing needs no gradient, nor do its queries: one of attention's four products.
        through_input = query_key_value if input_learns else 0
        attention_backward = attention * (2 if input_learns else 1.5)
        return Flops(
            query_key_value + attention + out_and_mlp + adapter,
            through_input + attention_backward + out_and_mlp + 2 * adapter,
        )


def _towers(architecture: ClipArchitecture, adapters: AdapterConfig) -> tuple[_Tower, _Tower]:
    """(vision, text)."""
    sizes = (
        (architecture.vision_width, architecture.vision_layers),
        (architecture.text_width, architecture.text_layers),
    )
    vision, text = (
        _Tower(width, blocks, width // adapters.reduction, architecture.embed_dim) for width, blocks in sizes
    )
    return vision, text


def _patches(architecture: ClipArchitecture, num_images: int) -> Flops:
    """The patch convolution, frozen and first."""
    rows, columns = architecture.grid
    return Flops(2 * num_images * rows * columns * 3 * architecture.patch_size**2 * architecture.vision_width, 0)
