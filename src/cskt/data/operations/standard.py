"""Operations on images: flip, rotation, crop, colours, blur, erasing. Their definitions are those of torchvision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.config.types import Fraction, NonNegativeReal, Range
from cskt.data.operations.base import Operation, register
from cskt.device import to_device
from cskt.errors import CsktError

GREY_WEIGHTS = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in a grey value (ITU-R BT.601), in torchvision's rounding."""
TRIES = 10
"""Rectangles drawn before one is given up, as in torchvision."""
SIGMAS_OF_KERNEL = 3
"""Length of a Gaussian kernel to each side, in standard deviations; it holds 99.7 % of the weight."""


@register("flip")
@dataclass(frozen=True)
class Flip(Operation):
    """Swaps left and right."""

    probability: Fraction = 0.5

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        return images.flip(-1)


@register("grey")
@dataclass(frozen=True)
class Grey(Operation):
    """Replaces the colours by their grey value."""

    probability: Fraction = 0.1

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        return _grey(images).expand_as(images)


@register("rotate")
@dataclass(frozen=True)
class Rotate(Operation):
    """Rotates about the centre, to the nearest pixel; corners that come from outside are black."""

    degrees: NonNegativeReal = 15.0
    """Largest angle to either side."""

    def draw(self, num_images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        return _uniform((num_images, 1), -self.degrees, self.degrees, generator)

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        height, width = images.shape[2:]
        angles = torch.deg2rad(choices[:, 0])
        cos, sin = angles.cos(), angles.sin()
        rows = [torch.stack(row, dim=1) for row in (
            (cos, -sin * height / width, torch.zeros_like(cos)), (sin * width / height, cos, torch.zeros_like(cos)),
        )]  # fmt: skip
        theta = to_device(torch.stack(rows, dim=1).float(), images.device)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)


