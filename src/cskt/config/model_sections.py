"""Sections of a config that describe the model: backbone, prompts, adapters, low-rank updates."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from annotated_types import Len
from pydantic import model_validator

from cskt.config.architecture import ClipArchitecture
from cskt.config.types import (
    STRICT,
    Activation,
    ChannelMeans,
    ChannelStds,
    Depth,
    Interpolation,
    Location,
    Positive,
    PositiveReal,
    Real,
    Size,
    WeightsChoice,
)
from cskt.errors import CsktError
from cskt.utils.checked import checked_dataclass

Directions: TypeAlias = Literal["none", "text", "vision", "own", "t2v", "v2t", "both"]
Sides: TypeAlias = Literal["none", "text", "vision", "both"]
LoraTarget: TypeAlias = Literal["query", "key", "value", "out", "fc", "proj"]


@checked_dataclass(STRICT)
class BackboneConfig:
    """CLIP model below the method, and its image size."""

    name: Location = "ViT-B/16"
    """clip-tiny (ships with the package), a published name such as ViT-B/16, a Hugging Face repository, or a path."""
    weights: WeightsChoice = "model"
    """model or ema: which weights are taken from a checkpoint that also holds their moving average."""
    image_height: Size | None = None
    """Height that images are resized to, in pixels; the weight file's own if empty."""
    image_width: Size | None = None
    """Width that images are resized to, in pixels; the weight file's own if empty."""
    stride: Size | None = None
    """Distance between patches in pixels; the weight file's own if empty (the patch size, in published files)."""
    vision_heads: Positive | None = None
    """Attention heads of the vision tower, where the weight file does not say."""
    text_heads: Positive | None = None
    """Attention heads of the text tower, where the weight file does not say."""
    activation: Activation | None = None
    """Non-linearity, where the weight file does not say."""
    image_mean: ChannelMeans | None = None
    """Channel means that images are normalised with; if empty, those of the JSON file beside the weights
    (open_clip_config.json, preprocessor_config.json), else CLIP's."""
    image_std: ChannelStds | None = None
    """Channel standard deviations, likewise."""
    interpolation: Interpolation = "bilinear"
    """Filter that resizes images: bilinear, as in the released codes, or bicubic."""
    architecture: ClipArchitecture | None = None
    """Start from random weights of these sizes instead of loading `name` (how clip-tiny was made)."""


CLIP_SETTINGS = ("activation", "vision_heads", "text_heads", "image_mean", "image_std", "interpolation")
"""Fields of `BackboneConfig` that a file of plain CLIP weights may not state: `settings` of `cskt.load`, and flags."""
CROP_SIZE = (384, 128)
"""Height and width of person crops in pixels, as in every recipe over published weights."""
RECORDED = ("image_height", "image_width", "vision_heads", "text_heads", "activation", "image_mean", "image_std")
"""Fields of `BackboneConfig` that the config of a run holds as they were found in the backbone's files, so that the run
stays the same where a JSON file beside the weights goes or changes."""


@checked_dataclass(STRICT)
class PromptConfig:
    """Learned prompt tokens and their couplings (BPT, CSKT section 2.2)."""

    directions: Directions = "both"
    """none | text, vision: that tower's own | own: both, uncoupled | t2v, v2t: one tower's own and its projection
    into the other | both: all four (BPT)."""
    depth: Depth = 12
    """Blocks, from the first, that receive prompts of their own."""
    length: Size = 4
    """Prompt tokens per tower and block (n_ctx)."""
    init: Literal["words", "random"] = "words"
    """Text prompts of the first block start from the embeddings of `words`, or at random."""
    words: str = "a photo of a person"
    """The sentence whose first `length` tokens start the text prompts when init is words."""
    init_std: PositiveReal = 0.02
    """Standard deviation of random prompts and of the coupling weights."""


@checked_dataclass(STRICT)
class AdapterConfig:
    """Bottleneck adapters beside the MLP of every block (DAT, CSKT section 2.3)."""

    sides: Sides = "both"
    """Towers that carry adapters."""
    reduction: Positive = 8
    """Tower width divided by the bottleneck's width."""
    vision_scale: Real = 0.1
    """Factor s on the output of the vision adapters."""
    text_scale: Real = 4.0
    """Factor s on the output of the text adapters."""
    init: Literal["zero", "normal"] = "zero"
    """zero: the up-projection starts at zero, so the adapter starts silent | normal: N(0, init_std), as released."""
    init_std: PositiveReal = 0.02
    """Standard deviation of the linear weights."""


@checked_dataclass(STRICT)
class LoraConfig:
    """Low-rank updates of the blocks' linear layers (LoRA, Hu et al. 2022, section 4)."""

    sides: Sides = "none"
    """Towers whose blocks carry updates."""
    rank: Size = 4
    """Rank r of an update."""
    alpha: PositiveReal = 8.0
    """An update is scaled by alpha / rank."""
    targets: Annotated[tuple[LoraTarget, ...], Len(min_length=1)] = ("query", "value")
    """Layers that are updated: query, key, value, out (attention); fc, proj (first and second layer of the MLP)."""

    @model_validator(mode="after")
    def _check(self) -> LoraConfig:
        if len(set(self.targets)) < len(self.targets):
            raise CsktError(f"lora.targets {','.join(self.targets)} names a layer twice")
        return self
