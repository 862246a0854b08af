"""Models by recipe, and encoders from whatever holds a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from cskt.config import BackboneConfig, RunConfig, validate
from cskt.data.tokenizer import END_ID, Tokenizer
from cskt.device import pick_device, pick_precision
from cskt.embed.encoder import PLAIN, Encoder
from cskt.embed.exported import is_exported, load_exported
from cskt.model import files, released, weights
from cskt.model.cache import CLIP_TINY
from cskt.model.dual_encoder import NO_ADAPTERS, NO_PROMPTS, DualEncoder

RUN_WEIGHTS = "best.safetensors"
CROP_SIZE = (384, 128)
"""Height and width of person crops in pixels, as every recipe over published weights has them."""
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
        ValueError: the backbone cannot be found or read, or the method does not fit it.
    """
    generator = torch.Generator().manual_seed(config.seed)
    backbone = None if config.backbone.architecture else weights.load_backbone(config.backbone)
    architecture = backbone.architecture if backbone else config.backbone.architecture
    assert architecture is not None
    model = DualEncoder(architecture, config.prompts, config.adapters, config.lora, config.trainable)
    tokenizer = tokenizer_for(model, config.data.caption_length, backbone.known_token_ids if backbone else None)
    if backbone:
        weights.load_state(model, backbone.state, origin=backbone.name)
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
        batch_size, num_workers, cache_dir, compile, show_progress: see `Encoder`.

    Raises:
        ValueError: nothing there that can be read, or weights over another backbone than they were trained on.
    """
    place = Path(path)
    if is_exported(place):
        if compile or backbone or image_height or image_width or stride:
            raise ValueError(f"{place}: an exported model is whole; leave out --compile, --backbone and image sizes")
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
    if (place / RUN_WEIGHTS).is_file() or (place / "config.yaml").is_file():
        loaded = _load_run(place / RUN_WEIGHTS, backbone)
    elif (place / "configs.yaml").is_file():
        loaded = _load_released(place)
    elif _own_kind(place) == "method":
        loaded = _load_run(place, backbone)
    else:
        asked = BackboneConfig(name=str(path), image_height=image_height, image_width=image_width, stride=stride)
        loaded = _load_backbone(asked)
    place_to_compute = pick_device(device)
    return Encoder(
        loaded.model,
        loaded.tokenizer,
        device=place_to_compute,
        precision=pick_precision(precision or loaded.precision, place_to_compute, exact=loaded.precision),
        templates=templates or loaded.templates,
        batch_size=batch_size,
        num_workers=num_workers,
        cache_dir=cache_dir,
        compile=compile,
        show_progress=show_progress,
    )


def _own_kind(path: Path) -> str | None:
    """`method` or `backbone` for a file of our own format; none for anything else."""
    return files.kind_of(path) if path.suffix == ".safetensors" and path.is_file() else None


class MissingBackboneError(ValueError):
    """The backbone of an adapter-only run is not where its config says, or is another file."""


class Loaded(NamedTuple):
    """A model as some file holds it."""

    model: DualEncoder
    tokenizer: Tokenizer
    precision: str = "fp32"
    templates: tuple[str, ...] = PLAIN


def _load_run(path: Path, backbone: str | Path | None) -> Loaded:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the run has not completed an evaluation yet")
    file = files.read_method(path)
    config = validate(RunConfig, file.config, f"{path}: config")
    architecture, state, known_token_ids = file.architecture, file.tensors, file.known_token_ids
    if architecture is None:
        source = dataclasses.replace(config.backbone, name=str(backbone or config.backbone.name))
        try:
            carrier = weights.load_backbone(source, sha256=file.backbone_sha256)
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
        raise ValueError(f"{path}: {error}") from None
    weights.load_state(model, state, origin=str(path), prefixes=WHOLE)
    tokenizer = tokenizer_for(model, config.data.caption_length, known_token_ids)
    return Loaded(model, tokenizer, config.precision, config.data.templates)


def _load_released(folder: Path) -> Loaded:
    found = released.read_released(folder)
    with torch.device("meta"):  # load_state brings the memory
        model = DualEncoder(found.architecture, found.config.prompts, found.config.adapters, trainable="none")
    weights.load_state(model, found.state, origin=str(folder), prefixes=WHOLE)
    return Loaded(model, tokenizer_for(model, found.config.data.caption_length, None))


def _load_backbone(config: BackboneConfig) -> Loaded:
    if config.name != CLIP_TINY and _own_kind(Path(config.name)) is None:
        height, width = config.image_height or CROP_SIZE[0], config.image_width or CROP_SIZE[1]
        config = dataclasses.replace(config, image_height=height, image_width=width)
    backbone = weights.load_backbone(config)
    with torch.device("meta"):  # load_state brings the memory
        model = DualEncoder(backbone.architecture, NO_PROMPTS, NO_ADAPTERS, trainable="none")
    weights.load_state(model, backbone.state, origin=backbone.name)
    return Loaded(model, tokenizer_for(model, backbone.architecture.context_length, backbone.known_token_ids))


def tokenizer_for(model: DualEncoder, caption_length: int, known: frozenset[int] | None) -> Tokenizer:
    """CLIP's tokenizer, cutting captions where the model would: prompts take their share of the context."""
    architecture = model.architecture
    if architecture.vocab_size != END_ID + 1:
        raise ValueError(
            f"the backbone has {architecture.vocab_size} tokens; the tokenizer is CLIP's, with {END_ID + 1}"
        )
    if caption_length > architecture.context_length:
        raise ValueError(
            f"data.caption_length {caption_length} is more than the backbone's {architecture.context_length} positions"
        )
    room = architecture.context_length - model.prompts.num_text_slots
    return Tokenizer(min(caption_length, room), known_ids=known)
