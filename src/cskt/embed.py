"""`Encoder`: images and sentences to unit vectors. Evaluation, galleries and search all go through it.

Here the model, which knows only tensors, meets the tokenizer and the image reader; and here features are normalised,
once and nowhere else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cskt.config import BackboneConfig, RunConfig, to_dict, validate
from cskt.data.images import Source, normalise
from cskt.data.loading import iter_images
from cskt.data.tokenizer import END_ID, Tokenizer
from cskt.device import DTYPES, exact_convolutions, pick_device, pick_precision
from cskt.model import files, released, weights
from cskt.model.cache import CLIP_TINY
from cskt.model.dual_encoder import NO_ADAPTERS, NO_PROMPTS, DualEncoder
from cskt.model.folded import fold_text, fold_vision
from cskt.progress import bar

PLAIN = ("{}",)
"""The template that leaves a caption as it is."""
RUN_WEIGHTS = "best.safetensors"
CROP_SIZE = (384, 128)
"""Height and width of person crops in pixels, as every recipe over published weights has them."""
WHOLE = ("",)
"""Every tensor of a model, as a prefix of their names."""


class Encoder:
    """A model with its tokenizer and image transform, for inference.

    Args:
        model: weights loaded; moved to `device`.
        tokenizer: of the model's vocabulary and context.
        device: where it computes.
        precision: fp32, bf16 or fp16 arithmetic of the towers, or auto: bf16 on a CPU that multiplies it by itself,
            else fp32. Features come out in float32.
        templates: sentences around every caption, `{}` being the caption; the unit features of several are averaged
            and brought back to length 1.
        batch_size: images or captions computed at once.
        num_workers: threads that decode images.
        cache_dir: folder of a memory-mapped cache of the resized images (`cskt.data.pixel_cache`), for image files.
        compile: compile the towers with torch.compile; on a CPU that takes a C++ compiler.
        show_progress: draw bars on stderr while encoding.

    Each tower is folded (`cskt.model.folded`) when it is first needed: what happens to the model's weights afterwards
    is seen by a new Encoder only.

    Raises:
        ValueError: an unknown precision, a batch size below 1, a negative number of threads, or a template without its
            place for the caption.
    """

    def __init__(
        self,
        model: DualEncoder,
        tokenizer: Tokenizer,
        *,
        device: torch.device | None = None,
        precision: str = "fp32",
        templates: Sequence[str] = PLAIN,
        batch_size: int = 128,
        num_workers: int = 4,
        cache_dir: Path | None = None,
        compile: bool = False,
        show_progress: bool = False,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch size {batch_size}, {num_workers} threads: give at least 1 and at least 0")
        if isinstance(templates, str) or not all(template.count("{}") == 1 for template in templates):
            raise ValueError("templates is a list of sentences that hold {} once, where the caption goes")
        self.device = device or pick_device()
        self.model = model.to(self.device)
        self.tokenizer = tokenizer
        self.precision = pick_precision(precision, self.device)
        self.templates = tuple(templates)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self.compile = compile
        self.show_progress = show_progress

    @cached_property
    def _vision(self) -> Callable[[Tensor], Tensor]:
        return self._ready(fold_vision(self.model, self._dtype))

    @cached_property
    def _text(self) -> Callable[[Tensor], Tensor]:
        return self._ready(fold_text(self.model, self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        return DTYPES.get(self.precision, torch.float32)

    def _ready(self, tower: nn.Module) -> Callable[[Tensor], Tensor]:
        return torch.compile(tower) if self.compile else tower

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that features depend on: weights, sizes, vocabulary, templates.

        Vectors of encoders with one fingerprint can be compared; precision and device only round them.
        """
        digest = hashlib.sha256()
        reading = [self.tokenizer.context_length, sorted(self.tokenizer.known_ids or ()), self.templates]
        digest.update(json.dumps([to_dict(self.model.architecture), reading]).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def encode_image(self, images: Tensor | Sequence[Source | str]) -> Tensor:
        """Unit vectors of images.

        Args:
            images: [B, 3, H, W] float normalised as CLIP does; or paths, PIL images and bytes of image files, of any
                size.

        Returns:
            [B, D] float32 on the CPU, rows of length 1.

        Raises:
            ValueError: an image that cannot be read (names it) or pixels that do not fit the model.
        """
        size = self.model.architecture.image_height, self.model.architecture.image_width
        if isinstance(images, str | bytes | Path | Image.Image):
            raise ValueError("images is a single one; pass a list: [image]")
        if not isinstance(images, Tensor):
            sources = [Path(image) if isinstance(image, str) else image for image in images]
            batches = iter_images(sources, *size, self.batch_size, self.num_workers, cache_dir=self.cache_dir)
            return self._encode_batches(self._encode_pixels, batches, len(sources))
        if images.ndim != 4 or images.shape[1:] != (3, *size):
            raise ValueError(f"expected images [B, 3, {size[0]}, {size[1]}], found {list(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"expected float images normalised as CLIP does, found {images.dtype}")
        batches = (batch.float() for batch in torch.split(images, self.batch_size))
        return self._encode_batches(self._encode_normalised, batches, len(images))

    def encode_text(self, captions: Sequence[str] | Tensor) -> Tensor:
        """Unit vectors of sentences.

        Args:
            captions: sentences, or caption ids [B, L] with start and end tokens and without prompt slots, to which
                no template applies.

        Returns:
            [B, D] float32 on the CPU, rows of length 1.

        Raises:
            ValueError: a single string, or ids of another shape or type, or without an end token.
        """
        if isinstance(captions, Tensor):
            _check_ids(captions, self.model.architecture.vocab_size)
            return self._encode_ids(captions.cpu())
        if self.templates == PLAIN:
            return self._encode_ids(self.tokenizer(captions))
        if isinstance(captions, str):
            raise ValueError("captions is one string; pass a list of strings")
        views = [
            self._encode_ids(self.tokenizer([template.replace("{}", caption) for caption in captions]))
            for template in self.templates
        ]
        return F.normalize(torch.stack(views).mean(dim=0), dim=-1)

    def _encode_ids(self, caption_ids: Tensor) -> Tensor:
        lengths = caption_ids.argmax(dim=1) + 1  # the end token has the largest id
        # Captions of like length share a batch: nothing after the end token is computed for nothing.
        order = lengths.argsort(stable=True)
        features = torch.empty(len(caption_ids), self.model.architecture.embed_dim)
        with bar("captions", len(order), shown=self.show_progress) as advance:
            for rows in torch.split(order, self.batch_size) if len(order) else ():
                batch = caption_ids[rows, : int(lengths[rows].max())]
                features[rows] = self._encode_caption_ids(batch)
                advance(len(rows))
        return features

    def _encode_batches(self, encode: Callable[[Tensor], Tensor], batches: Iterable[Tensor], count: int) -> Tensor:
        features = [torch.empty(0, self.model.architecture.embed_dim)]
        with bar("images", count, shown=self.show_progress) as advance:
            for batch in batches:
                features.append(encode(batch))
                advance(len(batch))
        return torch.cat(features)

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """[b, 3, H, W] uint8 -> [b, D] float32 unit rows on the CPU."""
        return self._encode_normalised(normalise(pixels.to(self.device)))

    def _encode_normalised(self, images: Tensor) -> Tensor:
        """[b, 3, H, W] float32 -> likewise."""
        return self._unit(self._vision, images)

    def _encode_caption_ids(self, caption_ids: Tensor) -> Tensor:
        """[b, L] int64, L the longest of them -> likewise."""
        return self._unit(self._text, caption_ids)

    @torch.no_grad()
    def _unit(self, tower: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        with exact_convolutions():
            return F.normalize(tower(batch.to(self.device)), dim=-1).cpu()


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
        path: a run folder or its best.safetensors; a file written by `cskt export --merge`; a released CSKT folder
            (configs.yaml + best.pth); a CLIP weight file, folder, published name, or `clip-tiny`.
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
            raise ValueError(
                f"{path}: trained over {file.backbone_name} with SHA-256 {file.backbone_sha256}; give that file with"
                f" backbone= (--backbone): {error}"
            ) from None
        architecture, known_token_ids = carrier.architecture, carrier.known_token_ids
        state = carrier.state | state
    model = DualEncoder(architecture, config.prompts, config.adapters, config.lora, trainable="none")
    weights.load_state(model, state, origin=str(path), prefixes=WHOLE)
    tokenizer = tokenizer_for(model, config.data.caption_length, known_token_ids)
    return Loaded(model, tokenizer, config.precision, config.data.templates)


def _load_released(folder: Path) -> Loaded:
    found = released.read_released(folder)
    model = DualEncoder(found.architecture, found.config.prompts, found.config.adapters, trainable="none")
    weights.load_state(model, found.state, origin=str(folder), prefixes=WHOLE)
    return Loaded(model, tokenizer_for(model, found.config.data.caption_length, None))


def _load_backbone(config: BackboneConfig) -> Loaded:
    if config.name != CLIP_TINY and _own_kind(Path(config.name)) is None:
        height, width = config.image_height or CROP_SIZE[0], config.image_width or CROP_SIZE[1]
        config = dataclasses.replace(config, image_height=height, image_width=width)
    backbone = weights.load_backbone(config)
    model = DualEncoder(backbone.architecture, NO_PROMPTS, NO_ADAPTERS, trainable="none")
    weights.load_state(model, backbone.state, origin=backbone.name)
    return Loaded(model, tokenizer_for(model, backbone.architecture.context_length, backbone.known_token_ids))


def _check_ids(caption_ids: Tensor, vocab_size: int) -> None:
    if caption_ids.ndim != 2 or caption_ids.dtype != torch.int64:
        raise ValueError(f"expected caption ids [B, L] int64, found {list(caption_ids.shape)} {caption_ids.dtype}")
    if (caption_ids < 0).any() or not (caption_ids.amax(dim=1) == vocab_size - 1).all():
        raise ValueError(f"caption ids lie in 0 to {vocab_size - 1}, and every row has the end token {vocab_size - 1}")


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
