"""`Encoder`: images and sentences to unit vectors. Evaluation, galleries and search all use it.

It joins the model, which takes tensors, with a tokenizer and an image reader. Features are normalised only here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Unpack, cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cskt.config import RunConfig, to_dict, with_method
from cskt.config.file_names import BEST, CONFIG
from cskt.config.types import Interpolation, Precision
from cskt.data.images import ImageReader, normalise
from cskt.data.loading import iter_images
from cskt.data.prefetcher import AnyBatch, Prefetcher, read_back
from cskt.data.tokenizer import Tokenizer
from cskt.device import DTYPES, pick_device, pick_precision, to_device
from cskt.embed.caption_batches import caption_batches
from cskt.embed.inputs import ONE_IMAGE, Captions, Images, check_ids, check_images
from cskt.embed.options import EncodeKeywords, EncodeOptions, ModelSource, merged
from cskt.errors import SMALLER_BATCHES, CsktError, compiler_errors, out_of_memory_errors
from cskt.image_files.decode import Source
from cskt.model.attention import Packing
from cskt.model.dual_encoder import DualEncoder
from cskt.model.folded import FoldedText, fold_text, fold_vision
from cskt.model.io.native import NOTE, MethodFile, save_weights
from cskt.utils.arguments import expect, listed
from cskt.utils.console import bar
from cskt.utils.modules import named_tensors
from cskt.utils.paths import check_path, expanded

PLAIN = ("{}",)
"""The template that leaves a caption as it is."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class _ImageBatch:
    """Images and their positions in the result."""

    images: Tensor
    rows: slice


