"""Sizes of a CLIP model, and the normalisation of its images."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from cskt.config.types import STRICT, Activation, ChannelMeans, ChannelStds, Depth, Size, Whole
from cskt.errors import CsktError
from cskt.utils.checked import checked_dataclass

HEAD_WIDTH = 64
"""Width of an attention head in every CLIP of OpenAI's, and in IRRA's interaction encoder."""
VOCAB_SIZE = 49_408
"""Tokens of CLIP's vocabulary, start and end included."""
MIN_VOCAB_SIZE = 514
"""Tokens of CLIP's vocabulary without any merge: bytes, bytes that end a word, start and end."""
CLIP_MEAN: ChannelMeans = (0.48145466, 0.4578275, 0.40821073)
"""Channel means that OpenAI's CLIP was trained with, of RGB in [0, 1]."""
CLIP_STD: ChannelStds = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations, likewise."""


@checked_dataclass(STRICT)
class ClipArchitecture:
    """Sizes of a two-tower CLIP with a vision transformer. Defaults are ViT-B/16 at 224 x 224 (Radford et al. 2021)."""

    embed_dim: Size = 512
    """Width D of the shared embedding."""
    image_height: Size = 224
    """Height of the images that the vision tower takes, in pixels."""
    image_width: Size = 224
    """Width of the images that the vision tower takes, in pixels."""
    patch_size: Size = 16
    """Side of a square patch, in pixels."""
    stride: Size = 16
    """Distance between neighbouring patches, in pixels; smaller than patch_size makes patches overlap."""
    vision_width: Size = 768
    """Width of the vision tower's tokens."""
    vision_layers: Depth = 12
    """Blocks of the vision tower."""
    vision_heads: Size = 12
    """Attention heads of the vision tower."""
    text_width: Size = 512
    """Width of the text tower's tokens."""
    text_layers: Depth = 12
    """Blocks of the text tower."""
    text_heads: Size = 8
    """Attention heads of the text tower."""
    context_length: Size = 77
    """Most tokens that a caption may have, start, end and prompts included."""
    vocab_size: Annotated[Whole, Ge(3), Le(10_000_000)] = VOCAB_SIZE
    """Rows of the token embedding; the last two are the start and the end token."""
    activation: Activation = "quick_gelu"
    """Non-linearity of the blocks."""
    image_mean: ChannelMeans = CLIP_MEAN
    """Channel means that are subtracted from the images, whose pixels are in [0, 1]."""
    image_std: ChannelStds = CLIP_STD
    """Channel standard deviations that the images are divided by."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (
            (self.image_height - self.patch_size) // self.stride + 1,
            (self.image_width - self.patch_size) // self.stride + 1,
        )

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A normalisation like CLIP's is not written: files and fingerprints stay as they were before these fields.
        written: dict[str, Any] = dump(self)
        for key, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
            if getattr(self, key) == default:
                del written[key]
        return written

    @model_validator(mode="after")
    def _check(self) -> ClipArchitecture:
        for side in ("vision", "text"):
            width, heads = getattr(self, f"{side}_width"), getattr(self, f"{side}_heads")
            if width % heads:
                raise CsktError(f"{side}_width {width} is not divisible by {side}_heads {heads}")
        if min(self.image_height, self.image_width) < self.patch_size:
            raise CsktError(f"an image of {self.image_height} x {self.image_width} holds no patch of {self.patch_size}")
        return self
