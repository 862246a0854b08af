"""`Encoder`: images and sentences to unit vectors. Evaluation, galleries and search all go through it.

Here the model, which knows only tensors, meets the tokenizer and the image reader; and here features are normalised,
once and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cskt.config import to_dict
from cskt.config.types import Interpolation
from cskt.data.images import ImageReader, normalise
from cskt.data.loading import iter_images
from cskt.data.tokenizer import Tokenizer
from cskt.device import DTYPES, exact_convolutions, pick_device, pick_precision
from cskt.errors import SMALLER_BATCHES, CsktError, out_of_memory_errors
from cskt.image_files.decode import Source
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import fold_text, fold_vision
from cskt.utils.progress import bar

PLAIN = ("{}",)
"""The template that leaves a caption as it is."""


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
        interpolation: filter that resizes images to the model's size.
        apply_orientation: turn images that are read from files as their EXIF orientation says. Galleries always do.
        batch_size: images or captions computed at once.
        num_workers: threads that decode images.
        cache_dir: folder of a memory-mapped cache of the resized images (`cskt.data.pixel_cache`), for image files.
        compile: compile the towers with torch.compile; on a CPU that takes a C++ compiler.
        show_progress: draw bars on stderr while encoding.

    Each tower is folded (`cskt.model.folded`) when it is first needed: what happens to the model's weights afterwards
    is seen by a new Encoder only.

    Raises:
        CsktError: an unknown precision, a batch size below 1, a negative number of threads, or a template without its
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
        interpolation: Interpolation = "bilinear",
        apply_orientation: bool = False,
        batch_size: int = 128,
        num_workers: int = 4,
        cache_dir: Path | None = None,
        compile: bool = False,
        show_progress: bool = False,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise CsktError(f"batch size {batch_size}, {num_workers} threads: give at least 1 and at least 0")
        if isinstance(templates, str) or not all(template.count("{}") == 1 for template in templates):
            raise CsktError("templates is a list of sentences that hold {} once, where the caption goes")
        self.device = device or pick_device()
        self.model = model.to(self.device)
        self.tokenizer = tokenizer
        self.precision = pick_precision(precision, self.device)
        self.templates = tuple(templates)
        self.interpolation: Interpolation = interpolation
        self.apply_orientation = apply_orientation
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
        """SHA-256 over all that features depend on: weights, sizes, vocabulary, templates, and how images are
        normalised and resized where that is not CLIP's normalisation and the bilinear filter.

        Vectors of encoders with one fingerprint can be compared; precision and device only round them.
        """
        digest = hashlib.sha256()
        reading: list[Any] = [self.tokenizer.context_length, sorted(self.tokenizer.known_ids or ()), self.templates]
        if self.interpolation != "bilinear":
            reading.append(self.interpolation)
        digest.update(json.dumps([to_dict(self.model.architecture), reading]).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model takes."""
        return self.model.architecture.image_height, self.model.architecture.image_width

    def read_image(self, source: Source, *, apply_orientation: bool | None = None) -> Tensor:
        """Decode and resize one image for this model.

        Args:
            source: a file, the bytes of one, or a PIL image, of any size.
            apply_orientation: see `Encoder`; the encoder's own setting if None.

        Returns:
            [3, H, W] uint8, as `encode_image` takes a batch of them.

        Raises:
            CsktError: the image cannot be read; names it.
        """
        upright = self.apply_orientation if apply_orientation is None else apply_orientation
        return ImageReader(*self.image_size, self.interpolation, upright).read(source)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels [B, 3, H, W] uint8 with the mean and standard deviation that the model was trained with.

        Returns:
            [B, 3, H, W] float32 on the model's device.
        """
        architecture = self.model.architecture
        return normalise(pixels.to(self.device), architecture.image_mean, architecture.image_std)

    @out_of_memory_errors(SMALLER_BATCHES)
    def encode_image(self, images: Tensor | Sequence[Source | str], *, apply_orientation: bool | None = None) -> Tensor:
        """Unit vectors of images.

        Args:
            images: [B, 3, H, W] uint8 RGB, or float normalised as the model takes them (see `normalise`); or paths,
                PIL images and bytes of image files, of any size.
            apply_orientation: see `Encoder`; the encoder's own setting if None. Tensors are taken as they are.

        Returns:
            [B, D] float32 on the CPU, rows of length 1.

        Raises:
            CsktError: an image that cannot be read (names it) or pixels that do not fit the model.
        """
        size = self.image_size
        if isinstance(images, str | bytes | Path | Image.Image):
            raise CsktError("images is a single one; pass a list: [image]")
        if not isinstance(images, Tensor):
            sources = [Path(image) if isinstance(image, str) else image for image in images]
            upright = self.apply_orientation if apply_orientation is None else apply_orientation
            reader = ImageReader(*size, self.interpolation, upright)
            batches = iter_images(sources, reader, self.batch_size, self.num_workers, self.cache_dir)
            return self._encode_batches(self._encode_pixels, batches, len(sources))
        if images.ndim != 4 or images.shape[1:] != (3, *size):
            raise CsktError(f"expected images [B, 3, {size[0]}, {size[1]}], found {list(images.shape)}")
        whole = torch.split(images, self.batch_size)
        if images.dtype == torch.uint8:
            return self._encode_batches(self._encode_pixels, whole, len(images))
        if not images.is_floating_point():
            raise CsktError(f"expected uint8 pixels or normalised float images, found {images.dtype}")
        return self._encode_batches(self._encode_normalised, (batch.float() for batch in whole), len(images))

    @out_of_memory_errors(SMALLER_BATCHES)
    def encode_text(self, captions: Sequence[str] | Tensor) -> Tensor:
        """Unit vectors of sentences.

        Args:
            captions: sentences, or caption ids [B, L] with start and end tokens and without prompt slots, to which
                no template applies.

        Returns:
            [B, D] float32 on the CPU, rows of length 1.

        Raises:
            CsktError: a single string, or ids of another shape or type, or without an end token.
        """
        if isinstance(captions, Tensor):
            _check_ids(captions, self.model.architecture.vocab_size)
            return self._encode_ids(captions.cpu())
        if self.templates == PLAIN:
            return self._encode_ids(self.tokenizer(captions))
        if isinstance(captions, str):
            raise CsktError("captions is one string; pass a list of strings")
        views = [
            self._encode_ids(self.tokenizer([template.replace("{}", caption) for caption in captions]))
            for template in self.templates
        ]
        return F.normalize(torch.stack(views).mean(dim=0), dim=-1)

    def text_warnings(self, captions: Sequence[str]) -> list[str]:
        """Describe what the model misses in sentences: ends that are cut off, and words that it has never seen.

        `encode_text` itself is silent. Whoever encodes a user's sentence shows these lines to that user.

        Args:
            captions: sentences; the lines are about all of them together, so pass one by itself to learn about it.

        Returns:
            At most two lines, which quote unknown words; none where the model reads everything.
        """
        longest = max(self.templates, key=len)
        return self.tokenizer.warnings([longest.replace("{}", caption) for caption in captions])

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
        return self._encode_normalised(self.normalise(pixels))

    def _encode_normalised(self, images: Tensor) -> Tensor:
        """[b, 3, H, W] float32 -> likewise."""
        return self._unit(self._vision, images)

    def _encode_caption_ids(self, caption_ids: Tensor) -> Tensor:
        """[b, L] int64, L the longest of them -> likewise."""
        return self._unit(self._text, caption_ids)

    @torch.no_grad()
    def _unit(self, tower: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        with exact_convolutions(self.device):
            return F.normalize(tower(batch.to(self.device)), dim=-1).cpu()


def _check_ids(caption_ids: Tensor, vocab_size: int) -> None:
    if caption_ids.ndim != 2 or caption_ids.dtype != torch.int64:
        raise CsktError(f"expected caption ids [B, L] int64, found {list(caption_ids.shape)} {caption_ids.dtype}")
    if (caption_ids < 0).any() or not (caption_ids.amax(dim=1) == vocab_size - 1).all():
        raise CsktError(f"caption ids lie in 0 to {vocab_size - 1}, and every row has the end token {vocab_size - 1}")
