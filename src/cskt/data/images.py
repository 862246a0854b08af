"""Image files -> resized uint8 tensors, and the augmentation of CSKT's recipe, without torchvision.

Pixels equal those of the released code, `Image.open(path).convert("RGB")` and an antialiased bilinear resize, within
a grey level of rounding. As there, an EXIF orientation is not applied, transparency is dropped, and an animation
shows its first frame. Unlike there, 16-bit grey keeps its range instead of clipping to white, and an image that is
damaged, or so large that decoding it would exhaust the memory, is an error that names the file.
"""

from __future__ import annotations

import io
import math
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cskt.config import AugmentConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Channel means that CLIP was trained with, of RGB in [0, 1]."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel standard deviations, likewise."""

MAX_PIXELS = 64_000_000
"""Larger images are refused unread: a 20 kB file can claim gigabytes."""
MAX_SCANNED_PIXELS = 50 * MAX_PIXELS
"""A progressive JPEG passes over its pixels once per scan, and a scan takes a few bytes: small files could go on for
hours. Common ones have ten."""
MOST_BYTES = 256_000_000
"""A larger file is no crop, and is not read: a few of them would fill the memory."""
# Listed because Pillow would also start external programs (EPS) or fetch other files.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, OverflowError, UserWarning,
)  # fmt: skip
"""What Pillow's decoders raise on damaged files; warnings, where Python was told to raise them."""
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
REMEDY = "mend the file or take its record out"
JPEG_SIGNATURE = b"\xff\xd8\xff"
JPEG_SCAN = b"\xff\xda"
ERASE_TRIES = 10
"""Rectangles drawn before an image is left whole, as in torchvision's RandomErasing."""


Source = Path | Image.Image | bytes
"""Where an image comes from: a file, an image that Pillow has opened, or the bytes of a file."""


def read_image(source: Source, height: int, width: int) -> Tensor:
    """Decode and resize one image; see `decode_image` and `resize`."""
    return resize(decode_image(source), height, width)


def resize(pixels: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """Pixels as a model takes them, bilinear with antialiasing; the aspect ratio is not kept.

    Args:
        pixels: [h, w, 3] of any size.
        height, width: size to resize to in pixels.

    Returns:
        [3, H, W] uint8.
    """
    images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # in this order torch sees that channels come last
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return images[0].contiguous()


def decode_image(source: Source, name: str = "") -> NDArray[np.uint8]:
    """The pixels of an image at its own size, [H, W, 3] RGB.

    Args:
        name: what errors call bytes; a path names itself.

    Raises:
        ValueError: the file is missing, empty, cut short, damaged, no image, or larger than `MAX_PIXELS`; names it.
    """
    if isinstance(source, Path):
        return decode_image(read_bytes(source), name=str(source))
    with _errors_naming(name or getattr(source, "filename", "") or "image"):
        return _rgb(source) if isinstance(source, Image.Image) else _decode_file(source)


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        ValueError: it is missing, cannot be read, is no file (a folder; a pipe or device, which may never end), or is
            larger than `MOST_BYTES`; names it.
    """
    with _errors_naming(str(path)):
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("a folder, pipe or device, not a file")
        if state.st_size > MOST_BYTES:
            raise ValueError(f"{state.st_size / 1e6:,.0f} MB; a crop has at most {MOST_BYTES / 1e6:.0f} MB")
        return path.read_bytes()


def normalise(images: Tensor) -> Tensor:
    """[B, 3, H, W] uint8 -> float32 with CLIP's channel means and standard deviations taken out."""
    mean, std = _per_channel(CLIP_MEAN, images), _per_channel(CLIP_STD, images)
    return images.float().div_(255).sub_(mean).div_(std)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; on CUDA through pinned memory, and without waiting for work under way."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # the pinned memory is kept until the copy is done


def augment(
    images: Tensor, config: AugmentConfig, generator: torch.Generator, *, of: int | None = None, first: int = 0
) -> Tensor:
    """The training view of a batch: flip, pad and crop, normalise, erase, in the order of the released code.

    Erased rectangles are filled after normalising with CLIP's raw channel means, as released: a mid grey, not the
    mean colour.

    Args:
        images: [B, 3, H, W] uint8, on any device.
        config: rates and ranges.
        generator: a generator on the CPU, where every choice is drawn: the same on every device.
        of, first: where these are rows of a larger batch, its size and the first row: they look as they would in it.

    Returns:
        [B, 3, H, W] float32, normalised.
    """
    height, width = images.shape[2:]
    flipped, corners, rectangles = (
        to_device(choices[first : first + len(images)], images.device)
        for choices in _draw(len(images) if of is None else of, height, width, config, generator)
    )
    images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    return _erase(normalise(_crop(images, config.pad_pixels, corners)), rectangles)


def _draw(
    num_images: int, height: int, width: int, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """What becomes of each image: [B] flipped or not, [B, 2] corner of its crop, [B, 4] rectangle to be erased."""
    flipped = torch.rand(num_images, generator=generator) < config.flip_probability
    corners = torch.randint(0, 2 * config.pad_pixels + 1, (num_images, 2), generator=generator)
    erased = torch.rand(num_images, generator=generator) < config.erase_probability
    return flipped, corners, _draw_rectangles(num_images, height, width, config, generator) * erased[:, None]


def _crop(images: Tensor, pad: int, corners: Tensor) -> Tensor:
    num_images, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad)).contiguous()
    # In memory a row of a crop is `width` pixels on end: one selection fetches all rows by where they start.
    planes = torch.arange(num_images * channels, device=images.device).view(num_images, channels, 1)
    rows = planes * padded.shape[2] + corners[:, :1, None] + torch.arange(height, device=images.device)
    starts = rows * padded.shape[3] + corners[:, 1:, None]
    every_start = padded.as_strided((max(padded.numel() - width + 1, 0), width), (1, 1))
    return every_start.index_select(0, starts.flatten()).view(images.shape)


