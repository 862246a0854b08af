"""Comparisons: figures against numpy and the tests themselves, the family of tests, and what may not be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cskt import metrics
from cskt.evaluation.compare import TESTED, Comparison, Entry, compare, mean_facts
from cskt.evaluation.results import METRICS, Facts, Result
from cskt.evaluation.statistics import curve_interval, holm, paired_p_value, seeds_p_value

PIDS = torch.arange(30).repeat_interleave(3)
"""30 people with three captions, and one image each in the gallery."""


def made_up_result(strength: float, seed: int = 0, **changes: Any) -> Result:
    """Similarities that are noise, plus `strength` where image and caption are of one person."""
    generator = torch.Generator().manual_seed(seed)
    gallery = torch.arange(30)
    similarity = torch.randn(len(PIDS), 30, generator=generator) + strength * (PIDS[:, None] == gallery)
    t2i = metrics.from_similarity(similarity, PIDS, gallery)
    i2t = metrics.from_similarity(similarity.T, gallery, PIDS)
    values: dict[str, Any] = {
        "dataset": "cuhk-pedes", "split": "test", "split_sha256": "ab" * 32, "label": "made up", "seed": seed,
        "metrics": {"t2i": t2i.summary(), "i2t": i2t.summary()}, "query_pids": PIDS.numpy(),
        "first_right_rank": t2i.per_query.first_right_rank.numpy(),
        "average_precision": t2i.per_query.average_precision.numpy(),
        "inverse_negative_penalty": t2i.per_query.inverse_negative_penalty.numpy(),
    }  # fmt: skip
    return Result(**(values | changes))


WEAK = Entry("weak", (made_up_result(0.5, 1),))
STRONG = Entry("strong", tuple(made_up_result(3.0, seed) for seed in (2, 3, 4)))
LIKE_WEAK = Entry("like weak", (made_up_result(0.5, 5),))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare([WEAK, STRONG, LIKE_WEAK])


def test_figures_of_several_seeds_are_those_of_their_average_query(comparison: Comparison) -> None:
    strong = comparison.rows[1]
    assert strong.seeds == (2, 3, 4)
    for metric in METRICS:
        figure, means = strong.figures[metric], [result.metrics["t2i"][metric] for result in STRONG.results]
        values = np.mean([result.values(metric) for result in STRONG.results], axis=0)
        assert figure.mean == pytest.approx(np.mean(means))
        assert figure.deviation == pytest.approx(np.std(means, ddof=1))
        low, high = curve_interval(values[:, None], STRONG.results[0].groups)
        assert tuple(figure.interval) == pytest.approx((*low, *high), abs=1 / len(values)), "but for rounding of ties"
        assert figure.difference == pytest.approx(figure.mean - WEAK.results[0].metrics["t2i"][metric])
        assert figure.interval.low < figure.mean < figure.interval.high


def test_the_baseline_is_measured_against_nothing(comparison: Comparison) -> None:
    weak = comparison.rows[0]
    assert comparison.baseline == "weak"
    for figure in weak.figures.values():
        assert (figure.difference, figure.p_value, figure.deviation) == (None, None, None)


def test_p_values_are_corrected_for_every_test_of_the_table(comparison: Comparison) -> None:
    groups = WEAK.results[0].groups
    raw = [
        paired_p_value(entry.values(metric), WEAK.values(metric), groups)
        for entry in (STRONG, LIKE_WEAK)
        for metric in TESTED
    ]
    found = [row.figures[metric].p_value for row in comparison.rows[1:] for metric in TESTED]
    assert comparison.num_tests == 4
    assert found == pytest.approx(holm(raw))
    assert max(found[:2]) < 0.01, "a real difference"
    assert min(found[2:]) > 0.05, "none"
    for row in comparison.rows:
        assert all(row.figures[metric].p_value is None for metric in METRICS if metric not in TESTED)


EXACT = Entry("zero-shot", (made_up_result(0.5, 6, facts=Facts(trainable_parameters=0)),))
LIKE_STRONG = Entry("like strong", tuple(made_up_result(2.5, seed) for seed in (7, 8)))


def test_seeds_are_tested_where_both_sides_show_how_far_they_lie_apart(comparison: Comparison) -> None:
    """One seed of a trained baseline shows nothing; zero-shot needs no second one."""
    assert comparison.num_seeds_tests == 0
    assert all(figure.seeds_p_value is None for row in comparison.rows for figure in row.figures.values())

    result = compare([STRONG, EXACT, LIKE_STRONG, WEAK])
    raw = [
        seeds_p_value(STRONG.seed_means(metric), entry.seed_means(metric))
        for entry in (EXACT, LIKE_STRONG)
        for metric in TESTED
    ]
    found = [row.figures[metric].seeds_p_value for row in result.rows[1:3] for metric in TESTED]
    assert result.num_seeds_tests == 4 < result.num_tests == 6
    assert None not in raw and found == pytest.approx(holm([p_value or 0.0 for p_value in raw]))
    assert all(result.rows[3].figures[metric].seeds_p_value is None for metric in METRICS)


def test_any_entry_may_be_the_baseline() -> None:
    result = compare([WEAK, STRONG], baseline=1)
    assert (result.baseline, result.rows[1].figures["r1"].difference) == ("strong", None)
    forth = compare([WEAK, STRONG]).rows[1].figures["r1"]
    assert result.rows[0].figures["r1"].difference == pytest.approx(-(forth.difference or 0))
    assert result.rows[0].figures["r1"].p_value == forth.p_value


def test_notes_of_all_seeds_are_kept_once() -> None:
    results = tuple(
        made_up_result(1, seed, note=note) for seed, note in enumerate(("selected on test", "", "selected on test"))
    )
    result = compare([WEAK, Entry("marked", results)])
    assert [row.note for row in result.rows] == ["", "selected on test"]


def test_facts_of_seeds_are_averaged_and_unknown_where_one_is() -> None:
    one = Facts(
        trainable_parameters=10, training_seconds=2.0, training_peak_memory_bytes=5, device="cpu", trained_on="a",
        images_per_second=1.0,
    )  # fmt: skip
    other = Facts(
        trainable_parameters=10, training_seconds=4.0, training_peak_memory_bytes=7, device="cuda", trained_on="a"
    )
    assert mean_facts([one]) == one
    assert mean_facts([one, other]) == Facts(
        trainable_parameters=10, training_seconds=3.0, training_peak_memory_bytes=7, trained_on="a"
    )


def test_different_splits_are_refused_in_one_line_that_names_both() -> None:
    other = Entry("elsewhere", (made_up_result(1, split_sha256="cd" * 32, dataset="rstpreid"),))
    with pytest.raises(ValueError, match="different queries or galleries") as error:
        compare([WEAK, other])
    assert "weak: cuhk-pedes test, 90 queries, SHA-256 abababab" in str(error.value)
    assert "elsewhere: rstpreid test, 90 queries, SHA-256 cdcdcdcd" in str(error.value)
    with pytest.raises(ValueError, match="different queries or galleries"):
        Entry("mixed", (*WEAK.results, *other.results))


def test_what_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="1 to compare; give at least two"):
        compare([WEAK])
    with pytest.raises(ValueError, match="two of weak, weak have the same name"):
        compare([WEAK, WEAK])
    with pytest.raises(ValueError, match="nothing: no results"):
        Entry("nothing", ())
    with pytest.raises(ValueError, match="twice: seeds 1, 1; each seed counts once"):
        Entry("twice", WEAK.results * 2)
    with pytest.raises(ValueError, match="with and without query expansion"):
        Entry("both", (made_up_result(1, 1), made_up_result(1, 2, options="query-expansion-5")))


def test_a_split_without_right_images_is_refused() -> None:
    zeros = np.zeros(len(PIDS))
    empty = {"r1": 0.0, "r5": 0.0, "r10": 0.0, "mean_ap": 0.0, "mean_inp": 0.0}
    counts = {"num_queries": 90, "num_gallery": 30, "num_unmatched_queries": 90}
    unmatched = made_up_result(
        1, metrics={"t2i": empty | counts, "i2t": empty | counts}, first_right_rank=zeros.astype(np.int64),
        average_precision=zeros, inverse_negative_penalty=zeros,
    )  # fmt: skip
    with pytest.raises(ValueError, match="one: no query of cuhk-pedes test has a right image"):
        compare([Entry("one", (unmatched,)), Entry("two", (unmatched,))])


def test_methods_are_held_against_zero_shot() -> None:
    exact_r1 = EXACT.values("r1").mean()
    rows = compare([EXACT, STRONG, LIKE_WEAK]).rows
    assert [row.zero_shot_r1 for row in rows] == [None, pytest.approx(exact_r1), pytest.approx(exact_r1)]
    own = compare([WEAK, STRONG], zero_shot={"strong": 0.25}).rows
    assert [row.zero_shot_r1 for row in own] == [None, 0.25], "as the run recorded it"
    expanded = Entry("expanded", (made_up_result(3.0, 2, options="query-expansion-5"),))
    assert compare([EXACT, expanded]).rows[1].zero_shot_r1 is None, "zero-shot ranks in another way"
