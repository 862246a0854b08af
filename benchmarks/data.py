"""Reading image files into uint8 tensors of 384 x 128 on one core: Pillow, our decoding, the cache of resized images.

    python -m benchmarks.data

The files are generated pedestrians with the sizes of surveillance crops, 150 to 800 pixels high and two fifths as wide,
with camera noise, as JPEG of quality 90. They are in the system's page cache. Pillow is used as in the released code:
open, convert to RGB, resize bilinearly, convert to a tensor. The time of cached images includes reading each file and
computing its SHA-256, as a run does.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Row
from cskt.data.images import ImageReader
from cskt.data.loading import iter_images
from cskt.data.paperdoll import draw_person, sample_attributes, stable_random
from cskt.image_files.limits import MAX_ASPECT_RATIO, MAX_SIDE_PIXELS

HEIGHT, WIDTH = 384, 128
HEIGHTS_PIXELS = (150, 800)
ASPECT = 0.4
QUALITY = 90
BATCH_SIZE = 128
BASELINE = "Pillow: Image.open(path).convert('RGB').resize((128, 384), BILINEAR)"


def write_crops(folder: Path, count: int) -> list[Path]:
    """Write `count` JPEG files of people with heights evenly spaced over `HEIGHTS_PIXELS`."""
    paths = []
    for number, height in enumerate(np.linspace(*HEIGHTS_PIXELS, count).round().astype(int).tolist()):
        rng: random.Random = stable_random("benchmarks.data", number)
        drawing = draw_person(sample_attributes(rng), rng, size_pixels=(round(ASPECT * height), height))
        paths.append(folder / f"{number}.jpg")
        drawing.image.save(paths[-1], quality=QUALITY)
    return paths


def with_pillow(paths: list[Path]) -> list[Tensor]:
    """Return batches [b, 3, H, W] uint8 as in the released code before normalisation."""

    def read(path: Path) -> Tensor:
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    starts = range(0, len(paths), BATCH_SIZE)
    return [torch.stack([read(path) for path in paths[start : start + BATCH_SIZE]]) for start in starts]


def ours(paths: list[Path], cache_dir: Path | None = None) -> list[Tensor]:
    """Return the same batches from the package, computed in the calling thread."""
    return list(iter_images(paths, ImageReader(HEIGHT, WIDTH), BATCH_SIZE, 0, cache_dir))


def rows(quick: bool = False) -> list[Row]:
    """Measure decoding without and with the cache, and the first filling of the cache."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return _rows(Path(scratch), count=16 if quick else 256, repeats=3 if quick else 9)
    finally:
        torch.set_num_threads(threads)


def _rows(scratch: Path, count: int, repeats: int) -> list[Row]:
    paths = write_crops(scratch, count)
    cache, first = scratch / "cache", scratch / "first"
    cold, cached = torch.cat(ours(paths)), torch.cat(ours(paths, cache))
    assert torch.equal(cached, cold)
    difference = int((torch.cat(with_pillow(paths)).int() - cold.int()).abs().max())

    def fill() -> None:
        shutil.rmtree(first, ignore_errors=True)
        ours(paths, first)

    calls: dict[str, Callable[[], object]] = {
        "pillow": lambda: with_pillow(paths),
        "decoded": lambda: ours(paths),
        "cached": lambda: ours(paths, cache),
        "cached, first time": fill,
    }
    seconds = measure.medians(calls, repeats)

    def row(variant: str, bar: float | None) -> Row:
        return Row(
            f"{count} crops from JPEG to {HEIGHT} x {WIDTH}, one core",
            variant,
            BASELINE,
            seconds["pillow"],
            seconds[variant],
            bar,
            {
                "milliseconds an image": 1000 * seconds[variant] / count,
                "Pillow's milliseconds an image": 1000 * seconds["pillow"] / count,
                "mean kilobytes of a file": sum(path.stat().st_size for path in paths) / count / 1000,
                "largest difference from Pillow, grey levels": difference,
            },
            at_most={"largest difference from Pillow, grey levels": 1},
        )

    return [row("decoded", 2), row("cached", 10), row("cached, first time", None), _extreme_row(scratch, repeats)]


def _extreme_row(scratch: Path, repeats: int) -> Row:
    """Measure the narrowest and highest picture within the limits, which is reduced in two passes."""
    path = scratch / "extreme.png"
    width, height = MAX_SIDE_PIXELS // MAX_ASPECT_RATIO, MAX_SIDE_PIXELS
    Image.effect_noise((width, height), 60).convert("1").save(path)
    calls: dict[str, Callable[[], object]] = {"pillow": lambda: with_pillow([path]), "ours": lambda: ours([path])}
    seconds = measure.medians(calls, repeats)
    return Row(
        f"a PNG of {width} x {height} pixels to {HEIGHT} x {WIDTH}, one core", "decoded", BASELINE,
        seconds["pillow"], seconds["ours"], None, {"milliseconds an image": 1000 * seconds["ours"]},
    )  # fmt: skip


if __name__ == "__main__":
    measure.main(rows, __doc__)