def _erase(images: Tensor, rectangles: Tensor) -> Tensor:
    """Overwrites rectangles of `images` in place."""
    height, width = images.shape[2:]
    top, left, rows, columns = rectangles[..., None].unbind(1)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside_rows = (y >= top) & (y < top + rows)
    inside_columns = (x >= left) & (x < left + columns)
    erased = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return torch.where(erased, _per_channel(CLIP_MEAN, images), images, out=images)


def _draw_rectangles(
    num_images: int, height: int, width: int, config: AugmentConfig, generator: torch.Generator
) -> Tensor:
    """[B, 4] int64: top, left, rows and columns of a rectangle inside each image; zeros where no try fitted.

    The area is uniform and the ratio log-uniform in their ranges; the first of `ERASE_TRIES` that fits is taken.
    """

    def uniform(shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        # float64: in float32, floor(u * n) can reach n
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    area = height * width * uniform((num_images, ERASE_TRIES), *config.erase_area)
    ratio = uniform((num_images, ERASE_TRIES), *map(math.log, config.erase_ratio)).exp()
    place = uniform((num_images, 2))
    sizes = torch.stack(((area * ratio).sqrt().round(), (area / ratio).sqrt().round()), dim=2)
    fits = (sizes[..., 0] < height) & (sizes[..., 1] < width)
    first = fits.long().argmax(1)
    size = sizes[torch.arange(num_images), first] * fits.any(1)[:, None]
    corner = (place * (torch.tensor([height, width]) - size + 1)).floor()
    return torch.cat((corner, size), dim=1).long()


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    return to_device(torch.tensor(values), images.device).view(1, 3, 1, 1)


@contextmanager
def _errors_naming(name: str) -> Iterator[None]:
    """What reading and decoding raise, as a ValueError that names the image and a remedy."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{name}: no such image; put it there or take its record out") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image of a known format ({', '.join(FORMATS)}); {REMEDY}") from None
    except BOMBS as error:
        raise ValueError(f"{name}: not a sound image: {error}; scale it down") from None
    except DECODING_ERRORS as error:
        raise ValueError(f"{name}: not a sound image: {' '.join(str(error).split())}; {REMEDY}") from None


def _decode_file(data: bytes) -> NDArray[np.uint8]:
    if not data:
        raise ValueError("the file is empty")
    if data.startswith(JPEG_SIGNATURE):
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width)
        num_scans = data.count(JPEG_SCAN)
        if num_scans * height * width > MAX_SCANNED_PIXELS:
            raise ValueError(f"{num_scans:,} scans of {width} x {height} pixels would take too long to decode")
        if colours in ("RGB", "YCbCr", "Gray"):
            # Strict: Pillow fills the lost part of a damaged file with grey and says nothing.
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
            return pixels
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _rgb(image)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    _check_size(image.height, image.width)
    if image.mode.startswith("I"):  # 16-bit grey; convert() would clip it to white
        grey = np.asarray(image).clip(0, 2**16 - 1)
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are real numbers of unknown range, not 8 bits per channel")
    elif "transparency" in image.info:  # straight to RGB, Pillow warns about palettes with transparency
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
