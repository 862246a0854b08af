"""Comparisons of methods: estimates against NumPy, corrected tests, and invalid comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cskt import metrics
from cskt.evaluation.comparison import TESTED, MethodComparison, MethodResults, compare, mean_facts
from cskt.evaluation.results import METRICS, Result, ResultInfo
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


WEAK = MethodResults("weak", (made_up_result(0.5, 1),))
STRONG = MethodResults("strong", tuple(made_up_result(3.0, seed) for seed in (2, 3, 4)))
LIKE_WEAK = MethodResults("like weak", (made_up_result(0.5, 5),))


@pytest.fixture(scope="module")
def comparison() -> MethodComparison:
    return compare([WEAK, STRONG, LIKE_WEAK])


def test_estimates_over_seeds_are_those_of_the_mean_of_each_query(comparison: MethodComparison) -> None:
    strong = comparison.methods[1]
    assert strong.seeds == (2, 3, 4)
    for metric in METRICS:
        estimate, means = strong.estimates[metric], [result.metrics["t2i"][metric] for result in STRONG.results]
        values = np.mean([result.values(metric) for result in STRONG.results], axis=0)
        assert estimate.mean == pytest.approx(np.mean(means))
        assert estimate.deviation == pytest.approx(np.std(means, ddof=1))
        low, high = curve_interval(values[:, None], STRONG.results[0].groups)
        assert tuple(estimate.interval) == pytest.approx((*low, *high), abs=1 / len(values)), "but for rounding of ties"
        assert estimate.difference == pytest.approx(estimate.mean - WEAK.results[0].metrics["t2i"][metric])
        assert estimate.interval.low < estimate.mean < estimate.interval.high


def test_the_baseline_has_no_difference_and_no_p_value(comparison: MethodComparison) -> None:
    weak = comparison.methods[0]
    assert comparison.baseline == "weak"
    for estimate in weak.estimates.values():
        assert (estimate.difference, estimate.p_value, estimate.deviation) == (None, None, None)


def test_p_values_are_corrected_for_every_test_of_the_table(comparison: MethodComparison) -> None:
    groups = WEAK.results[0].groups
    raw = [
        paired_p_value(method.values(metric), WEAK.values(metric), groups)
        for method in (STRONG, LIKE_WEAK)
        for metric in TESTED
    ]
    found = [row.estimates[metric].p_value for row in comparison.methods[1:] for metric in TESTED]
    assert comparison.num_tests == 4
    assert found == pytest.approx(holm(raw))
    assert max(found[:2]) < 0.01, "a real difference"
    assert min(found[2:]) > 0.05, "none"
    for row in comparison.methods:
        assert all(row.estimates[metric].p_value is None for metric in METRICS if metric not in TESTED)


EXACT = MethodResults("zero-shot", (made_up_result(0.5, 6, facts=ResultInfo(trainable_parameters=0)),))
LIKE_STRONG = MethodResults("like strong", tuple(made_up_result(2.5, seed) for seed in (7, 8)))


def test_seeds_are_tested_if_both_methods_have_enough(comparison: MethodComparison) -> None:
    """One seed of a trained baseline is too few; zero-shot needs no second one."""
    assert comparison.num_seeds_tests == 0
    assert all(estimate.seeds_p_value is None for row in comparison.methods for estimate in row.estimates.values())

    result = compare([STRONG, EXACT, LIKE_STRONG, WEAK])
    raw = [
        seeds_p_value(STRONG.seed_means(metric), method.seed_means(metric))
        for method in (EXACT, LIKE_STRONG)
        for metric in TESTED
    ]
    found = [row.estimates[metric].seeds_p_value for row in result.methods[1:3] for metric in TESTED]
    assert result.num_seeds_tests == 4 < result.num_tests == 6
    assert None not in raw and found == pytest.approx(holm([p_value or 0.0 for p_value in raw]))
    assert all(result.methods[3].estimates[metric].seeds_p_value is None for metric in METRICS)


def test_any_method_can_be_the_baseline() -> None:
    result = compare([WEAK, STRONG], baseline=1)
    assert (result.baseline, result.methods[1].estimates["r1"].difference) == ("strong", None)
    forth = compare([WEAK, STRONG]).methods[1].estimates["r1"]
    assert result.methods[0].estimates["r1"].difference == pytest.approx(-(forth.difference or 0))
    assert result.methods[0].estimates["r1"].p_value == forth.p_value


def test_equal_notes_of_seeds_are_listed_once() -> None:
    results = tuple(
        made_up_result(1, seed, note=note) for seed, note in enumerate(("selected on test", "", "selected on test"))
    )
    result = compare([WEAK, MethodResults("marked", results)])
    assert [row.note for row in result.methods] == ["", "selected on test"]


def test_facts_are_averaged_over_seeds_and_none_if_one_is_unknown() -> None:
    one = ResultInfo(
        trainable_parameters=10, training_seconds=2.0, training_peak_memory_bytes=5, device="cpu", trained_on="a",
        images_per_second=1.0,
    )  # fmt: skip
    other = ResultInfo(
        trainable_parameters=10, training_seconds=4.0, training_peak_memory_bytes=7, device="cuda", trained_on="a"
    )
    assert mean_facts([one]) == one
    assert mean_facts([one, other]) == ResultInfo(
        trainable_parameters=10, training_seconds=3.0, training_peak_memory_bytes=7, trained_on="a"
    )


def test_different_splits_are_refused_in_one_line_that_names_both() -> None:
    other = MethodResults("elsewhere", (made_up_result(1, split_sha256="cd" * 32, dataset="rstpreid"),))
    with pytest.raises(ValueError, match="different queries or galleries") as error:
        compare([WEAK, other])
    assert "weak: cuhk-pedes test, 90 queries, SHA-256 abababab" in str(error.value)
    assert "elsewhere: rstpreid test, 90 queries, SHA-256 cdcdcdcd" in str(error.value)
    with pytest.raises(ValueError, match="different queries or galleries"):
        MethodResults("mixed", (*WEAK.results, *other.results))


def test_invalid_comparisons_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to compare; give at least two"):
        compare([WEAK])
    with pytest.raises(ValueError, match="two of weak, weak have the same name"):
        compare([WEAK, WEAK])
    with pytest.raises(ValueError, match="nothing: no results"):
        MethodResults("nothing", ())
    with pytest.raises(ValueError, match="twice: seeds 1, 1; each seed counts once"):
        MethodResults("twice", WEAK.results * 2)
    with pytest.raises(ValueError, match="with and without query expansion"):
        MethodResults("both", (made_up_result(1, 1), made_up_result(1, 2, options="query-expansion-5")))


def test_a_split_without_right_images_is_refused() -> None:
    zeros = np.zeros(len(PIDS))
    empty = {"r1": 0.0, "r5": 0.0, "r10": 0.0, "mean_ap": 0.0, "mean_inp": 0.0}
    counts = {"num_queries": 90, "num_gallery": 30, "num_unmatched_queries": 90}
    unmatched = made_up_result(
        1, metrics={"t2i": empty | counts, "i2t": empty | counts}, first_right_rank=zeros.astype(np.int64),
        average_precision=zeros, inverse_negative_penalty=zeros,
    )  # fmt: skip
    with pytest.raises(ValueError, match="one: no query of cuhk-pedes test has a right image"):
        compare([MethodResults("one", (unmatched,)), MethodResults("two", (unmatched,))])


def test_methods_are_compared_with_zero_shot() -> None:
    exact_r1 = EXACT.values("r1").mean()
    rows = compare([EXACT, STRONG, LIKE_WEAK]).methods
    assert [row.zero_shot_r1 for row in rows] == [None, pytest.approx(exact_r1), pytest.approx(exact_r1)]
    own = compare([WEAK, STRONG], zero_shot={"strong": 0.25}).methods
    assert [row.zero_shot_r1 for row in own] == [None, 0.25], "as the run recorded it"
    expanded = MethodResults("expanded", (made_up_result(3.0, 2, options="query-expansion-5"),))
    assert compare([EXACT, expanded]).methods[1].zero_shot_r1 is None, "zero-shot ranks in another way"
