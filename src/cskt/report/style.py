"""Common style of all charts of a report, and their conversion to SVG and PNG.

An SVG has no background and contains a second set of colours for dark pages. Lines differ in colour (the palette of
Okabe and Ito, safe for colour-blind readers, and four more colours) and marker, and have their name at their end.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

INK, MUTED, GRID, PAPER = "#1c2128", "#5b6472", "#e3e6eb", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#b0468c"
LINES = (
    (BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"),
    ("#8a6a00", "v"), ("#6a4fc4", "P"), ("#007c8a", "X"), ("#9c3a3a", "p"),
)  # fmt: skip
"""Colour and marker of the first, second, ... line; more could not be distinguished."""
DARK = {
    INK: "#e6e9ee", MUTED: "#a2abb8", GRID: "#2b323c", PAPER: "#171b22",
    BLUE: "#5cb8f2", VERMILION: "#ff8f55", GREEN: "#3ccf9f", PURPLE: "#e391c6",
    "#8a6a00": "#e0b93d", "#6a4fc4": "#b3a0ff", "#007c8a": "#4fd0df", "#9c3a3a": "#f08a8a",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlepad": 9, "text.color": INK, "axes.titlecolor": INK, "axes.labelcolor": MUTED, "axes.edgecolor": MUTED,
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "ytick.left": False,
    "axes.facecolor": "none", "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "lines.linewidth": 1.8,
    "svg.fonttype": "path", "svg.hashsalt": "cskt",
}  # fmt: skip
PNG_DOTS_PER_INCH = 200


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """Return an empty figure; up to 5 inches wide, a phone shows it whole."""
    return Figure(figsize=(width_inches, height_inches), layout=ConstrainedLayoutEngine(h_pad=0.08, hspace=0.06))


def svg(figure: Figure) -> bytes:
    """Return a figure as SVG (UTF-8) with colours for light and dark pages; equal figures give equal bytes."""
    drawing = io.BytesIO()
    with mpl.rc_context(STYLE):  # ticks are created when the figure is saved
        figure.savefig(drawing, format="svg", metadata={"Date": None}, facecolor="none")
    return _with_dark_colors(drawing.getvalue())


def png(figure: Figure) -> bytes:
    """Return a figure as PNG in its light colours, sharp enough for print."""
    drawing = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(drawing, format="png", dpi=PNG_DOTS_PER_INCH)
    return drawing.getvalue()


def shorten(name: str, length: int = 22) -> str:
    """Shorten a name in the middle, because runs differ at the ends of their names."""
    if len(name) <= length:
        return name
    return f"{name[: length // 2 - 1]}…{name[-(length - length // 2) :]}"


def spread(positions: Sequence[float], gap: float, top: float) -> list[float]:
    """Move positions apart to at least `gap`, in the same order; below `top` if there is enough space."""
    order = np.argsort(positions, kind="stable")
    placed = [0.0] * len(positions)
    floor = -np.inf
    for index in order:
        placed[index] = floor = max(positions[index], floor + gap)
    ceiling = top
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def markers(marker: str, count: int) -> dict[str, Any]:
    """Return the settings of a line of `count` points with about fifteen markers."""
    return {"marker": marker, "markersize": 4.5, "markevery": max(1, count // 15)}


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], lines_of_text: int) -> None:
    """Write labels (height, text, colour) to the right of the plot, without overlaps, each joined to its line's end."""
    bottom, top = axes.get_ylim()
    heights = spread([height for height, _, _ in labels], gap=(top - bottom) / lines_of_text, top=top)
    for height, (end, text, color) in zip(heights, labels, strict=True):
        axes.annotate(
            text, (1, end), xycoords=("axes fraction", "data"), xytext=(1.07, height),
            textcoords=("axes fraction", "data"), color=color, va="center", fontsize=10, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.9, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def integer_ticks(axes: Axes, values: Sequence[int]) -> None:
    """Set ticks at integers on the horizontal axis, where the lines have these values."""
    if len(values) < 2:  # matplotlib would show fractions around a single point
        middle = values[0] if values else 0
        axes.set_xlim(middle - 0.5, middle + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _with_dark_colors(drawing: bytes) -> bytes:
    """Add a style sheet that replaces the colours, which matplotlib writes into each element, on a dark page."""
    rules = "".join(
        f'[style*="{role}: {light}"]{{{role}:{dark} !important}}'
        for light, dark in DARK.items()
        if light.encode() in drawing
        for role in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style></svg>"
    return drawing.replace(b"</svg>", style.encode())
