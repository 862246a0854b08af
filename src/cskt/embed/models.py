"""Models by recipe, and encoders from whatever holds a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cskt.config import BackboneConfig, ClipArchitecture, RunConfig, as_trained, evaluation_interpolation, validate
from cskt.config.types import Interpolation, WeightsChoice
from cskt.data.tokenizer import END_ID, Tokenizer
from cskt.device import pick_device, pick_precision
from cskt.embed.encoder import PLAIN, Encoder
from cskt.embed.exported import is_exported, load_exported
from cskt.errors import CsktError, MissingBackboneError, out_of_memory_errors
from cskt.model.dual_encoder import NO_ADAPTERS, NO_PROMPTS, DualEncoder
from cskt.model.io import files
from cskt.model.io.cache import CLIP_TINY
from cskt.model.io.released import reader as released
from cskt.model.io.weights import assume_openai, load_backbone, load_state

RUN_WEIGHTS = "best.safetensors"
CROP_SIZE = (384, 128)
"""Height and width of person crops in pixels, as every recipe over published weights has them."""
SETTINGS = ("activation", "vision_heads", "text_heads", "image_mean", "image_std", "interpolation")
"""Fields of `BackboneConfig` that `load` takes for plain CLIP weights."""
WHOLE = ("",)
"""Every tensor of a model, as a prefix of their names."""


@dataclass(frozen=True)
class Built:
    """A model ready to train, with what a checkpoint must remember of its origin."""

    model: DualEncoder
    tokenizer: Tokenizer
    backbone_name: str
    backbone_sha256: str
    """Of the weight file; empty for random weights."""


def build(config: RunConfig) -> Built:
    """The model of a recipe: backbone loaded (or random), method's parameters freshly drawn by `config.seed`.

    Raises:
        CsktError: the backbone cannot be found or read, or the method does not fit it.
    """
    generator = torch.Generator().manual_seed(config.seed)
    backbone = None if config.backbone.architecture else load_backbone(config.backbone)
    architecture = backbone.architecture if backbone else _random_architecture(config.backbone)
    model = DualEncoder(architecture, config.prompts, config.adapters, config.lora, config.trainable)
    tokenizer = tokenizer_for(model, config.data.caption_length, backbone.known_token_ids if backbone else None)
    if backbone:
        load_state(model, backbone.state, origin=backbone.name)
    else:
        model.initialise_backbone(generator)
    words = torch.tensor(tokenizer.encode(config.prompts.words)[: config.prompts.length])
    model.initialise_added(generator, words if config.prompts.init == "words" and len(words) else None)
    return Built(
        model,
        tokenizer,
        backbone.name if backbone else "random",
        backbone.sha256 if backbone else "",
    )


def _random_architecture(config: BackboneConfig) -> ClipArchitecture:
    assert config.architecture is not None
    sizes = config.architecture
    return dataclasses.replace(
        sizes, image_mean=config.image_mean or sizes.image_mean, image_std=config.image_std or sizes.image_std
    )


@out_of_memory_errors()
def load(
    path: str | Path,
    backbone: str | Path | None = None,
    device: str | torch.device | None = None,
    *,
    precision: str | None = None,
    templates: Sequence[str] | None = None,
    image_height: int | None = None,
    image_width: int | None = None,
    stride: int | None = None,
    weights: WeightsChoice = "model",
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 128,
    num_workers: int = 4,
    cache_dir: Path | None = None,
    compile: bool = False,
    show_progress: bool = False,
) -> Encoder:
    """An `Encoder` from whatever holds a model.

    Args:
        path: a run folder or its best.safetensors; a file written by `cskt export --merge` or a folder by `cskt export
            --format`; a released CSKT folder (configs.yaml + best.pth); a CLIP weight file, folder, published name, or
            `clip-tiny`.
        backbone: where the CLIP weights of an adapter-only run lie, if not where its config says.
        device: cpu, cuda, mps; the best one here if empty.
        precision: fp32, bf16 or fp16; as the run was trained if empty, fp32 for plain CLIP. `auto` is that too, but
            on a CPU that multiplies bfloat16 by itself it is bf16: faster, with cosines above 0.999 to the exact ones.
        templates: see `Encoder`; the run's own if empty.
        image_height, image_width, stride: of plain CLIP weights, in pixels. If empty, 384 x 128 as all recipes for
            person crops; a backbone file of our own keeps the size that it was made for.
        weights: `model` or `ema`, of a checkpoint that also holds the moving average of its weights.
        settings: of plain CLIP weights, what their file does not state: other fields of `BackboneConfig` (activation,
            vision_heads, text_heads, image_mean, image_std, interpolation).
        batch_size, num_workers, cache_dir, compile, show_progress: see `Encoder`.

    Raises:
        CsktError: nothing there that can be read, or weights over another backbone than they were trained on.
    """
    place = Path(path)
    is_run = (place / RUN_WEIGHTS).is_file() or (place / "config.yaml").is_file()
    is_released = not is_run and (place / "configs.yaml").is_file()
    is_method = not is_run and not is_released and _own_kind(place) == "method"
    if weights == "ema" and (is_run or is_method or is_exported(place)):
        raise CsktError(f"{place}: a trained run has one set of weights; leave out --weights ema")
    if settings and (is_run or is_released or is_method or is_exported(place)):
        raise CsktError(
            f"{place}: no plain CLIP weights, its {', '.join(settings)} is fixed; leave out"
            f" --{min(settings).replace('_', '-')}"
        )
    if is_exported(place):
        if compile or backbone or image_height or image_width or stride:
            raise CsktError(f"{place}: an exported model is whole; leave out --compile, --backbone and image sizes")
        return load_exported(
            place,
            device,
            precision=precision,
            templates=templates,
            batch_size=batch_size,
            num_workers=num_workers,
            cache_dir=cache_dir,
            show_progress=show_progress,
        )
    if is_run:
        loaded = _load_run(place / RUN_WEIGHTS, backbone)
    elif is_released:
        loaded = _load_released(place, weights)
    elif is_method:
        loaded = _load_run(place, backbone)
    else:
        sizes = {"image_height": image_height, "image_width": image_width, "stride": stride}
        asked = {**check_settings(settings or {}), "name": str(path), "weights": weights, **sizes}
        loaded = _load_backbone(validate(BackboneConfig, asked, str(path)))
    place_to_compute = pick_device(device)
    return Encoder(
        loaded.model,
        loaded.tokenizer,
        device=place_to_compute,
        precision=pick_precision(precision or loaded.precision, place_to_compute, exact=loaded.precision),
        templates=templates or loaded.templates,
        interpolation=loaded.interpolation,
        apply_orientation=loaded.apply_orientation,
        batch_size=batch_size,
        num_workers=num_workers,
        cache_dir=cache_dir,
        compile=compile,
        show_progress=show_progress,
    )


def check_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check that the settings of plain CLIP weights are those that `load` takes.

    Raises:
        CsktError: another one is among them.
    """
    if unknown := settings.keys() - set(SETTINGS):
        raise CsktError(f"settings: '{str(min(unknown))[:80]}' is not known; known: {', '.join(SETTINGS)}")
    return settings


