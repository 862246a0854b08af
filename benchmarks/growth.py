"""Growth of time with the size of the input: text and image encoding, metrics and indexing at three sizes each.

    python -m benchmarks.growth --plot docs/images/growth.svg

Linear growth is a straight line with slope 1 on logarithmic axes. The model is clip-tiny, because overheads have the
largest share with a small model.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.towers import draw_sentences
from cskt import load, metrics
from cskt.data.paperdoll import make_dataset
from cskt.embed import Encoder
from cskt.gallery.gallery import Gallery
from cskt.report.style import INK, LINES, MUTED, STYLE, new_figure, svg

TIMES_LARGER = (1, 2, 4)
SMALLEST = {"text encode": 500, "image encode": 250, "metrics": 2500, "index": 250}
"""Smallest number of captions, images, queries or crops; larger sizes are `TIMES_LARGER` times as many."""
QUICK_DIVISOR = 10
GALLERY_SIZE, DIMENSIONS = 5000, 512
"""Gallery size of the metrics, whose queries grow."""
REPEATS = 3
LARGEST_EXPONENT = 1.1

Works = Mapping[str, Mapping[int, Callable[[], object]]]
"""Name of a task -> size -> the task at that size."""
Growth = dict[str, dict[int, float]]
"""Name of a task -> size -> median seconds."""


def works(smallest: Mapping[str, int], encoder: Encoder, scratch: Path) -> Works:
    """Return all tasks, with their inputs prepared."""
    sizes = {work: [times * size for times in TIMES_LARGER] for work, size in smallest.items()}
    generator = torch.Generator().manual_seed(1)
    architecture = encoder.model.architecture
    captions = draw_sentences(sizes["text encode"][-1])
    pixels = (3, architecture.image_height, architecture.image_width)
    images = torch.randn(sizes["image encode"][-1], *pixels, generator=generator)
    queries = F.normalize(torch.randn(sizes["metrics"][-1], DIMENSIONS, generator=generator))
    gallery = F.normalize(torch.randn(GALLERY_SIZE, DIMENSIONS, generator=generator))
    query_ids, gallery_ids = torch.arange(len(queries)) % 1000, torch.arange(len(gallery)) % 1000
    folders = {
        size: make_dataset(scratch / f"people-{size}", layout="jsonl", ids={"test": size}, images_per_id=1, seed=1)
        for size in sizes["index"]
    }

    def index(size: int) -> None:
        with (
            tempfile.TemporaryDirectory(dir=scratch) as place,
            Gallery.create(Path(place) / "gallery", encoder) as made,
        ):
            made.index(folders[size] / "imgs")
            assert made.count() == size

    def rank(size: int) -> object:
        return metrics.from_features(queries[:size], gallery, query_ids[:size], gallery_ids)

    by_work: dict[str, Callable[[int], object]] = {
        "text encode": lambda size: encoder.encode_text(captions[:size]),
        "image encode": lambda size: encoder.encode_image(images[:size]),
        "metrics": rank,
        "index": index,
    }
    return {work: {size: partial(run, size) for size in sizes[work]} for work, run in by_work.items()}


def measure_growth(quick: bool = False) -> Growth:
    """Return the median seconds of every task at its three sizes, alternating the sizes."""
    smallest = {work: size // QUICK_DIVISOR for work, size in SMALLEST.items()} if quick else SMALLEST
    with tempfile.TemporaryDirectory() as scratch:
        seconds = {}
        for work, calls in works(smallest, load("clip-tiny", device="cpu"), Path(scratch)).items():
            taken = measure.alternate({str(size): call for size, call in calls.items()}, REPEATS)
            seconds[work] = {int(size): statistics.median(times) for size, times in taken.items()}
        return seconds


def exponent(seconds: Mapping[int, float]) -> float:
    """Return the least-squares slope of log seconds over log size: 1 for linear growth."""
    return float(np.polyfit(np.log(list(seconds)), np.log(list(seconds.values())), 1)[0])


def plot(growth: Growth) -> Figure:
    """Draw time over input size, relative to the smallest, on logarithmic axes, with the line of linear growth."""
    with mpl.rc_context(STYLE):
        figure = new_figure(5.6, 4.2)
        axes = figure.subplots()
        axes.set_title("Time against input, both relative to the smallest")
        axes.plot(TIMES_LARGER, TIMES_LARGER, color=INK, linestyle=(0, (1.5, 2.5)), linewidth=1.3, label="linear")
        for (work, seconds), (color, marker) in zip(growth.items(), LINES, strict=False):
            sizes = list(seconds)
            least = seconds[sizes[0]]
            label = f"{work}, {sizes[0]:,} to {sizes[-1]:,}: exponent {exponent(seconds):.2f}"
            times = [value / least for value in seconds.values()]
            axes.plot([size / sizes[0] for size in sizes], times, color=color, marker=marker, markersize=5, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator(TIMES_LARGER))
            axis.set_major_formatter(StrMethodFormatter("{x:g} ×"))
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel("input")
        axes.set_ylabel("time")
        axes.legend(loc="upper left", frameon=False, fontsize=9.5, labelcolor=MUTED)
    return figure


def to_rows(growth: Growth) -> list[Row]:
    """Return rows that compare the largest size of each task with linear growth from the smallest."""
    made = []
    for work, seconds in growth.items():
        smallest, *_, largest = seconds
        made.append(
            Row(
                f"growth of {work}, {smallest:,} to {largest:,}",
                "float32",
                "linear growth from the smallest size",
                seconds[smallest] * largest / smallest,
                seconds[largest],
                None,
                {"exponent": exponent(seconds)},
                at_most={"exponent": LARGEST_EXPONENT},
            )
        )
    return made


def rows(quick: bool = False) -> list[Row]:
    """Format one row per task."""
    return to_rows(measure_growth(quick))


def main() -> None:
    """Print the table and draw it if a file is given."""
    parser = measure.parser(__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG drawing there")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = measure.machine()
    growth = measure_growth(args.quick)
    measure.show(to_rows(growth), args, before)
    if args.plot:
        args.plot.write_bytes(svg(plot(growth)))


if __name__ == "__main__":
    main()
