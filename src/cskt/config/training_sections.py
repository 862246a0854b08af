"""Sections of a config that describe the training: losses, data, augmentation, optimizer, loop."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import BeforeValidator, SerializerFunctionWrapHandler, model_serializer, model_validator

from cskt.config.types import (
    STRICT,
    DatasetName,
    Fraction,
    Interpolation,
    Location,
    NonNegative,
    NonNegativeReal,
    Plain,
    Positive,
    PositiveReal,
    Range,
    Real,
    Size,
    Whole,
    empty_if_none,
)
from cskt.errors import CsktError
from cskt.utils.checked import checked_dataclass

LOSS_KEYS = {
    "temperature": (
        ("sdm", "temperature"), ("itc", "temperature"), ("tse_sdm", "temperature"), ("tse_itc", "temperature")
    ),
    "margin": (("triplet", "margin"),),
    "tal_temperature": (
        ("tal", "temperature"), ("trl", "temperature"), ("tse_tal", "temperature"), ("tse_trl", "temperature")
    ),
    "tal_margin": (("tal", "margin"), ("trl", "margin"), ("tse_tal", "margin"), ("tse_trl", "margin")),
    "sdm_other_image": (("sdm", "other_image"), ("tse_sdm", "other_image")),
    "soft_share": (("nitc", "soft_share"),),
    "soft_ramp_epochs": (("nitc", "ramp_epochs"),),
    "nitc_view": (("nitc", "second_view"),),
    "ritc_epsilon": (("ritc", "epsilon"),),
    "citc_within": (("citc", "within"),),
    "citc_across": (("citc", "across"),),
    "simclr_temperature": (("simclr", "temperature"),),
    "simclr_width": (("simclr", "width"),),
    "simclr_views": (("simclr", "view_pair"),),
}  # fmt: skip
"""Key of the section `loss` -> the losses that it is for, with the field of each. `loss.<name>.<field>` sets a field of
one loss alone, and counts before these keys."""


@checked_dataclass(STRICT)
class LossConfig:
    """Losses and their constants."""

    weights: Annotated[dict[str, NonNegativeReal], Len(min_length=1)] = dataclasses.field(
        default_factory=lambda: {"sdm": 1.0}
    )
    """Weight by name: sdm, itc, cmpm, id, mlm, triplet, tal, trl, nitc, ritc, citc, simclr, tse_tal and the like (of
    the part tse), or a loss of a plug-in."""
    temperature: PositiveReal = 0.02
    """Temperature of sdm and itc, also of those of tse; similarities are divided by it."""
    margin: NonNegativeReal = 1.0
    """Margin of triplet, a Euclidean distance."""
    tal_temperature: PositiveReal = 0.015
    """Temperature of tal and trl, also of those of tse (RDE, Qin et al. 2024)."""
    tal_margin: NonNegativeReal = 0.1
    """Margin of tal and trl, a cosine."""
    sdm_other_image: Fraction = 1.0
    """Share of a caption's image that other images of its person get in the targets of sdm (label smoothing by image,
    an option of IRRA's released code, there 0.3); 1 treats them alike."""
    logit_scale: PositiveReal = 100.0
    """Factor of the similarities in nitc and ritc, a parameter that is trained, before the first step."""
    max_logit_scale: PositiveReal = 100.0
    """Limit of that factor; beyond it the parameter still learns, as in the released code of TBPS-CLIP."""
    soft_share: Fraction = 0.5
    """Share of the model's own similarities in the targets of nitc; the rest are identities."""
    soft_ramp_epochs: NonNegativeReal = 1.0
    """Epochs over which that share rises from 0."""
    nitc_view: str = ""
    """Further view of the images (augment.views) that nitc compares with the captions too; none if empty."""
    ritc_epsilon: PositiveReal = 0.01
    """Added to the labels of ritc, inside the logarithm."""
    citc_within: NonNegativeReal = 0.25
    """Weight in citc of the similarities of images among each other, and of captions."""
    citc_across: NonNegativeReal = 0.25
    """Weight in citc of the similarities of images with captions."""
    simclr_temperature: PositiveReal = 0.1
    """Temperature of simclr."""
    simclr_width: Size = 128
    """Width of the hidden layer of simclr's MLP."""
    simclr_views: tuple[str, str] = ("simclr_1", "simclr_2")
    """The two views of the images (augment.views) that simclr compares."""
    constants: dict[str, dict[str, Plain]] = dataclasses.field(default_factory=dict)
    """Constants of single losses, which a file holds as `loss.<name>.<field>`."""

    def constants_of(self, name: str) -> dict[str, Any]:
        """Return the constants that are set for a loss, by field."""
        shared = {
            field: getattr(self, key) for key, users in LOSS_KEYS.items() for loss, field in users if loss == name
        }
        return {**shared, **self.constants.get(name, {})}

    @model_validator(mode="before")
    @classmethod
    def _gather_constants(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        known = {field.name for field in dataclasses.fields(cls)}
        found = {key: value for key, value in content.items() if key not in known and isinstance(value, dict)}
        rest = {key: value for key, value in content.items() if key not in found}
        return {**rest, "constants": {**rest.get("constants", {}), **found}} if found else rest

    @model_serializer(mode="wrap")
    def _spread_constants(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = dump(self)
        constants = written.pop("constants")
        return {**written, **constants}


@checked_dataclass(STRICT)
class MlmConfig:
    """Masked language modelling through a cross-modal interaction encoder (IRRA section 3.2); only the loss mlm
    needs it, and only in training."""

    cmt_depth: Positive = 4
    """Blocks of the interaction encoder after its cross-attention."""
    mask_probability: Annotated[Real, Gt(0), Le(1)] = 0.15
    """Probability that a word token must be predicted: 80 % of those become the mask token, 10 % a random one, 10 %
    stay."""
    masked_for_all: bool = False
    """The other losses see the masked captions too, as in the released code; otherwise captions are encoded twice."""
    without_loss: bool = False
    """Captions are masked for the other losses where the loss mlm is not among them, as the released --MLM does."""


@checked_dataclass(STRICT)
class MixedDataset:
    """A further data set of a training."""

    root: Location = "data"
    """Folder that holds the data set's folder, or that folder itself."""
    dataset: DatasetName | None = None
    """Name of the data set; that of data.dataset if empty."""
    weight: PositiveReal = 1.0
    """Times that each of its pairs is in an epoch: 0.5, every other pair; 2, each pair twice."""


@checked_dataclass(STRICT)
class DataConfig:
    """Training pairs and how batches are drawn from them."""

    dataset: DatasetName = "cuhk-pedes"
    """cuhk-pedes, icfg-pedes, rstpreid or jsonl."""
    root: Location = "data"
    """Folder that holds the data set's folder (CUHK-PEDES, ICFG-PEDES, RSTPReid), or that folder itself."""
    select_on: Literal["val", "test", "train"] = "val"
    """Split that picks the best epoch; test is the published protocol, and train is for data with too few people to
    hold some out. Both mark every result."""
    holdout_fraction: Annotated[Real, Gt(0), Le(0.5)] = 0.1
    """Share of the training identities held out as val where a data set has none."""
    holdout_seed: Whole = 0
    """Seed of that choice."""
    batch_size: Positive = 128
    """Image-caption pairs per step."""
    eval_batch_size: Positive = 128
    """Images or captions encoded at once in evaluation."""
    sampler: Literal["random", "identity", "identity-released"] = "random"
    """random: every pair once per epoch | identity: `instances` pairs of each of batch_size / instances people, all
    people about equally often, as many steps as random | identity-released: the same batches as the released
    programs draw, with fewer steps per epoch: an epoch ends when too few people have pairs left."""
    drop_last: bool = False
    """Leave out the last batch of an epoch of the sampler random if it is short."""
    instances: Positive = 4
    """Pairs of one identity in a batch of the identity samplers."""
    caption_length: Annotated[Whole, Ge(3)] = 77
    """Most tokens of a caption, start and end included; longer ones lose words before the end token."""
    clean_captions: bool = False
    """Take punctuation out of captions, and keep their first 77 words, in training, evaluation and query, as in the
    released code of TBPS-CLIP."""
    num_workers: NonNegative = 4
    """Threads that decode images; 0 decodes in the calling thread."""
    eval_interpolation: Interpolation | None = None
    """Filter that resizes images in evaluation and search; if empty, that of backbone.interpolation."""
    apply_orientation: bool = False
    """Turn images as their EXIF orientation says, in training, evaluation and query; the released codes do not, and
    galleries always do."""
    cache_images: bool = False
    """Keep the resized uint8 images in memory."""
    cache_dir: Location | None = None
    """Folder of a memory-mapped cache of the resized images, shared by runs; none keeps none."""
    train_fraction: Annotated[Real, Gt(0), Le(1)] = 1.0
    """Share of the training identities that is used (small-data studies)."""
    noise_rate: Annotated[Real, Ge(0), Le(1)] = 0.0
    """Share of the training captions that change places with each other, drawn with the seed, to measure how a method
    tolerates wrong pairs (RDE, Qin et al. 2024: 0.2, 0.5, 0.8)."""
    noise_file: Location | None = None
    """File of such a noise in RDE's format, .npy: number i is the caption that replaces training caption i."""
    captions_per_image: Positive = 1
    """Captions of an image in one step, with the image encoded once; batch_size still counts pairs."""
    templates: Annotated[tuple[str, ...], Len(min_length=1)] = ("{}",)
    """Sentences around a caption in evaluation and search, `{}` being the caption; features of several are averaged
    (CLIP, Radford et al. 2021, section 3.1.4). Training sees the captions as they are."""
    mix: tuple[MixedDataset, ...] = ()
    """Further data sets to train on, their identities kept apart: [{dataset: jsonl, root: DIR, weight: 0.5}, ...]. The
    data set of data.root selects the best epoch; the others are evaluated beside it."""
    mix_batches: Literal["all", "one"] = "all"
    """all: a batch has pairs of all data sets | one: of a single one."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        for template in self.templates:
            if template.count("{}") != 1:
                raise CsktError(f"data.templates '{template}' must hold {{}} once, where the caption goes")
        if self.noise_rate and self.noise_file is not None:
            raise CsktError("data.noise_rate and data.noise_file both replace captions; give one of them")
        if self.mix and (self.noise_rate or self.noise_file is not None):
            raise CsktError(
                "data.noise_rate, data.noise_file: only a training on one data set can have noise; leave out data.mix"
            )
        if self.batch_size % self.captions_per_image:
            raise CsktError(
                f"data.batch_size {self.batch_size} is not divisible by data.captions_per_image"
                f" {self.captions_per_image}"
            )
        return self


Operations: TypeAlias = dict[str, Annotated[dict[str, Plain], BeforeValidator(empty_if_none)]]
"""Operations on images by name, in their order, with the fields of each."""


@checked_dataclass(STRICT)
class ViewConfig:
    """A further augmented view of the images of a batch, which a loss compares with others."""

    ops: Operations = dataclasses.field(default_factory=dict)
    """As `augment.ops`; if empty, the view is made as the first one is."""
    draws: NonNegative = 0
    """As `augment.draws`."""


@checked_dataclass(STRICT)
class AugmentConfig:
    """Augmentation of images as in the released code; augmentation of captions is off by default, as there."""

    flip_probability: Fraction = 0.5
    """Chance of a horizontal flip."""
    pad_pixels: NonNegative = 10
    """Zeros added on each side before a random crop back to size; 0 for no crop."""
    erase_probability: Fraction = 0.5
    """Chance that a rectangle is overwritten with CLIP's channel means after normalising."""
    erase_area: Range = (0.02, 0.4)
    """Area of that rectangle as a share of the image, smallest and largest."""
    erase_ratio: Range = (0.3, 3.3)
    """Height / width of that rectangle, smallest and largest."""
    caption_mask_probability: Fraction = 0.0
    """Chance of a word token to become the mask token (as IRRA's in-place masking does to its other losses)."""
    caption_drop_probability: Fraction = 0.0
    """Chance of a word token to be left out (random deletion, EDA, Wei and Zou 2019); one always stays."""
    caption_change_probability: Fraction = 0.0
    """Chance of a word token to be changed as in RDE: of these 60 % become the mask token, 20 % a random one, and 20 %
    are left out."""
    back_translation_probability: Fraction = 0.0
    """Chance of a caption to be replaced by its back-translation (`captions_bt` in the annotation), if it has one."""
    word_drop_probability: Fraction = 0.0
    """Chance of a word between spaces to be left out, before the caption is encoded and cut; one always stays."""
    ops: Operations = dataclasses.field(default_factory=dict)
    """Operations on images instead of the flip, crop and erasing above, applied before normalising: {flip: {}, jitter:
    {brightness: 0.1}, ...} of flip, grey, rotate, resized_crop, jitter, blur, erase, and those of plug-ins."""
    draws: NonNegative = 0
    """So many of these operations for each image, drawn with replacement; 0: all, in their order."""
    views: dict[str, Annotated[ViewConfig, BeforeValidator(empty_if_none)]] = dataclasses.field(default_factory=dict)
    """Further views of the images by name, each with ops and draws, for losses that ask for one."""
    text_attention_dropout: Annotated[Real, Ge(0), Lt(1)] = 0.0
    """Chance of an attention weight of the text tower to be dropped."""

    def view(self, name: str) -> AugmentConfig:
        """Return the augmentation of a further view of the images."""
        view = self.views[name]
        return dataclasses.replace(self, ops=view.ops, draws=view.draws) if view.ops else self

    @model_validator(mode="after")
    def _check(self) -> AugmentConfig:
        if not 0 < self.erase_area[0] <= self.erase_area[1] <= 1:
            raise CsktError(f"erase_area {self.erase_area} is not a range within (0, 1]")
        if not 0 < self.erase_ratio[0] <= self.erase_ratio[1]:
            raise CsktError(f"erase_ratio {self.erase_ratio} is not a range above 0")
        if without := next((f"views.{name}." for name, view in self.views.items() if view.draws and not view.ops), ""):
            raise CsktError(f"augment.{without}draws is set without operations to draw from; set augment.{without}ops")
        if self.draws and not self.ops:
            raise CsktError("augment.draws is set without operations to draw from; set augment.ops")
        return self


@checked_dataclass(STRICT)
class OptimConfig:
    """Optimizer and learning-rate schedule; the defaults are those of the `cskt` recipe."""

    name: Literal["adam", "adamw", "sgd"] = "adamw"
    """Optimiser; adam adds the decay to the gradient (L2), adamw decouples it."""
    lr: PositiveReal = 3e-4
    """Base learning rate."""
    beta1: Annotated[Real, Ge(0), Lt(1)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[Real, Ge(0), Lt(1)] = 0.999
    """Decay of the second moment."""
    eps: PositiveReal = 1e-8
    """Added to the denominator of Adam's step."""
    momentum: Fraction = 0.9
    """Momentum of sgd."""
    weight_decay: NonNegativeReal = 4e-5
    """Weight decay."""
    bias_lr_factor: PositiveReal = 2.0
    """Rate of parameters whose name contains `bias`, relative to lr."""
    weight_decay_bias: NonNegativeReal = 0.0
    """Weight decay of parameters whose name contains `bias`."""
    weight_decay_vectors: NonNegativeReal | None = None
    """Weight decay of other parameters with fewer than two dimensions (norms, scales); if empty, weight_decay."""
    head_lr_factor: PositiveReal = 5.0
    """Rate of `cross*`, `classifier` and `mlm_head` parameters, and of embedding heads, relative to lr."""
    layer_decay: Annotated[Real, Gt(0), Le(1)] = 1.0
    """Rate of a tower's block relative to the block above it (layer-wise rate decay, ELECTRA, Clark et al. 2020)."""
    ema_decay: Annotated[Real, Gt(0), Lt(1)] | None = None
    """Decay per step of a moving average of the trained weights, which is then evaluated and saved (Polyak and Juditsky
    1992); none for no average. At step t it is min(ema_decay, (1 + t) / (10 + t)): at 0.999 the ramp rules the first
    9,000 steps."""
    clip_grad_norm: PositiveReal | None = None
    """Largest gradient norm; none for no clipping."""
    schedule: Literal["cosine", "step", "exp", "linear", "poly", "poly-released"] = "cosine"
    """Shape of the rate after warm-up; poly-released rises again, as the released code does."""
    milestones: tuple[NonNegative, ...] = (20, 50)
    """Epochs after which `step` multiplies the rate by gamma."""
    gamma: PositiveReal = 0.1
    """Factor of `step`."""
    target_lr: NonNegativeReal = 0.0
    """Rate at the end of cosine, poly and poly-released."""
    power: PositiveReal = 0.9
    """Exponent of poly; base of exp and of poly-released, as released."""
    warmup_epochs: NonNegative = 5
    """Epochs of warm-up."""
    warmup_factor: Fraction = 0.1
    """Share of the rate that warm-up starts from."""
    warmup_method: Literal["linear", "constant"] = "linear"
    """Rise linearly, or stay at warmup_factor, during warm-up."""
    schedule_period: Literal["epoch", "step"] = "epoch"
    """epoch: the rate is constant within an epoch, as in the released CSKT and IRRA | step: it changes at every step,
    and warm-up reaches lr in its last step."""


@checked_dataclass(STRICT)
class LoopConfig:
    """Length of the training, memory, and saved files."""

    num_epochs: Positive = 60
    """Passes over the training pairs."""
    stop_after_epochs: Positive | None = None
    """Stop when so many epochs of the run are done, the last one evaluated, with the schedule of `num_epochs`
    unchanged. `cskt train --resume` continues past it, to the end or to a later stop that is given then."""
    eval_period_epochs: Positive = 1
    """Epochs between evaluations."""
    log_period_steps: Positive = 20
    """Steps between lines in metrics.jsonl."""
    loggers: tuple[str, ...] = ("tensorboard",)
    """Receivers of the events of metrics.jsonl: tensorboard, wandb (Weights & Biases), mlflow, or a logger
    of a plug-in. A logger that fails warns once and never ends a training."""
    save_period_steps: NonNegative = 0
    """Steps between mid-epoch saves of last.pt; 0 saves at the end of each epoch only."""
    accumulate_steps: Positive = 1
    """Batches whose gradients are summed before a step; each batch keeps its own contrastive loss."""
    micro_batch_size: Positive | None = None
    """Pairs that pass the model at once, where a batch does not fit the memory; the losses still see the whole batch
    (cached features, Gao et al. 2021), and its features are computed twice. None for the whole batch at once."""
    fit: bool = False
    """Find the largest micro_batch_size that the device's memory holds."""
    compile: bool = False
    """Compile the blocks with torch.compile; on a CPU that takes a C++ compiler."""
    checkpoint_activations: bool = False
    """Recompute the blocks in the backward pass: less memory, more time."""
    keep_last_epoch: bool = False
    """Write the weights of the last epoch too, as last.safetensors; a run with noise (data.noise_rate) always does."""
    evaluate_before: bool = True
    """Evaluate before the first step (the step-0 figure)."""
    patience_epochs: Positive | None = None
    """Stop when no epoch has been better on the selection split for so many epochs; none trains to the end."""

    @model_validator(mode="after")
    def _check(self) -> LoopConfig:
        if len(set(self.loggers)) < len(self.loggers):
            raise CsktError(f"loop.loggers {','.join(self.loggers)} names a logger twice")
        return self
