"""Charts of the evidence behind the means."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cskt.evaluation.analysis import Similarities
from cskt.report.evidence import (
    MAX_LABELS,
    NUM_BARS,
    Curve,
    attribute_bars,
    cmc_curves,
    confusion_matrix,
    similarity_histograms,
)
from cskt.report.style import BLUE, DARK, GREEN, INK, LINES, VERMILION, png, shorten, svg


def curve(label: str, start: float, count: int = 20) -> Curve:
    mean = start + (1 - start) * np.linspace(0, 0.9, count)
    return Curve(label, mean, np.maximum(mean - 0.1, 0), np.minimum(mean + 0.05, 1))


def similarities(counts: Iterable[np.ndarray]) -> Similarities:
    right, wrong, best_wrong = counts
    return Similarities(right, wrong, best_wrong, margin=np.zeros(0), first_answer=np.zeros(0, np.int64))


def drawn_similarities() -> Similarities:
    rng = np.random.default_rng(0)
    drawn = (rng.normal(centre, 60, count).astype(int) for centre, count in ((1500, 300), (1100, 9000), (1400, 100)))
    return similarities(np.bincount(places, minlength=2000) for places in drawn)


def bars() -> Figure:
    shares = np.array([0.2, 0.9, 0.5])
    return attribute_bars(["upper_colour", "skin", "bag"], shares, np.array([0.8, 0.85, 0.5]), shares - 0.1, shares)


def texts(figure: Figure) -> list[str]:
    figure.canvas.draw()
    axes = figure.axes[0]
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    "figure",
    [
        cmc_curves([curve("cskt", 0.5)]),
        cmc_curves([curve(f"run-{number}", 0.0) for number in range(len(LINES))]),
        cmc_curves([curve("a gallery of one image", 1.0, count=1)]),
        similarity_histograms({"cskt": drawn_similarities()}),
        similarity_histograms({"cskt": drawn_similarities(), "clip": drawn_similarities()}),
        similarity_histograms({"no pairs at all": similarities(np.zeros((3, 2000), dtype=np.int64))}),
        similarity_histograms({"one bin": similarities(np.eye(2000, dtype=np.int64)[[1999, 1999, 1999]])}),
        bars(),
        confusion_matrix(["red"], np.array([[3]])),
        confusion_matrix(["red", "blue"], np.array([[0, 0], [1, 5]])),
    ],
)  # fmt: skip
def test_any_numbers_give_an_svg_for_light_and_dark_pages(figure: Figure) -> None:
    drawing = svg(figure)
    assert ET.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
    body, style = drawing.decode().split("<style>@media (prefers-color-scheme: dark)")
    assert len(drawing) < 400_000
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", body)) - {"#000000"}
    assert used <= DARK.keys(), "every colour has its partner on a dark page"
    assert all(f'"fill: {light}"' in style for light in used)


def test_cmc_lines_start_at_r1_and_are_named_with_it() -> None:
    figure = cmc_curves([curve("cskt", 0.5), curve("a-run-with-a-very-long-name-seed-3", 0.25)])
    assert texts(figure) == ["cskt\nR1 50.0", "a-run-with…name-seed-3\nR1 25.0"]
    first, second = figure.axes[0].lines
    assert first.get_ydata()[0] == pytest.approx(50) and second.get_ydata()[0] == pytest.approx(25)
    assert list(first.get_xdata()) == list(range(1, 21))
    assert [line.get_color() for line in (first, second)] == [BLUE, VERMILION]
    assert len({line.get_marker() for line in (first, second)}) == 2
    low = figure.axes[0].get_ylim()[0]
    assert low == pytest.approx(10), "all of the lower band is seen"


def test_a_band_reaches_from_its_lower_to_its_upper_ends() -> None:
    shown = curve("cskt", 0.5)
    (band,) = cmc_curves([shown]).axes[0].collections
    corners = band.get_paths()[0].vertices
    at_first_rank = corners[corners[:, 0] == 1, 1]
    assert {round(at_first_rank.min(), 6), round(at_first_rank.max(), 6)} == {40.0, 55.0}


def test_the_band_is_explained_beside_the_plot() -> None:
    (legend,) = cmc_curves([curve("cskt", 0.5)]).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "line: these queries",
        "band: 95 % interval over people",
    ]


def test_more_lines_than_colours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"9 curves; more than 8 cannot be distinguished"):
        cmc_curves([curve("x", 0.5)] * 9)


def test_histograms_show_every_pair_once_scaled_to_the_same_area() -> None:
    counts = drawn_similarities()
    figure = similarity_histograms({"cskt": counts})
    wrong, right, _, best_wrong = figure.axes[0].patches
    for stairs, whole in ((wrong, counts.wrong), (right, counts.right), (best_wrong, counts.best_wrong)):
        values, edges, _ = stairs.get_data()
        assert values.sum() == pytest.approx(1)
        assert len(values) <= NUM_BARS
        centres = (edges[1:] + edges[:-1]) / 2
        fine = (np.arange(2000) + 0.5) / 1000 - 1
        assert (values * centres).sum() == pytest.approx((whole * fine).sum() / whole.sum(), abs=0.01)
    assert right.get_facecolor()[:3] == pytest.approx(mpl.colors.to_rgb(GREEN))


def test_attributes_are_sorted_with_the_furthest_below_chance_on_top() -> None:
    figure = bars()
    figure.canvas.draw()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["skin", "bag", "upper colour"], "from the bottom up"
    chance, shares = figure.axes[0].lines[-2:]
    assert list(chance.get_xdata()) == pytest.approx([85, 50, 80])
    assert list(shares.get_xdata()) == pytest.approx([90, 50, 20])


def test_a_confusion_matrix_is_in_percent_of_its_rows() -> None:
    figure = confusion_matrix(["red", "blue", "teal"], np.array([[3, 1, 0], [0, 400, 1], [0, 0, 0]]))
    assert texts(figure) == ["75", "25", "100", "<1"]
    cells = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    diagonal = [cell.get_facecolor()[:3] for cell in cells if cell.get_x() == cell.get_y()]
    assert diagonal == [pytest.approx(mpl.colors.to_rgb(GREEN))] * 2
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["red  4", "blue  401", "teal  0"]


def test_rare_values_are_joined() -> None:
    labels = [f"colour {number}" for number in range(MAX_LABELS + 5)]
    counts = np.eye(len(labels), dtype=np.int64) * 2
    counts[0, -1] = 1
    figure = confusion_matrix(labels, counts)
    figure.canvas.draw()
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(rows) == MAX_LABELS
    assert rows[0] == "colour 0  3" and rows[-1] == "others  12"
    assert texts(figure)[:2] == ["67", "33"]


def test_a_picture_is_a_png_in_light_colours() -> None:
    with Image.open(io.BytesIO(png(bars()))) as picture:
        assert picture.format == "PNG" and picture.width > 900
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_drawing_twice_gives_the_same_bytes_and_leaves_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)
    assert svg(bars()) == svg(bars())
    assert dict(mpl.rcParams) == before


def test_a_long_name_gives_way_in_its_middle() -> None:
    assert shorten("short") == "short"
    assert shorten("x" * 22) == "x" * 22
    assert len(shorten("a" * 30 + "b" * 30)) == 22
    assert shorten("20260101_120000_cskt-seed-1") != shorten("20260101_120000_cskt-seed-2")
    assert DARK[INK] != INK