class Encoder:
    """A model with its tokenizer and image transform, for inference. `cskt.load` makes one.

    Each tower is folded (`cskt.model.folded`) when it is first used; a later change of the model's weights has an
    effect in a new Encoder only.

    Args:
        model: weights loaded; moved to the device, in evaluation mode.
        tokenizer: of the model's vocabulary and context.
        options: how it computes; `EncodeOptions`, whose fields can also be given as keyword arguments.
        interpolation: filter that resizes images to the model's size.
        apply_orientation: turn images that are read from files as their EXIF orientation says. Galleries always do.
        source: what the model was loaded from.
        config: of the run that the model was loaded from.
        note: a condition that a reader of the model's scores must know; stored with every result.

    Raises:
        CsktError: an unknown device or precision, or an option out of its range.

    Example:
        >>> encoder = cskt.load("clip-tiny", device="cpu")
        >>> encoder.encode_text("a woman in a red coat").shape
        torch.Size([256])
        >>> encoder.encode_image([Image.new("RGB", (64, 128))] * 2, convert_to="numpy").shape
        (2, 256)
    """

    def __init__(
        self,
        model: DualEncoder,
        tokenizer: Tokenizer,
        options: EncodeOptions | None = None,
        *,
        interpolation: Interpolation = "bilinear",
        apply_orientation: bool = False,
        source: ModelSource | None = None,
        config: RunConfig | None = None,
        note: str = "",
        **changes: Unpack[EncodeKeywords],
    ) -> None:
        options = merged(options, changes)
        self.device = pick_device(options.device)
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.precision = pick_precision(options.precision or "fp32", self.device)
        self.templates = tuple(options.templates or PLAIN)
        self.interpolation: Interpolation = interpolation
        self.apply_orientation = apply_orientation
        self.batch_size = options.batch_size
        self.num_workers = options.num_workers
        self.show_progress = options.show_progress
        self.source = source
        self.config = config
        self.note = note
        self._cache_dir = None if options.cache_dir is None else expanded(options.cache_dir)
        self._compile = options.compile

    def __repr__(self) -> str:
        height, width = self.image_size
        source = "a model in memory" if self.source is None else repr(self.source.path)
        return (
            f"{type(self).__name__}({source}, {self._method()}, {self.model.num_parameters():,} parameters,"
            f" D={self.embed_dim}, images {height} x {width}, {self.device}, {self.precision})"
        )

    def _method(self) -> str:
        return " + ".join(["CLIP", *self.model.method])

    @property
    def embed_dim(self) -> int:
        """D, the length of a feature vector; with embedding heads, their widths included.

        Example:
            >>> cskt.load("clip-tiny", device="cpu").embed_dim
            256
        """
        return self.model.embed_dim

    @cached_property
    def _vision(self) -> Callable[[Tensor], Tensor]:
        tower = fold_vision(self.model, DTYPES.get(self.precision, torch.float32))
        return torch.compile(tower) if self._compile else tower

    @cached_property
    def _text(self) -> Callable[..., Tensor]:
        tower = fold_text(self.model, DTYPES.get(self.precision, torch.float32))
        return torch.compile(tower) if self._compile else tower

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that features depend on: weights, sizes, vocabulary, templates, normalisation and
        resizing of images, settings of method parts of plug-ins.

        Vectors of encoders with one fingerprint can be compared; precision and device only round them.

        Example:
            >>> len(cskt.load("clip-tiny", device="cpu").fingerprint)
            64
        """
        digest = hashlib.sha256()
        reading: list[Any] = [self.tokenizer.context_length, sorted(self.tokenizer.known_ids or ()), self.templates]
        if self.interpolation != "bilinear":  # so that fingerprints of version 0.1 stay as they are
            reading.append(self.interpolation)
        if self.tokenizer.clean_captions:
            reading.append("clean_captions")
        if self.model.parts:  # the settings of the package's own parts are left out, for the same reason
            reading.append({name: to_dict(self.model.method[name]) for name in sorted(self.model.parts)})
        digest.update(json.dumps([to_dict(self.model.architecture), reading]).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model takes.

        Example:
            >>> cskt.load("clip-tiny", device="cpu").image_size
            (128, 64)
        """
        return self.model.architecture.image_height, self.model.architecture.image_width

    def read_image(self, source: Source | str, *, apply_orientation: bool | None = None) -> Tensor:
        """Decode and resize one image for this model.

        Args:
            source: a file, the bytes of one, or a PIL image, of any size.
            apply_orientation: see `Encoder`; None: the encoder's own setting.

        Returns:
            [3, H, W] uint8, of which `encode_image` takes a batch.

        Raises:
            CsktError: the image cannot be read; names it.

        Example:
            >>> cskt.load("clip-tiny", device="cpu").read_image(Image.new("RGB", (100, 300))).shape
            torch.Size([3, 128, 64])
        """
        expect(source, ONE_IMAGE[0], "source")
        return self._reader(apply_orientation).read(Path(source) if isinstance(source, str) else source)

    def _reader(self, apply_orientation: bool | None) -> ImageReader:
        upright = self.apply_orientation if apply_orientation is None else apply_orientation
        return ImageReader(*self.image_size, self.interpolation, upright)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels [B, 3, H, W] uint8 with the mean and standard deviation that the model was trained with.

        Returns:
            [B, 3, H, W] float32 on the model's device.

        Raises:
            CsktError: pixels of another shape or type.

        Example:
            >>> cskt.load("clip-tiny", device="cpu").normalise(torch.zeros(2, 3, 128, 64, dtype=torch.uint8)).dtype
            torch.float32
        """
        check_images(pixels, self.image_size)
        if pixels.dtype != torch.uint8:
            raise CsktError(f"expected uint8 pixels, found {pixels.dtype}; float images are taken as normalised")
        return self._normalised(pixels)

    def _normalised(self, pixels: Tensor) -> Tensor:
        architecture = self.model.architecture
        return normalise(to_device(pixels, self.device), architecture.image_mean, architecture.image_std)

    @overload
    def encode_image(
        self,
        images: Images,
        *,
        apply_orientation: bool | None = None,
        convert_to: Literal["torch"] = "torch",
        keep_on_device: bool = False,
    ) -> Tensor: ...
    @overload
    def encode_image(
        self, images: Images, *, apply_orientation: bool | None = None, convert_to: Literal["numpy"]
    ) -> NDArray[np.float32]: ...
    @out_of_memory_errors(SMALLER_BATCHES)
    def encode_image(
        self,
        images: Images,
        *,
        apply_orientation: bool | None = None,
        convert_to: Literal["torch", "numpy"] = "torch",
        keep_on_device: bool = False,
    ) -> Any:
        """Encode one image or several into unit vectors.

        Args:
            images: a path, a PIL image or the bytes of an image file, of any size, or a list of these; or
                [B, 3, H, W] or [3, H, W] uint8 RGB, or float normalised as the model takes them (see `normalise`).
            apply_orientation: see `Encoder`; None: the encoder's own setting. Tensors are taken as they are.
            convert_to: torch or numpy.
            keep_on_device: leave the tensor on the model's device instead of the CPU.

        Returns:
            [D] for one image, [B, D] for several; float32, rows of length 1.

        Raises:
            CsktError: an image that cannot be read (names it), or pixels that do not fit the model.

        Example:
            >>> cskt.load("clip-tiny", device="cpu").encode_image([Image.new("RGB", (64, 128))] * 2).shape
            torch.Size([2, 256])
        """
        device = self._output_device(convert_to, keep_on_device)
        if isinstance(images, Tensor):
            is_single = images.ndim == 3
            images = images[None] if is_single else images
            check_images(images, self.image_size)
            batches, count = iter(torch.split(images, self.batch_size)), len(images)
        else:
            is_single = isinstance(images, ONE_IMAGE[0])
            sources = [Path(image) if isinstance(image, str) else image for image in listed(images, *ONE_IMAGE)]
            reader, count = self._reader(apply_orientation), len(sources)
            batches = iter_images(sources, reader, self.batch_size, self.num_workers, self._cache_dir)
        size = self.batch_size
        placed = (_ImageBatch(batch, slice(size * i, size * i + len(batch))) for i, batch in enumerate(batches))
        features = torch.empty(count, self.embed_dim, device=device)
        with bar("images", count, shown=self.show_progress) as advance:
            for batch, found in self._encode_batches(placed, device):
                features[batch.rows] = found
                advance(len(found))
        return _converted(features, is_single=is_single, convert_to=convert_to)

    def encode_batches(self, batches: Generator[AnyBatch, None, None]) -> Iterator[tuple[AnyBatch, Tensor]]:
        """Encode images as they come, in batches; on a GPU each is copied there while the one before it is computed.

        Args:
            batches: dataclasses with a field `images`, a tensor as for `encode_image`, perhaps of no images. On CUDA,
                batch n + 2 is taken before the result of batch n is yielded.

        Returns:
            An iterator over the batches, in order, with the unit vectors [B, D] of each on the CPU.

        Example:
            >>> from dataclasses import dataclass
            >>> @dataclass
            ... class Frame:
            ...     images: torch.Tensor
            ...     number: int
            >>> encoder = cskt.load("clip-tiny", device="cpu")
            >>> frames = (Frame(torch.zeros(2, 3, 128, 64, dtype=torch.uint8), number) for number in range(3))
            >>> [(frame.number, list(vectors.shape)) for frame, vectors in encoder.encode_batches(frames)]
            [(0, [2, 256]), (1, [2, 256]), (2, [2, 256])]
        """
        with out_of_memory_errors(SMALLER_BATCHES):
            yield from self._encode_batches(batches, CPU)

    @overload
    def encode_text(
        self, captions: Captions, *, convert_to: Literal["torch"] = "torch", keep_on_device: bool = False
    ) -> Tensor: ...
    @overload
    def encode_text(self, captions: Captions, *, convert_to: Literal["numpy"]) -> NDArray[np.float32]: ...
    @out_of_memory_errors(SMALLER_BATCHES)
    def encode_text(
        self, captions: Captions, *, convert_to: Literal["torch", "numpy"] = "torch", keep_on_device: bool = False
    ) -> Any:
        """Encode one sentence or several into unit vectors.

        Args:
            captions: a sentence or a list of sentences; or caption ids [B, L] int64 with start and end tokens and
                without prompt slots, to which no template applies.
            convert_to: torch or numpy.
            keep_on_device: leave the tensor on the model's device instead of the CPU.

        Returns:
            [D] for one sentence, [B, D] for several; float32, rows of length 1.

        Raises:
            CsktError: ids of another shape or type, or without an end token.

        Example:
            >>> cskt.load("clip-tiny", device="cpu").encode_text("a woman in a red coat").shape
            torch.Size([256])
        """
        device = self._output_device(convert_to, keep_on_device)
        if isinstance(captions, Tensor):
            check_ids(captions, self.model.architecture)
            return _converted(self._encode_ids(captions.cpu(), device), is_single=False, convert_to=convert_to)
        sentences = listed(captions, str, "captions")
        views = [
            self._encode_ids(self.tokenizer([template.replace("{}", sentence) for sentence in sentences]), device)
            for template in self.templates
        ]
        features = F.normalize(torch.stack(views).mean(dim=0), dim=-1) if len(views) > 1 else views[0]
        return _converted(features, is_single=isinstance(captions, str), convert_to=convert_to)

    def text_warnings(self, captions: str | Sequence[str]) -> list[str]:
        """Describe what the model misses in sentences: ends that are cut off, and words that it has never seen.

        `encode_text` does not log it: show these lines to the user who wrote the sentence.

        Args:
            captions: a sentence, or several; the lines are about all of them together, so pass one by itself to learn
                about it.

        Returns:
            At most two lines, which quote unknown words; none where the model reads everything.

        Example:
            >>> cskt.load("clip-tiny", device="cpu").text_warnings("a woman in a red coat")
            []
        """
        longest = max(self.templates, key=len)
        captions = listed(captions, str, "captions")
        return self.tokenizer.warnings([longest.replace("{}", caption) for caption in captions])

    def save(self, path: str | Path) -> Path:
        """Write the whole model, backbone included, and return the file; `cskt.load(path)` gives equal features.

        Args:
            path: a `.safetensors` file, or a folder that receives `best.safetensors`.

        Raises:
            CsktError: the folder holds a run, or the file cannot be written.

        Example:
            >>> encoder = cskt.load("clip-tiny", device="cpu")
            >>> path = encoder.save("copy.safetensors")
            >>> cskt.load(path, device="cpu").fingerprint == encoder.fingerprint
            True
        """
        path = Path(path)
        check_path(path)
        if (path / CONFIG).exists():
            raise CsktError(f"{path}: holds a run, which is not overwritten; name another folder")
        target = path if path.suffix == ".safetensors" else path / BEST
        base = self.config or RunConfig(name="clip", trainable="none")
        data = dataclasses.replace(
            base.data, caption_length=self.tokenizer.context_length, templates=self.templates,
            eval_interpolation=self.interpolation, apply_orientation=self.apply_orientation,
            clean_captions=self.tokenizer.clean_captions,
        )  # fmt: skip
        precision = cast(Precision, self.precision)
        config = with_method(dataclasses.replace(base, data=data, precision=precision), self.model.method)
        facts = {} if self.source is None else {"source": self.source.path}
        file = MethodFile(
            config=to_dict(config),
            backbone_name=config.backbone.name,
            backbone_sha256="",
            facts=facts | ({NOTE: self.note} if self.note else {}),
            architecture=self.model.architecture,
            known_token_ids=self.tokenizer.known_ids,
            tensors=named_tensors(self.model),
        )
        save_weights(target, file)
        return target

    def _output_device(self, convert_to: str, keep_on_device: bool) -> torch.device:
        if convert_to not in ("torch", "numpy"):
            raise CsktError(f"convert_to '{convert_to}': must be torch or numpy")
        if keep_on_device and convert_to == "numpy":
            raise CsktError("keep_on_device: NumPy arrays are on the CPU; give convert_to='torch'")
        return self.device if keep_on_device else CPU

    def _encode_batches(
        self, batches: Generator[AnyBatch, None, None], device: torch.device
    ) -> Iterator[tuple[AnyBatch, Tensor]]:
        with Prefetcher(batches, self.device) as prefetcher:
            computed = ((batch, self._image_features(batch.images)) for batch in prefetcher)
            yield from computed if device == self.device else read_back(computed, self.device)

    def _image_features(self, images: Tensor) -> Tensor:
        if not len(images):
            return torch.empty(0, self.embed_dim, device=self.device)
        return self._pixel_features(images) if images.dtype == torch.uint8 else self._normalised_features(images)

    def _encode_ids(self, caption_ids: Tensor, device: torch.device) -> Tensor:
        lengths = caption_ids.argmax(dim=1) + 1  # the end token has the largest id
        features = torch.empty(len(caption_ids), self.embed_dim, device=device)
        with bar("captions", len(lengths), shown=self.show_progress) as advance:
            batches = caption_batches(lengths, self.batch_size, self.device.type)
            computed = ((rows, self._text_features(caption_ids[rows, : int(lengths[rows].max())])) for rows in batches)
            for rows, found in computed if device == self.device else read_back(computed, self.device):
                features[to_device(rows, device)] = found
                advance(len(rows))
        return features

    def _pixel_features(self, pixels: Tensor) -> Tensor:
        """[b, 3, H, W] uint8 -> [b, D] float32 unit rows."""
        return self._normalised_features(self._normalised(pixels))

    def _normalised_features(self, images: Tensor) -> Tensor:
        """[b, 3, H, W] float -> [b, D] float32 unit rows."""
        return self._unit(self._vision, images.float())

    def _text_features(self, caption_ids: Tensor) -> Tensor:
        """[b, L] int64, L the longest of them -> [b, D] float32 unit rows."""
        packing = self._text.packing(caption_ids) if isinstance(self._text, FoldedText) else None
        if packing is None:
            return self._unit(self._text, caption_ids)
        packing = Packing(*(to_device(index, self.device) for index in packing))
        return self._unit(partial(self._text, packing=packing), caption_ids)

    @torch.no_grad()
    def _unit(self, tower: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        with compiler_errors():
            return F.normalize(tower(to_device(batch, self.device)), dim=-1)


def _converted(features: Tensor, *, is_single: bool, convert_to: str) -> Any:
    features = features[0] if is_single else features
    return features.numpy() if convert_to == "numpy" else features