@register("resized_crop")
@dataclass(frozen=True)
class ResizedCrop(Operation):
    """Crops a rectangle and resizes it to the whole size, bilinearly."""

    area: Range = (0.9, 1.0)
    """Area of the rectangle as a share of the image, smallest and largest."""
    ratio: Range = (3 / 4, 4 / 3)
    """Width / height of the rectangle in pixels, smallest and largest."""

    def __post_init__(self) -> None:
        check_rectangle(self.area, self.ratio)

    def draw(self, num_images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        inverse = 1 / self.ratio[1], 1 / self.ratio[0]
        rectangles = draw_rectangles(num_images, height, width, self.area, inverse, generator=generator, whole=True)
        # Where no try fitted: the largest rectangle of an allowed shape, in the middle.
        rows, columns = min(height, round(width / self.ratio[0])), min(width, round(height * self.ratio[1]))
        middle = torch.tensor([(height - rows) // 2, (width - columns) // 2, rows, columns])
        return torch.where(rectangles[:, 2:3] == 0, middle, rectangles)

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        top, left, rows, columns = to_device(choices.float(), images.device).unbind(1)
        return _resampled(_resampled(images, top, rows, 2), left, columns, 3)


@register("jitter")
@dataclass(frozen=True)
class Jitter(Operation):
    """Changes brightness, contrast, saturation and hue, in random order."""

    brightness: NonNegativeReal = 0.0
    """Largest change of the factor 1, as of contrast and saturation."""
    contrast: NonNegativeReal = 0.0
    saturation: NonNegativeReal = 0.0
    hue: NonNegativeReal = 0.0
    """Largest shift, as a share of the colour circle; at most 0.5."""

    def __post_init__(self) -> None:
        if self.hue > 0.5:
            raise CsktError(f"hue {self.hue} is more than half of the colour circle; give at most 0.5")

    def draw(self, num_images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        order = torch.rand(num_images, 4, generator=generator).argsort(dim=1)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [_uniform((num_images, 1), max(0.0, 1 - most), 1 + most, generator) for most in strengths]
        return torch.cat([order, *factors, _uniform((num_images, 1), -self.hue, self.hue, generator)], dim=1)

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        order, amounts = choices[:, :4], to_device(choices[:, 4:].float(), images.device)
        is_used = (self.brightness, self.contrast, self.saturation, self.hue)
        images = images.clone()
        for turn in range(4):
            for number, change in enumerate((_brighter, _with_contrast, _saturated, _with_hue)):
                rows = (order[:, turn] == number).nonzero().squeeze(1)
                if is_used[number] and len(rows):
                    rows = to_device(rows, images.device)
                    images[rows] = change(images[rows], amounts[rows, number, None, None, None])
        return images


@register("blur")
@dataclass(frozen=True)
class Blur(Operation):
    """Averages with Gaussian weights; beyond the border the outermost pixels are repeated."""

    probability: Fraction = 0.5
    sigma: Range = (0.1, 2.0)
    """Standard deviation in pixels, smallest and largest."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma[0] <= self.sigma[1] <= 100:
            raise CsktError(f"sigma {self.sigma} is not a range within (0, 100]")

    def draw(self, num_images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        return _uniform((num_images, 1), *self.sigma, generator)

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        reach = math.ceil(SIGMAS_OF_KERNEL * self.sigma[1])
        offsets = torch.arange(-reach, reach + 1)
        kernels = torch.exp(-0.5 * (offsets / choices) ** 2)
        kernels = to_device((kernels / kernels.sum(dim=1, keepdim=True)).float(), images.device)
        for dim, padding in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
            images = _weighted(F.pad(images, padding, mode="replicate"), kernels, dim)
        return images


@register("erase")
@dataclass(frozen=True)
class Erase(Operation):
    """Makes a rectangle black."""

    probability: Fraction = 0.5
    area: Range = (0.1, 0.2)
    """Area of the rectangle as a share of the image, smallest and largest."""
    ratio: Range = (0.3, 3.3)
    """Height / width of the rectangle, smallest and largest."""

    def __post_init__(self) -> None:
        check_rectangle(self.area, self.ratio)

    def draw(self, num_images: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        return draw_rectangles(num_images, height, width, self.area, self.ratio, generator=generator)

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        return images.masked_fill(inside(to_device(choices, images.device), *images.shape[2:]), 0.0)


def check_rectangle(area: Range, ratio: Range) -> None:
    """Raise CsktError unless the ranges of areas, as shares, and of ratios of sides are ranges."""
    if not 0 < area[0] <= area[1] <= 1:
        raise CsktError(f"area {area} is not a range within (0, 1]")
    if not 0 < ratio[0] <= ratio[1]:
        raise CsktError(f"ratio {ratio} is not a range above 0")


def draw_rectangles(
    num_images: int,
    height: int,
    width: int,
    area: Range,
    ratio: Range,
    *,
    generator: torch.Generator,
    whole: bool = False,
) -> Tensor:
    """Draw [B, 4] int64: top, left, rows and columns of a rectangle inside each image; zeros where no try fitted.

    The area is uniform and the ratio, height / width, log-uniform in their ranges; the first of `TRIES` that fits is
    taken. A rectangle is lower and narrower than the image, or, with `whole`, not higher nor wider.
    """
    areas = height * width * _uniform((num_images, TRIES), *area, generator)
    ratios = _uniform((num_images, TRIES), math.log(ratio[0]), math.log(ratio[1]), generator).exp()
    place = _uniform((num_images, 2), 0.0, 1.0, generator)
    sizes = torch.stack(((areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()), dim=2)
    fits = (sizes[..., 0] < height + whole) & (sizes[..., 1] < width + whole)
    first = fits.long().argmax(1)
    size = sizes[torch.arange(num_images), first] * fits.any(1)[:, None]
    corner = (place * (torch.tensor([height, width]) - size + 1)).floor()
    return torch.cat((corner, size), dim=1).long()


def inside(rectangles: Tensor, height: int, width: int) -> Tensor:
    """Return where rectangles [B, 4], as of `draw_rectangles`, are in images: [B, 1, height, width] bool."""
    top, left, rows, columns = rectangles[..., None].unbind(1)
    y, x = torch.arange(height, device=rectangles.device), torch.arange(width, device=rectangles.device)
    inside_rows = (y >= top) & (y < top + rows)
    inside_columns = (x >= left) & (x < left + columns)
    return inside_rows[:, None, :, None] & inside_columns[:, None, None, :]


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    # float64: in float32, floor(u * n) can reach n
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _resampled(images: Tensor, start: Tensor, length: Tensor, dim: int) -> Tensor:
    """Resize the pixels from `start` on, `length` of them, [B] each, to the whole length of a dimension."""
    size = images.shape[dim]
    places = (torch.arange(size, device=images.device) + 0.5) * (length[:, None] / size) - 0.5
    places = torch.minimum(places.clamp(min=0), length[:, None] - 1) + start[:, None]
    low = places.floor()
    high = torch.minimum(low + 1, (start + length - 1)[:, None])

    def shaped(values: Tensor) -> Tensor:
        return values[:, None, :, None] if dim == 2 else values[:, None, None, :]

    def picked(index: Tensor) -> Tensor:
        return images.gather(dim, shaped(index.long()).expand_as(images))

    return torch.lerp(picked(low), picked(high), shaped(places - low))


def _weighted(images: Tensor, kernels: Tensor, dim: int) -> Tensor:
    """Return the sums of neighbouring pixels of a dimension, weighted by the kernel [B, K] of their image.

    One multiplication and addition for each weight: cuDNN would round a convolution to TF32.
    """
    size = images.shape[dim] - kernels.shape[1] + 1
    total = torch.zeros_like(images.narrow(dim, 0, size))
    for place, weights in enumerate(kernels.unbind(1)):
        total.addcmul_(images.narrow(dim, place, size), weights[:, None, None, None])
    return total


def _grey(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W]."""
    weights = to_device(torch.tensor(GREY_WEIGHTS), images.device)
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True)


def _blended(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other.expand_as(images), images, factor).clamp(0, 1)


def _brighter(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp(0, 1)


def _with_contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), factor)


def _saturated(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(images, _grey(images), factor)


def _with_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue by a share of the colour circle; value and saturation (of HSV) stay."""
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    value, chroma = images.amax(dim=1, keepdim=True), images.amax(dim=1, keepdim=True) - images.amin(1, keepdim=True)
    safe = chroma.clamp(min=1e-12)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    places = to_device(torch.tensor([5.0, 3.0, 1.0]), images.device)
    place = places[:, None, None] + sixths + 6 * shift
    place = place.remainder(6)
    return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)
