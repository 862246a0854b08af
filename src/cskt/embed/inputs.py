"""Inputs of an `Encoder`: the forms that images and captions may have, and checks of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from cskt.config import ClipArchitecture
from cskt.errors import CsktError
from cskt.image_files.decode import Source

Images: TypeAlias = Tensor | Source | str | Sequence[Source | str]
Captions: TypeAlias = str | Sequence[str] | Tensor
ONE_IMAGE: tuple[tuple[type, ...], str, str] = (
    (str, bytes, Path, Image.Image), "images", "pixels are a tensor [B, 3, H, W], or Image.fromarray(array)",
)  # fmt: skip
"""Types of one image, for `listed`."""


def check_images(images: Tensor, image_size: tuple[int, int]) -> None:
    """Check the shape and type of images [B, 3, H, W]."""
    height, width = image_size
    if images.ndim != 4 or images.shape[1:] != (3, height, width):
        raise CsktError(f"expected images [B, 3, {height}, {width}], found {list(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise CsktError(f"expected uint8 pixels or normalised float images, found {images.dtype}")


def check_ids(caption_ids: Tensor, architecture: ClipArchitecture) -> None:
    """Check the shape, type and range of caption ids [B, L]."""
    vocab_size, context_length = architecture.vocab_size, architecture.context_length
    if caption_ids.ndim != 2 or caption_ids.dtype != torch.int64:
        raise CsktError(f"expected caption ids [B, L] int64, found {list(caption_ids.shape)} {caption_ids.dtype}")
    if not 2 <= caption_ids.shape[1] <= context_length:
        raise CsktError(f"caption ids [B, {caption_ids.shape[1]}]: the model reads 2 to {context_length} tokens")
    if (caption_ids < 0).any() or not (caption_ids.amax(dim=1) == vocab_size - 1).all():
        raise CsktError(
            f"caption ids must be from 0 to {vocab_size - 1}, with the end token {vocab_size - 1} in every row"
        )
    if (caption_ids[:, 0] == vocab_size - 1).any():
        raise CsktError(f"caption ids must begin with the start token {vocab_size - 2}, not with the end token")
