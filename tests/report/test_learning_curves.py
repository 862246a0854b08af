import xml.etree.ElementTree as ET
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from cskt.report import style
from cskt.report.learning_curves import learning_curves, running_mean
from cskt.report.style import DARK, spread, svg


def summary(r1: float) -> dict[str, float]:
    return {"r1": r1, "r5": r1 + 0.1, "r10": r1 + 0.2, "mean_ap": r1, "mean_inp": r1 / 2}


def evaluation(stage: str, epoch: int, r1: float, split: str = "val") -> dict[str, Any]:
    return {
        "event": "evaluation", "stage": stage, "epoch": epoch, "step": 10 * epoch, "dataset": "rstpreid",
        "split": split, "t2i": summary(r1), "i2t": summary(r1),
    }  # fmt: skip


def step(number: int, loss: float, **losses: float) -> dict[str, Any]:
    return {"event": "step", "epoch": 1, "step": number, "loss": loss, "losses": losses, "lr": 3e-4}


@pytest.fixture
def drawn_text(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels at the lines' ends, as they are drawn (an SVG holds text as outlines)."""
    texts: list[str] = []
    original = style.label_ends

    def spy(axes: Any, labels: Any, **options: Any) -> None:
        texts.extend(text for _, text, _ in labels)
        original(axes, labels, **options)

    monkeypatch.setattr(style, "label_ends", spy)
    return texts


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"event": "start"}],
        [step(20, 3.0, sdm=3.0)],
        [evaluation("zero-shot", 0, 0.1)],
        [evaluation("zero-shot", 0, 0.0), evaluation("step-0", 0, 0.0)],
        [evaluation("epoch", 1, 0.3), step(20, float("nan"), sdm=float("nan"))],
        [step(20, 0.0) | {"lr": 0.0}],
    ],
    ids=["empty", "other events", "one step", "zero-shot only", "all zero", "loss not finite", "rate zero"],
)
def test_little_or_no_data_still_gives_a_drawing(events: list[dict[str, Any]]) -> None:
    root = ET.fromstring(svg(learning_curves(events)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_lines_are_named_with_their_last_figures(drawn_text: list[str]) -> None:
    events = [evaluation("zero-shot", 0, 0.12), evaluation("step-0", 0, 0.08), evaluation("epoch", 1, 0.5)]
    learning_curves([*events, step(10, 4.0, sdm=3.0, id=1.0), step(20, 2.0, sdm=1.5, id=0.5)])
    assert drawn_text == [
        "R1 50.0", "R5 60.0", "R10 70.0", "mAP 50.0", "R1 zero-shot 12.0", "R1 at start 8.0",
        "total 2", "id 0.5", "sdm 1.5",
    ]  # fmt: skip


def test_a_final_figure_of_another_split_is_not_mixed_in(drawn_text: list[str]) -> None:
    learning_curves([evaluation("zero-shot", 0, 0.9, split="test"), evaluation("epoch", 1, 0.5)])
    assert drawn_text == ["R1 50.0", "R5 60.0", "R10 70.0", "mAP 50.0"]


def test_a_resumed_run_counts_the_later_line_of_a_step_and_of_an_epoch() -> None:
    later = [evaluation("epoch", 1, 0.6), step(10, 2.0)]
    resumed = learning_curves([evaluation("epoch", 1, 0.2), step(10, 9.0), *later])
    assert svg(resumed) == svg(learning_curves(later))


def test_the_drawing_has_dark_colours_for_each_of_its_light_ones() -> None:
    drawing = svg(learning_curves([evaluation("epoch", 1, 0.5), step(10, 4.0, sdm=3.0, id=1.0)])).decode()
    body, style = drawing.split("<style>@media (prefers-color-scheme: dark)")
    used = [light for light in DARK if f": {light}" in body]
    assert len(used) >= 7
    assert all(light in style for light in used)


def test_matplotlibs_global_settings_stay_unchanged() -> None:
    before = dict(mpl.rcParams)
    learning_curves([step(10, 4.0)])
    assert dict(mpl.rcParams) == before


def test_long_runs_are_smoothed_and_stay_small() -> None:
    noise = np.random.default_rng(0).normal(size=3000)
    drawing = svg(learning_curves([step(20 * number, 3 + noise[number]) for number in range(3000)]))
    assert len(drawing) < 500_000


def test_running_mean_equals_the_naive_loop_over_finite_values() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, 10.0, np.inf, 3.0])
    naive = []
    for index in range(len(values)):
        near = values[max(0, index - 1) : index + 2]
        naive.append(np.mean(near[np.isfinite(near)]))
    np.testing.assert_allclose(running_mean(values, 1), naive)
    assert np.isnan(running_mean(np.array([np.nan]), 1)).all()


def test_spread_keeps_order_and_distance_below_the_top() -> None:
    placed = spread([50.0, 50.0, 99.0, 100.0, 10.0], gap=5, top=100)
    assert placed[4] == 10
    assert placed[:2] == [50, 55]
    assert placed[2:4] == [95, 100]
