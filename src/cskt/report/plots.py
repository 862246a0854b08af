"""Learning curves of a run, drawn from the events of its `metrics.jsonl`.

The result is an SVG that carries a second set of colours for dark pages, its background included, so it stays
legible wherever it is shown. Series differ in marker and carry their name at the line's end: colour (Okabe and Ito's
palette, safe for colour-blind readers) is never the only sign.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cskt.report.tables import METRIC_NAMES

Event = Mapping[str, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]

INK, MUTED, GRID, PAPER = "#1c2128", "#5b6472", "#e3e6eb", "#ffffff"
# key in the summary -> colour and marker; mINP is left to the table, a fifth line would hide the others
SERIES = {
    "r1": ("#0072b2", "o"),
    "r5": ("#d55e00", "s"),
    "r10": ("#009e73", "^"),
    "mean_ap": ("#b0468c", "D"),
}
REFERENCES = {"zero-shot": (0, (6, 3)), "step-0": (0, (1.5, 2.5))}
LOSS_COLORS = ("#d55e00", "#009e73", "#b0468c", "#0072b2")
DARK = {
    INK: "#e6e9ee", MUTED: "#a2abb8", GRID: "#2b323c", PAPER: "#171b22",
    "#0072b2": "#5cb8f2", "#d55e00": "#ff8f55", "#009e73": "#3ccf9f", "#b0468c": "#e391c6",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlepad": 9, "text.color": INK, "axes.titlecolor": INK, "axes.labelcolor": MUTED, "axes.edgecolor": MUTED,
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "ytick.left": False,
    "axes.facecolor": "none", "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "lines.linewidth": 1.8,
    "svg.fonttype": "path", "svg.hashsalt": "cskt",
}  # fmt: skip
SMOOTH_FROM = 120
"""From so many points on, the loss is drawn faint under its running mean."""


def learning_curves(events: Iterable[Event]) -> bytes:
    """Retrieval by epoch, loss by step and learning rate by step, one below the other.

    Args:
        events: the objects of `metrics.jsonl` in order. Where a resumed run wrote a step or an epoch again, the later
            line counts. Events of other kinds are ignored.

    Returns:
        An SVG document (UTF-8). The same events give the same bytes.
    """
    events = list(events)
    steps = [event for event in events if event.get("event") == "step"]
    evaluations = [event for event in events if event.get("event") == "evaluation"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.9, 7.2), layout=ConstrainedLayoutEngine(h_pad=0.08, hspace=0.06))
        retrieval, loss, rate = figure.subplots(3, 1, height_ratios=(3.2, 2.2, 1.2))
        for axes, title, draw, found in (
            (retrieval, "Retrieval (%)", _draw_retrieval, evaluations),
            (loss, "Loss", _draw_loss, steps),
            (rate, "Learning rate", _draw_rate, steps),
        ):
            axes.set_title(title)
            if found:
                draw(axes, found)
            else:
                axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=MUTED)
                axes.set(xticks=[], yticks=[])
        drawing = io.BytesIO()
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    return _with_dark_colors(drawing.getvalue())


def _draw_retrieval(axes: Axes, evaluations: Sequence[Event]) -> None:
    shown = next((event for event in reversed(evaluations) if event["stage"] == "epoch"), evaluations[-1])
    # a figure of another split or data set would not be comparable with these lines
    evaluations = [event for event in evaluations if _where(event) == _where(shown)]
    axes.set_xlabel("epoch (text to image on {} {})".format(*_where(shown)))
    by_epoch = {event["epoch"]: event["t2i"] for event in evaluations if event["stage"] in ("step-0", "epoch")}
    epochs = sorted(by_epoch)
    labels = []
    highest = 0.0
    for key, (color, marker) in SERIES.items():
        values = [100 * by_epoch[epoch][key] for epoch in epochs]
        axes.plot(epochs, values, color=color, **_markers(marker, len(epochs)))
        if epochs:
            highest = max(highest, *values)
            labels.append((values[-1], f"{METRIC_NAMES[key]} {values[-1]:.1f}", color))
    for stage, dashes in REFERENCES.items():
        figures = [100 * event["t2i"]["r1"] for event in evaluations if event["stage"] == stage]
        if figures:
            color = SERIES["r1"][0]
            axes.axhline(figures[-1], color=color, linestyle=dashes, linewidth=1.3)
            highest = max(highest, figures[-1])
            labels.append((figures[-1], f"R1 {stage} {figures[-1]:.1f}", color))
    axes.set_ylim(0, max(10.0, 1.06 * highest))
    _whole_numbers(axes, epochs)
    _label_ends(axes, labels, lines_of_text=14)


def _draw_loss(axes: Axes, steps: Sequence[Event]) -> None:
    by_step = {event["step"]: event for event in steps}
    numbers = sorted(by_step)
    names = sorted({name for event in by_step.values() for name in event.get("losses", {})})
    lines = {"total": (INK, [by_step[number]["loss"] for number in numbers])}
    if len(names) > 1:
        for position, name in enumerate(names):
            values = [by_step[number].get("losses", {}).get(name, np.nan) for number in numbers]
            lines[name] = (LOSS_COLORS[position % len(LOSS_COLORS)], values)
    labels = []
    for name, (color, values) in lines.items():
        shown = np.asarray(values, dtype=np.float64)
        if len(numbers) < SMOOTH_FROM:
            axes.plot(numbers, shown, color=color, **_markers("o", len(numbers)))
        else:
            axes.plot(numbers, shown, color=color, alpha=0.25, linewidth=0.8)
            shown = running_mean(shown, len(numbers) // 40)
            axes.plot(numbers, shown, color=color)
        if np.isfinite(shown[-1]):
            labels.append((float(shown[-1]), f"{name} {shown[-1]:.3g}", color))
    if len(numbers) >= SMOOTH_FROM:
        axes.set_title("running mean in bold", loc="right", color=MUTED, fontsize=9.5, fontweight="normal")
    axes.set_xlabel("step")
    _whole_numbers(axes, numbers)
    _label_ends(axes, labels, lines_of_text=9)


def _draw_rate(axes: Axes, steps: Sequence[Event]) -> None:
    by_step = {event["step"]: event["lr"] for event in steps}
    numbers = sorted(by_step)
    highest = max(by_step.values())
    exponent = math.floor(math.log10(highest)) if highest > 0 else 0
    rates = [by_step[number] / 10.0**exponent for number in numbers]
    axes.set_title(f"Learning rate (× 1e{exponent})")
    axes.plot(numbers, rates, color=INK, marker="o", markersize=4, markevery=[-1], clip_on=False)
    axes.set_ylim(0, 1.12 * max(rates) or 1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("step")
    _whole_numbers(axes, numbers)


def running_mean(values: Floats, window: int) -> Floats:
    """The mean over up to `window` neighbours on either side; values that are not finite are left out of it."""
    known = np.isfinite(values)
    box = np.ones(2 * window + 1)
    sums = np.convolve(np.where(known, values, 0.0), box)[window : window + len(values)]
    counts = np.convolve(known.astype(np.float64), box)[window : window + len(values)].round()
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def spread(positions: Sequence[float], gap: float, top: float) -> list[float]:
    """Positions moved apart to at least `gap`, in the same order, none above `top` while there is room below it."""
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


def _where(event: Event) -> tuple[str, str]:
    return event["dataset"], event["split"]


def _markers(marker: str, count: int) -> dict[str, Any]:
    return {"marker": marker, "markersize": 4.5, "markevery": max(1, count // 15)}


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], lines_of_text: int) -> None:
    """Write (height, text, colour) to the right of the plot, moved apart where the heights are close."""
    bottom, top = axes.get_ylim()
    heights = spread([height for height, _, _ in labels], gap=(top - bottom) / lines_of_text, top=top)
    for height, (_, text, color) in zip(heights, labels, strict=True):
        axes.annotate(
            text, (1, height), xycoords=("axes fraction", "data"), xytext=(7, 0), textcoords="offset points",
            color=color, va="center", fontsize=10,
        )  # fmt: skip


def _whole_numbers(axes: Axes, values: Sequence[int]) -> None:
    if len(values) < 2:  # matplotlib would zoom into the one point until its neighbours are fractions
        middle = values[0] if values else 0
        axes.set_xlim(middle - 0.5, middle + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _with_dark_colors(drawing: bytes) -> bytes:
    """Add a style sheet that exchanges the colours, which matplotlib writes into each element, on a dark page."""
    rules = "".join(
        f'[style*="{role}: {light}"]{{{role}:{dark} !important}}'
        for light, dark in DARK.items()
        for role in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style></svg>"
    return drawing.replace(b"</svg>", style.encode())
