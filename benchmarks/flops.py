"""Operations of a training step of CSKT: those of its matrix products, two for a multiply-add.

The count contains what the method needs, each caption at its own length, without padding, casts and recomputation. The
backward pass of a frozen layer needs no weight gradients and costs as much as its forward pass; that of trained layers
and of attention costs twice as much. Left out: what is computed once per batch (prompts, couplings, the common prefix
of captions, below 1 % at 128 pairs) and everything that is not a matrix product.

    python -m benchmarks.flops
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cskt.config import AdapterConfig, ClipArchitecture, PromptConfig

NUM_PAIRS, CAPTION_TOKENS = 128, 37
"""The batch of the published command, and the mean length of generated captions."""


@dataclass(frozen=True)
class Flops:
    """Operations of a forward and a backward pass."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Operations of a training step."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)


def cskt_step(
    architecture: ClipArchitecture, prompts: PromptConfig, adapters: AdapterConfig, caption_lengths: Sequence[int]
) -> Flops:
    """Count a step as we compute it: prompts are keys and values, the last block computes one token per sequence.

    Args:
        architecture: sizes of the towers.
        prompts: with all directions, in all blocks.
        adapters: in both towers.
        caption_lengths: tokens of each caption, including start and end; the batch has one image per caption.
    """
    num_prompts, num_tokens = 2 * prompts.length, 1 + architecture.grid[0] * architecture.grid[1]
    words = [length - 1 for length in caption_lengths]  # the start token belongs to the prefix
    vision, text = _towers(architecture, adapters)
    return (
        _patches(architecture, len(words))
        + vision.step([num_tokens] * len(words), num_extra_keys=num_prompts, single_query=True, trains_input=False)
        + text.step(words, num_extra_keys=1 + num_prompts, single_query=True, trains_input=False)
    )


def released_step(
    architecture: ClipArchitecture, prompts: PromptConfig, adapters: AdapterConfig, num_pairs: int
) -> Flops:
    """Count a step of the released code: the whole context, and all tokens through all blocks."""
    num_tokens = 1 + architecture.grid[0] * architecture.grid[1] + 2 * prompts.length
    vision, text = _towers(architecture, adapters)
    return (
        _patches(architecture, num_pairs)
        + vision.step([num_tokens] * num_pairs, num_extra_keys=0, single_query=False, trains_input=True)
        + text.step([architecture.context_length] * num_pairs, num_extra_keys=0, single_query=False, trains_input=True)
    )


@dataclass(frozen=True)
class _Tower:
    width: int
    num_blocks: int
    bottleneck: int
    embed_dim: int

    def step(self, lengths: Sequence[int], *, num_extra_keys: int, single_query: bool, trains_input: bool) -> Flops:
        """Count blocks and projection for sequences of these lengths.

        Args:
            num_extra_keys: keys and values beside those of the sequence.
            single_query: the last block computes, and projects, one token per sequence only.
            trains_input: the input of the first block contains trained tokens.
        """
        num_queries = len(lengths) if single_query else sum(lengths)
        projection = 2 * self.width * self.embed_dim * num_queries
        total = Flops(projection, projection)
        for index in range(self.num_blocks):
            one = single_query and index + 1 == self.num_blocks
            total += self._block(lengths, num_extra_keys, one=one, trains_input=trains_input or index > 0)
        return total

    def _block(self, lengths: Sequence[int], num_extra_keys: int, *, one: bool, trains_input: bool) -> Flops:
        square, tokens = 2 * self.width**2, sum(lengths)
        num_queries = len(lengths) if one else tokens
        pairs = sum((1 if one else length) * (length + num_extra_keys) for length in lengths)
        query_key_value = square * (num_queries + 2 * tokens)
        out_and_mlp = square * (1 + 4 + 4) * num_queries
        adapter = 2 * 2 * self.width * self.bottleneck * num_queries
        attention = 2 * 2 * self.width * pairs
        # An input without trained tokens needs no gradient, nor do its queries: one of attention's four products.
        through_input = query_key_value if trains_input else 0
        attention_backward = attention * (2 if trains_input else 1.5)
        return Flops(
            query_key_value + attention + out_and_mlp + adapter,
            through_input + attention_backward + out_and_mlp + 2 * adapter,
        )


def _towers(architecture: ClipArchitecture, adapters: AdapterConfig) -> tuple[_Tower, _Tower]:
    """Return the counts of (vision, text)."""
    sizes = (
        (architecture.vision_width, architecture.vision_layers),
        (architecture.text_width, architecture.text_layers),
    )
    vision, text = (
        _Tower(width, blocks, width // adapters.reduction, architecture.embed_dim) for width, blocks in sizes
    )
    return vision, text


def _patches(architecture: ClipArchitecture, num_images: int) -> Flops:
    """Count the patch convolution, which is frozen and first."""
    rows, columns = architecture.grid
    return Flops(2 * num_images * rows * columns * 3 * architecture.patch_size**2 * architecture.vision_width, 0)


def main() -> None:
    """Print the operations of docs/performance.md, ours and those of the released code."""
    sizes, prompts, adapters = ClipArchitecture(image_height=384, image_width=128), PromptConfig(), AdapterConfig()
    (vision, text), patches = _towers(sizes, adapters), _patches(sizes, 1)
    num_tokens, num_prompts = 1 + sizes.grid[0] * sizes.grid[1], 2 * prompts.length
    image = vision.step([num_tokens], num_extra_keys=num_prompts, single_query=True, trains_input=False) + patches
    released_image = (
        vision.step([num_tokens + num_prompts], num_extra_keys=0, single_query=False, trains_input=True) + patches
    )
    caption = text.step([CAPTION_TOKENS - 1], num_extra_keys=1 + num_prompts, single_query=True, trains_input=False)
    released_caption = text.step([sizes.context_length], num_extra_keys=0, single_query=False, trains_input=True)
    step = cskt_step(sizes, prompts, adapters, [CAPTION_TOKENS] * NUM_PAIRS).total
    released = released_step(sizes, prompts, adapters, NUM_PAIRS).total
    print(f"ViT-B/16, {sizes.image_height} x {sizes.image_width}, captions of {CAPTION_TOKENS} tokens")
    for name, ours, theirs, unit, scale in (
        ("encode an image", image.forward, released_image.forward, "GFLOP", 1e9),
        ("encode a caption", caption.forward, released_caption.forward, "GFLOP", 1e9),
        (f"training step of {NUM_PAIRS} pairs", step, released, "TFLOP", 1e12),
    ):
        print(f"{name:32}{ours / scale:7.2f} {unit}, released {theirs / scale:7.2f}, {theirs / ours:.2f} x")


if __name__ == "__main__":
    main()
