"""Image files -> resized uint8 tensors, and the augmentation of CSKT's recipe, without torchvision.

Pixels equal those of the released code, an antialiased bilinear resize of what `cskt.image_files` decodes, within a
grey level of rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cskt.config import CLIP_MEAN, CLIP_STD, AugmentConfig
from cskt.config.types import ChannelMeans, ChannelStds, Interpolation
from cskt.data.operations import apply_operations, draw_rectangles, inside
from cskt.device import to_device
from cskt.image_files.decode import Source, decode_image

BOX_REDUCE_FROM = 32
"""Scale factor, of height or width, above which an image is reduced by averaging boxes before it is resized: 12,288
pixels of height for a model that takes 384. Below it pixels are resized in one pass."""
BOX_REDUCE_TO = 8
"""Scale factor of the antialiased resize after such a reduction."""


@dataclass(frozen=True)
class ImageReader:
    """Decodes images and resizes them to the size that a model takes; see `resize` and `decode_image`."""

    height: int
    """In pixels, as is `width`."""
    width: int
    interpolation: Interpolation = "bilinear"
    apply_orientation: bool = False

    def read(self, source: Source, name: str = "") -> Tensor:
        """Return an image as [3, H, W] uint8; `name` is what errors call bytes."""
        pixels = decode_image(source, name, apply_orientation=self.apply_orientation)
        return resize(pixels, self.height, self.width, self.interpolation)


def resize(pixels: NDArray[np.uint8], height: int, width: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Resize pixels [h, w, 3] to [3, H, W] uint8, with antialiasing; the aspect ratio is not kept.

    Bilinear as in the released codes, or bicubic.
    """
    pixels = _box_reduced(pixels, height, width)
    images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # in this order torch sees that channels come last
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, (height, width), mode=interpolation, antialias=True)
    return images[0].contiguous()


def _box_reduced(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Average boxes of pixels of an image that is far larger than the target size; return others as they are.

    The filter of an antialiased resize is as wide as the scale factor, and its weights are rounded to 16 bits. Boxes
    cost one addition per pixel and direction.
    """
    size = [
        BOX_REDUCE_TO * wanted if side > BOX_REDUCE_FROM * wanted else side
        for side, wanted in zip(pixels.shape[:2], (height, width), strict=True)
    ]
    if size == list(pixels.shape[:2]):
        return pixels
    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BOX))


def normalise(images: Tensor, mean: ChannelMeans = CLIP_MEAN, std: ChannelStds = CLIP_STD) -> Tensor:
    """Normalise the channels of images [B, 3, H, W] uint8 to float32, with `mean` and `std` of pixels in [0, 1]."""
    return _standardised(images.float().div_(255), mean, std)


def _standardised(images: Tensor, mean: ChannelMeans, std: ChannelStds) -> Tensor:
    """Normalise images in [0, 1] in place."""
    return images.sub_(_per_channel(mean, images)).div_(_per_channel(std, images))


def augment(
    images: Tensor,
    config: AugmentConfig,
    generator: torch.Generator,
    *,
    mean: ChannelMeans = CLIP_MEAN,
    std: ChannelStds = CLIP_STD,
    batch_size: int | None = None,
    first_row: int = 0,
) -> Tensor:
    """Return the training view of a batch: flip, pad and crop, normalise, erase, in the order of the released code.

    With `config.ops` these operations are applied instead, and the result is normalised.

    Erased rectangles are filled after normalising with CLIP's raw channel means, as released, whatever `mean` is: a mid
    grey, not the mean colour.

    Args:
        images: [B, 3, H, W] uint8, on any device.
        generator: a generator on the CPU, where every choice is drawn: the same on every device.
        batch_size, first_row: size of the whole batch and first row in it, if these are rows of a larger batch: the
            result is the same as in the whole.

    Returns:
        [B, 3, H, W] float32, normalised.
    """
    height, width = images.shape[2:]
    batch_size = len(images) if batch_size is None else batch_size
    if config.ops:
        images = apply_operations(images, config, generator, batch_size=batch_size, first_row=first_row)
        return _standardised(images, mean, std)
    flipped, corners, rectangles = (
        to_device(choices[first_row : first_row + len(images)], images.device)
        for choices in _draw(batch_size, height, width, config, generator)
    )
    images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    return _erase(normalise(_crop(images, config.pad_pixels, corners), mean, std), rectangles)


def _draw(
    num_images: int, height: int, width: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw for each image: [B] flipped or not, [B, 2] corner of its crop, [B, 4] rectangle to erase."""
    flipped = torch.rand(num_images, generator=generator) < config.flip_probability
    corners = torch.randint(0, 2 * config.pad_pixels + 1, (num_images, 2), generator=generator)
    erased = torch.rand(num_images, generator=generator) < config.erase_probability
    rectangles = draw_rectangles(num_images, height, width, config.erase_area, config.erase_ratio, generator=generator)
    return flipped, corners, rectangles * erased[:, None]


def _crop(images: Tensor, pad: int, corners: Tensor) -> Tensor:
    num_images, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad)).contiguous()
    # A row of a crop is `width` consecutive pixels in memory: one selection fetches all rows by their start.
    planes = torch.arange(num_images * channels, device=images.device).view(num_images, channels, 1)
    rows = planes * padded.shape[2] + corners[:, :1, None] + torch.arange(height, device=images.device)
    starts = rows * padded.shape[3] + corners[:, 1:, None]
    every_start = padded.as_strided((max(padded.numel() - width + 1, 0), width), (1, 1))
    return every_start.index_select(0, starts.flatten()).view(images.shape)


def _erase(images: Tensor, rectangles: Tensor) -> Tensor:
    """Overwrite rectangles of `images` in place."""
    erased = inside(rectangles, *images.shape[2:])
    return torch.where(erased, _per_channel(CLIP_MEAN, images), images, out=images)


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    return to_device(torch.tensor(values), images.device).view(1, 3, 1, 1)
