"""Plots of a study."""

from __future__ import annotations

from typing import Any

import numpy as np

from cskt.evaluation.comparison import ComparedMethod, Estimate
from cskt.evaluation.results import EPOCH, STEP_0, ResultInfo
from cskt.evaluation.statistics import Interval
from cskt.report.study_plots import Curve, curve_of, parameters_plot, training_curves


def evaluated(epoch: int, step: int, r1: float, stage: str = EPOCH) -> dict[str, Any]:
    return {"event": "evaluation", "stage": stage, "epoch": epoch, "step": step, "t2i": {"r1": r1}}


def stepped(step: int, seconds: float) -> dict[str, Any]:
    return {"event": "step", "step": step, "seconds": seconds}


def test_a_curve_is_the_mean_of_the_epochs_that_all_seeds_evaluated() -> None:
    first = [evaluated(0, 0, 0.9, STEP_0), stepped(4, 8.0), stepped(5, 10.0), evaluated(1, 5, 0.25),
             stepped(10, 20.0), evaluated(2, 10, 0.5), evaluated(3, 15, 0.75)]  # fmt: skip
    second = [stepped(5, 30.0), evaluated(1, 5, 0.1), evaluated(1, 5, 0.75), stepped(10, 40.0), evaluated(2, 10, 0.75)]
    assert curve_of("x", [first, second]) == Curve("x", (1, 2), (20.0, 30.0), (0.5, 0.625))
    assert curve_of("x", [first, []]) == curve_of("x", []) == Curve("x", (), (), ())


def test_every_method_has_a_line_and_a_label_at_its_end() -> None:
    curves = [Curve(f"method {n}", (1, 2), (60.0, 120.0), (0.1, n / 100)) for n in range(20)]
    figure = training_curves([*curves, Curve("not evaluated", (), (), ())])
    by_epoch, by_time = figure.axes
    looks = {(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in by_epoch.lines}
    assert len(by_epoch.lines) == len(looks) == 20
    assert np.array_equal(by_epoch.lines[3].get_xdata(), [1, 2])
    assert np.array_equal(by_time.lines[3].get_xdata(), [1.0, 2.0])
    assert np.allclose(by_time.lines[3].get_ydata(), [10.0, 3.0])
    texts = [text.get_text() for text in by_epoch.texts]
    assert "method 3 3.0" in texts and len(texts) == 20


def test_a_method_that_trains_nothing_is_a_line_and_the_others_are_points() -> None:
    def method(label: str, r1: float, trained: int) -> ComparedMethod:
        estimates = {"r1": Estimate(mean=r1, interval=Interval(r1 - 0.05, r1 + 0.02))}
        return ComparedMethod(label, estimates, facts=ResultInfo(trainable_parameters=trained))

    figure = parameters_plot([method("zero-shot", 0.25, 0), method("CSKT", 0.5, 1000), method("whole", 0.75, 10**6)])
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    points = [line.get_xydata() for line in axes.lines if line.get_marker() in ("o", "s")]
    assert np.array_equal(np.concatenate(points), [[1000, 50.0], [10**6, 75.0]])
    assert {text.get_text() for text in axes.texts} == {"zero-shot 25.0", "CSKT 50.0", "whole 75.0"}
