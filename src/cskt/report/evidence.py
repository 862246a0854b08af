"""Charts of the evidence behind the means: CMC curves, similarities, attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter

from cskt.errors import CsktError
from cskt.evaluation.analysis import Similarities
from cskt.evaluation.results import Floats, Integers
from cskt.report import style

NUM_BARS = 70
"""Most bars of a histogram, over the cosines that occur."""
MAX_LABELS = 18
"""Most rows of a confusion matrix whose numbers can be read."""


@dataclass(frozen=True)
class Curve:
    """A line with its band: [K] fractions, for ranks 1 to K."""

    label: str
    mean: Floats
    low: Floats
    high: Floats


def cmc_curves(curves: Sequence[Curve]) -> Figure:
    """Draw the cumulative matching characteristic: queries with a right image among the first 1, 2, ... images."""
    if len(curves) > len(style.LINES):
        raise CsktError(f"{len(curves)} curves; more than {len(style.LINES)} cannot be distinguished")
    with mpl.rc_context(style.STYLE):
        figure = style.new_figure(4.9, 4.2)
        axes = figure.subplots()
        labels, faint = [], 0.2 if len(curves) <= 3 else 0.07  # many bands overlap
        for curve, (color, marker) in zip(curves, style.LINES, strict=False):
            ranks = np.arange(1, len(curve.mean) + 1)
            axes.fill_between(ranks, 100 * curve.low, 100 * curve.high, color=color, alpha=faint, linewidth=0)
            axes.plot(ranks, 100 * curve.mean, color=color, marker=marker, markersize=4.5, clip_on=False, zorder=3)
            labels.append((100 * curve.mean[-1], f"{style.shorten(curve.label)}\nR1 {100 * curve.mean[0]:.1f}", color))
        last = max(len(curve.mean) for curve in curves)
        axes.set_xlim(1, max(last, 2))
        lowest = min(float(100 * curve.low.min()) for curve in curves)
        axes.set_ylim(max(0.0, 10 * np.floor(lowest / 10)), 100)
        axes.set_xticks([rank for rank in (1, 5, 10, 15, 20) if rank <= last])
        axes.set_xlabel("number of images n")
        axes.set_title("Queries with a right image\namong the first n (%)")
        style.label_ends(axes, labels, lines_of_text=8)
        keys = [
            Line2D([], [], color=style.MUTED, marker="o", markersize=4.5, label="line: these queries"),
            Patch(color=style.MUTED, alpha=0.3, linewidth=0, label="band: 95 % interval over people"),
        ]
        figure.legend(
            handles=keys, loc="outside lower left", ncols=2, frameon=False, fontsize=10, labelcolor=style.MUTED
        )
    return figure


def similarity_histograms(models: Mapping[str, Similarities]) -> Figure:
    """Draw cosines of right and wrong pairs and of each query's best wrong image, one panel per model.

    Each histogram is scaled to its own number of pairs, because there are far more wrong pairs than right ones.
    """
    counts_RSN = np.array([[one.right, one.wrong, one.best_wrong] for one in models.values()], dtype=np.float64)
    num_bins = counts_RSN.shape[2]
    used = np.flatnonzero(counts_RSN.sum(axis=(0, 1)))
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, num_bins)
    width = max(1, -(-(last - first) // NUM_BARS))
    starts = np.arange(first, last, width)
    edges = np.append(starts, starts[-1] + width) * 2 / num_bins - 1
    with mpl.rc_context(style.STYLE):
        heights = {1: 3.4, 2: 1.9, 3: 1.7}.get(len(models), 1.4)
        figure = style.new_figure(4.9, 0.75 + heights * len(models))
        panels = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
        for axes, label, counts in zip(panels, models, counts_RSN, strict=True):
            shares = np.add.reduceat(counts[:, :last], starts, axis=1)
            shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
            axes.stairs(shares[1], edges, color=style.VERMILION, fill=True, alpha=0.35, label="wrong pairs")
            axes.stairs(shares[0], edges, color=style.GREEN, fill=True, alpha=0.45, label="right pairs")
            axes.stairs(shares[0], edges, color=style.GREEN, linewidth=1.5)
            dashed: Any = {"linewidth": 1.5, "linestyle": (0, (3, 1.5))}
            axes.stairs(shares[2], edges, color=style.VERMILION, label="best wrong image", **dashed)
            axes.set(yticks=[], ylim=(0, None))
            axes.set_title(style.shorten(label, 40))
        panels[-1].set_xlabel("cosine similarity")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper left", ncols=3, frameon=False, fontsize=10, labelcolor=style.MUTED,
            handlelength=1.4, columnspacing=1.2,
        )  # fmt: skip
    return figure


def attribute_bars(names: Sequence[str], shares: Floats, chance: Floats, low: Floats, high: Floats) -> Figure:
    """Draw how often each of A attributes of a wrong first answer differs from the person sought, against chance.

    Shares, the ends of their intervals, and the chance for a random image of anybody else are fractions [A].
    """
    # from the bottom up, so that the attribute furthest below chance is on top
    order = np.argsort(shares - chance, kind="stable")[::-1]
    with mpl.rc_context(style.STYLE):
        figure = style.new_figure(4.9, 1.1 + 0.29 * len(names))
        axes = figure.subplots()
        heights = np.arange(len(order))
        shares, chance = 100 * shares[order], 100 * chance[order]
        axes.hlines(heights, chance, shares, color=style.GRID, linewidth=5, zorder=1)
        axes.hlines(heights, 100 * low[order], 100 * high[order], color=style.BLUE, linewidth=1.4, zorder=2)
        axes.plot(chance, heights, "|", color=style.INK, markersize=11, markeredgewidth=2, zorder=3, label="chance")
        axes.plot(
            shares,
            heights,
            "o",
            color=style.BLUE,
            markersize=6,
            zorder=4,
            label="wrong first answers, with 95 % interval",
        )
        axes.set_yticks(heights, [names[attribute].replace("_", " ") for attribute in order])
        axes.tick_params(axis="y", labelcolor=style.INK)
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_xlim(0, 100)
        axes.xaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
        axes.set_xlabel("differs from the person sought")
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=10, labelcolor=style.MUTED)
    return figure


def confusion_matrix(labels: Sequence[str], counts: Integers) -> Figure:
    """Draw counts [C, C] of values sought by row and found by column, each row in percent; rare values are joined."""
    labels, counts = _join_rare(labels, counts)
    num = len(labels)
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    with mpl.rc_context(style.STYLE | {"axes.grid": False}):
        side = max(2.2, 0.31 * num)
        figure = style.new_figure(side + 1.6, side + 1.3)
        axes = figure.subplots()
        for row in range(num):
            for column in range(num):
                if counts[row, column]:
                    _cell(axes, row, column, float(shares[row, column]))
        axes.set(xlim=(-0.5, num - 0.5), ylim=(num - 0.5, -0.5), aspect="equal")
        axes.set_xticks(range(num), labels, rotation=90)
        sought = [f"{label}  {total:,}" for label, total in zip(labels, totals.tolist(), strict=True)]
        axes.set_yticks(range(num), sought)
        axes.tick_params(length=0, labelcolor=style.INK)
        axes.xaxis.set_ticks_position("top")
        axes.xaxis.set_label_position("top")
        axes.set(xlabel="found", ylabel="sought, and in how many queries")
        for edge in range(num + 1):
            axes.axhline(edge - 0.5, color=style.GRID, linewidth=0.7, zorder=0)
            axes.axvline(edge - 0.5, color=style.GRID, linewidth=0.7, zorder=0)
        axes.spines[["bottom", "left"]].set_visible(False)
    return figure


def _cell(axes: Axes, row: int, column: int, share: float) -> None:
    color = style.GREEN if row == column else style.VERMILION
    # light enough for the number to be read, on a light page and on a dark one
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, alpha=0.08 + 0.47 * share, linewidth=0))
    text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
    axes.text(column, row, text, ha="center", va="center", fontsize=10, color=style.INK)


def _join_rare(labels: Sequence[str], counts: Integers) -> tuple[list[str], Integers]:
    if len(labels) <= MAX_LABELS:
        return list(labels), counts
    kept = MAX_LABELS - 1
    starts = np.arange(MAX_LABELS)  # the last reaches to the end
    joined = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    return [*labels[:kept], "others"], joined
