"""Learning curves of a run, drawn from the events of its `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cskt.evaluation.results import EPOCH, STEP_0, ZERO_SHOT, Floats
from cskt.report import style
from cskt.report.numbers import METRIC_NAMES

Event = Mapping[str, Any]

# key in the summary -> colour and marker; mINP is in the table, a fifth line would hide the others
SERIES = {
    "r1": (style.BLUE, "o"),
    "r5": (style.VERMILION, "s"),
    "r10": (style.GREEN, "^"),
    "mean_ap": (style.PURPLE, "D"),
}
REFERENCE_NAMES = {ZERO_SHOT: "zero-shot", STEP_0: "at start"}
REFERENCE_DASHES = {ZERO_SHOT: (0, (6, 3)), STEP_0: (0, (1.5, 2.5))}
LOSS_COLORS = (style.VERMILION, style.GREEN, style.PURPLE, style.BLUE)
SMOOTH_FROM = 120
"""From this number of points on, the loss is drawn faint under its running mean."""


def learning_curves(events: Iterable[Event]) -> Figure:
    """Draw retrieval by epoch, loss and learning rate by step; of a step recorded twice the later event counts."""
    events = list(events)
    steps = [event for event in events if event.get("event") == "step"]
    evaluations = [event for event in events if event.get("event") == "evaluation"]
    with mpl.rc_context(style.STYLE):
        figure = style.new_figure(4.9, 7.2)
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
                axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=style.MUTED)
                axes.set(xticks=[], yticks=[])
    return figure


def _draw_retrieval(axes: Axes, evaluations: Sequence[Event]) -> None:
    shown = next((event for event in reversed(evaluations) if event["stage"] == EPOCH), evaluations[-1])
    # another split or data set would not be comparable with these lines
    evaluations = [event for event in evaluations if _where(event) == _where(shown)]
    axes.set_xlabel("epoch (text to image on {} {})".format(*_where(shown)))
    by_epoch = {event["epoch"]: event["t2i"] for event in evaluations if event["stage"] in (STEP_0, EPOCH)}
    epochs = sorted(by_epoch)
    labels = []
    highest = 0.0
    for key, (color, marker) in SERIES.items():
        values = [100 * by_epoch[epoch][key] for epoch in epochs]
        axes.plot(epochs, values, color=color, **style.markers(marker, len(epochs)))
        if epochs:
            highest = max(highest, *values)
            labels.append((values[-1], f"{METRIC_NAMES[key]} {values[-1]:.1f}", color))
    for stage, dashes in REFERENCE_DASHES.items():
        figures = [100 * event["t2i"]["r1"] for event in evaluations if event["stage"] == stage]
        if figures:
            color = SERIES["r1"][0]
            axes.axhline(figures[-1], color=color, linestyle=dashes, linewidth=1.3)
            highest = max(highest, figures[-1])
            labels.append((figures[-1], f"R1 {REFERENCE_NAMES[stage]} {figures[-1]:.1f}", color))
    axes.set_ylim(0, max(10.0, 1.06 * highest))
    style.integer_ticks(axes, epochs)
    style.label_ends(axes, labels, lines_of_text=14)


def _draw_loss(axes: Axes, steps: Sequence[Event]) -> None:
    by_step = {event["step"]: event for event in steps}
    numbers = sorted(by_step)
    names = sorted({name for event in by_step.values() for name in event.get("losses", {})})
    lines = {"total": (style.INK, [by_step[number]["loss"] for number in numbers])}
    if len(names) > 1:
        for position, name in enumerate(names):
            values = [by_step[number].get("losses", {}).get(name, np.nan) for number in numbers]
            lines[name] = (LOSS_COLORS[position % len(LOSS_COLORS)], values)
    labels = []
    for name, (color, values) in lines.items():
        shown = np.asarray(values, dtype=np.float64)
        if len(numbers) < SMOOTH_FROM:
            axes.plot(numbers, shown, color=color, **style.markers("o", len(numbers)))
        else:
            axes.plot(numbers, shown, color=color, alpha=0.25, linewidth=0.8)
            shown = running_mean(shown, len(numbers) // 40)
            axes.plot(numbers, shown, color=color)
        if np.isfinite(shown[-1]):
            labels.append((float(shown[-1]), f"{name} {shown[-1]:.3g}", color))
    if len(numbers) >= SMOOTH_FROM:
        axes.set_title("running mean in bold", loc="right", color=style.MUTED, fontsize=9.5, fontweight="normal")
    axes.set_xlabel("step")
    style.integer_ticks(axes, numbers)
    style.label_ends(axes, labels, lines_of_text=9)


def _draw_rate(axes: Axes, steps: Sequence[Event]) -> None:
    by_step = {event["step"]: event["lr"] for event in steps}
    numbers = sorted(by_step)
    highest = max(by_step.values())
    exponent = math.floor(math.log10(highest)) if highest > 0 else 0
    rates = [by_step[number] / 10.0**exponent for number in numbers]
    axes.set_title(f"Learning rate (× 1e{exponent})")
    axes.plot(numbers, rates, color=style.INK, marker="o", markersize=4, markevery=[-1], clip_on=False)
    axes.set_ylim(0, 1.12 * max(rates) or 1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("step")
    style.integer_ticks(axes, numbers)


def running_mean(values: Floats, window: int) -> Floats:
    """Return the mean over up to `window` neighbours on either side, without values that are not finite."""
    known = np.isfinite(values)
    box = np.ones(2 * window + 1)
    sums = np.convolve(np.where(known, values, 0.0), box)[window : window + len(values)]
    counts = np.convolve(known.astype(np.float64), box)[window : window + len(values)].round()
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _where(event: Event) -> tuple[str, str]:
    return event["dataset"], event["split"]