def _own_kind(path: Path) -> str | None:
    """`method` or `backbone` for a file of our own format; none for anything else."""
    return files.kind_of(path) if path.suffix == ".safetensors" and path.is_file() else None


class Loaded(NamedTuple):
    """A model as some file holds it."""

    model: DualEncoder
    tokenizer: Tokenizer
    precision: str = "fp32"
    templates: tuple[str, ...] = PLAIN
    interpolation: Interpolation = "bilinear"
    apply_orientation: bool = False


def _load_run(path: Path, backbone: str | Path | None) -> Loaded:
    if not path.is_file():
        raise CsktError(f"{path}: no such file; the run has not completed an evaluation yet")
    file = files.read_method(path)
    config = as_trained(validate(RunConfig, file.config, f"{path}: config"))
    architecture, state, known_token_ids = file.architecture, file.tensors, file.known_token_ids
    if architecture is None:
        source = dataclasses.replace(config.backbone, name=str(backbone or config.backbone.name))
        try:
            if source.activation is None:  # a run of version 0.1, which did not record it
                source = assume_openai(source, sha256=file.backbone_sha256, archives_only=True)
            carrier = load_backbone(source, sha256=file.backbone_sha256)
        except ValueError as error:
            raise MissingBackboneError(
                f"{path}: trained over {file.backbone_name} with SHA-256 {file.backbone_sha256}; give that file with"
                f" backbone= (--backbone): {error}"
            ) from None
        architecture, known_token_ids = carrier.architecture, carrier.known_token_ids
        state = carrier.state | state
    try:
        with torch.device("meta"):  # load_state brings the memory
            model = DualEncoder(architecture, config.prompts, config.adapters, config.lora, trainable="none")
    except ValueError as error:
        raise CsktError(f"{path}: {error}") from None
    load_state(model, state, origin=str(path), prefixes=WHOLE)
    tokenizer = tokenizer_for(model, config.data.caption_length, known_token_ids)
    return Loaded(
        model,
        tokenizer,
        config.precision,
        config.data.templates,
        evaluation_interpolation(config),
        config.data.apply_orientation,
    )


def _load_released(folder: Path, choice: WeightsChoice) -> Loaded:
    found = released.read_released(folder, choice)
    with torch.device("meta"):  # load_state brings the memory
        model = DualEncoder(found.architecture, found.config.prompts, found.config.adapters, trainable="none")
    load_state(model, found.state, origin=str(folder), prefixes=WHOLE)
    return Loaded(model, tokenizer_for(model, found.config.data.caption_length, None))


def _load_backbone(config: BackboneConfig) -> Loaded:
    if config.name != CLIP_TINY and _own_kind(Path(config.name)) is None:
        height, width = config.image_height or CROP_SIZE[0], config.image_width or CROP_SIZE[1]
        config = dataclasses.replace(config, image_height=height, image_width=width)
    backbone = load_backbone(config)
    with torch.device("meta"):  # load_state brings the memory
        model = DualEncoder(backbone.architecture, NO_PROMPTS, NO_ADAPTERS, trainable="none")
    load_state(model, backbone.state, origin=backbone.name)
    tokenizer = tokenizer_for(model, backbone.architecture.context_length, backbone.known_token_ids)
    return Loaded(model, tokenizer, interpolation=config.interpolation)


def tokenizer_for(model: DualEncoder, caption_length: int, known: frozenset[int] | None) -> Tokenizer:
    """CLIP's tokenizer, cutting captions where the model would: prompts take their share of the context."""
    architecture = model.architecture
    if architecture.vocab_size != END_ID + 1:
        raise CsktError(
            f"the backbone has {architecture.vocab_size} tokens; the tokenizer is CLIP's, with {END_ID + 1}"
        )
    if caption_length > architecture.context_length:
        raise CsktError(
            f"data.caption_length {caption_length} is more than the backbone's {architecture.context_length} positions"
        )
    room = architecture.context_length - model.prompts.num_text_slots
    return Tokenizer(min(caption_length, room), known_ids=known)
