"""Plots of a study: R1 during training by method, and R1 against the number of trained parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from cskt.evaluation.comparison import ComparedMethod
from cskt.evaluation.results import EPOCH
from cskt.report import style

Event = Mapping[str, Any]

DASHES = ("-", "--", ":")
"""Line styles of the first, second and third round of colours."""
LINE_INCHES = 0.21
"""Height of a label."""


@dataclass(frozen=True)
class Curve:
    """R1 of one method on the selection split after each evaluated epoch, mean over its seeds."""

    label: str
    epochs: tuple[int, ...]
    seconds: tuple[float, ...]
    """Training time until the end of that epoch, evaluations included."""
    r1: tuple[float, ...]
    """Fractions."""


def curve_of(label: str, runs: Sequence[Sequence[Event]]) -> Curve:
    """Average the curves of several seeds over the epochs that all of them evaluated.

    Args:
        label: name of the method.
        runs: events of each run, as `training.events.read_events` returns them.

    Example:
        >>> events = [{"event": "evaluation", "stage": "epoch", "epoch": 1, "step": 9, "t2i": {"r1": 0.25}},
        ...           {"event": "step", "epoch": 1, "step": 8, "seconds": 4.0}]
        >>> curve_of("CSKT", [events])
        Curve(label='CSKT', epochs=(1,), seconds=(4.0,), r1=(0.25,))
    """
    by_run = [_by_epoch(events) for events in runs]
    epochs = sorted(set.intersection(*(set(found) for found in by_run))) if by_run else []
    means = [np.mean([found[epoch] for found in by_run], axis=0).tolist() for epoch in epochs]
    return Curve(label, tuple(epochs), tuple(mean[0] for mean in means), tuple(mean[1] for mean in means))


def _by_epoch(events: Sequence[Event]) -> dict[int, tuple[float, float]]:
    """Return seconds and R1 after each evaluated epoch; of an epoch recorded twice the later event counts."""
    steps = [(event["step"], event["seconds"]) for event in events if event["event"] == "step" and "seconds" in event]
    found = {}
    for event in events:
        if event["event"] == "evaluation" and event["stage"] == EPOCH:
            seconds = max((seconds for step, seconds in steps if step <= event["step"]), default=0.0)
            found[event["epoch"]] = seconds, event["t2i"]["r1"]
    return found


def training_curves(curves: Sequence[Curve]) -> Figure:
    """Draw R1 (percent) on the selection split by epoch and by training time, one line for each method.

    Args:
        curves: of the methods; those without an evaluated epoch are left out.
    """
    curves = [curve for curve in curves if curve.epochs]
    with mpl.rc_context(style.STYLE):
        figure = style.new_figure(7.4, 2 * max(2.6, 0.6 + LINE_INCHES * len(curves)))
        by_epoch, by_time = figure.subplots(2, 1)
        by_epoch.set(title="R1 on the selection split (%) by epoch", xlabel="epoch")
        by_time.set(title="R1 on the selection split (%) by training time", xlabel="minutes, mean over seeds")
        for axes in (by_epoch, by_time):
            labels = []
            for curve, (color, marker), dashes in zip(curves, cycle(style.LINES), _dashes(), strict=False):
                x = curve.epochs if axes is by_epoch else [seconds / 60 for seconds in curve.seconds]
                y = [100 * value for value in curve.r1]
                axes.plot(x, y, color=color, linestyle=dashes, **style.markers(marker, len(x)))
                labels.append((y[-1], f"{curve.label} {y[-1]:.1f}", color))
            style.label_ends(axes, labels, max(10, len(curves)))
        style.integer_ticks(by_epoch, sorted({epoch for curve in curves for epoch in curve.epochs}))
    return figure


def _dashes() -> Any:
    """Yield the line style of each line: another one for each round of colours."""
    for dashes in cycle(DASHES):
        yield from [dashes] * len(style.LINES)


def parameters_plot(methods: Sequence[ComparedMethod]) -> Figure:
    """Draw R1 (percent, with its 95 % interval over people) against the number of trained parameters.

    Args:
        methods: one that trains nothing is a dashed line.
    """
    with mpl.rc_context(style.STYLE):
        figure = style.new_figure(7.4, max(3.6, 1.0 + LINE_INCHES * len(methods)))
        axes = figure.subplots()
        axes.set(title="R1 on test (%) by trained parameters", xlabel="trained parameters", xscale="log")
        looks, labels = cycle(style.LINES), []
        for method in methods:
            r1, trained = method.estimates["r1"], method.facts.trainable_parameters
            if trained:
                color, marker = next(looks)
                errors = [[100 * (r1.mean - r1.interval.low)], [100 * (r1.interval.high - r1.mean)]]
                axes.errorbar(trained, 100 * r1.mean, yerr=errors, color=color, marker=marker, capsize=2)
            else:
                color = style.MUTED
                axes.axhline(100 * r1.mean, color=color, linestyle=DASHES[1], linewidth=1.3)
            labels.append((100 * r1.mean, f"{method.label} {100 * r1.mean:.1f}", color))
        style.label_ends(axes, labels, max(10, len(labels)))
    return figure
