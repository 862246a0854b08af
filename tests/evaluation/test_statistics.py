"""Intervals and tests by identity: closed forms, exhaustive enumeration, and coverage by simulation."""

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm, permutation_test, t

from cskt.evaluation import statistics


def simulated(
    rng: np.random.Generator, num_identities: int, mean: float, num_columns: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong [Q, columns] of 4 to 8 queries per identity, and the identities [Q].

    Each identity has its own chance to be found, Beta distributed about `mean`; two queries of one correlate by 1/3.
    """
    groups = np.repeat(np.arange(num_identities), rng.integers(4, 9, num_identities))
    chances = rng.beta(2 * mean, 2 * (1 - mean), (num_identities, num_columns))
    return (rng.random((len(groups), num_columns)) < chances[groups]).astype(float), groups


def interval_of(values: ArrayLike, groups: ArrayLike, **options: Any) -> tuple[float, float]:
    """A band of a single column."""
    low, high = statistics.curve_interval(np.asarray(values, dtype=float)[:, None], groups, **options)
    return float(low[0]), float(high[0])


# --- intervals ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nominal_95_percent_cover_by_identity_and_fall_short_by_query() -> None:
    rng, covered, covered_naively = np.random.default_rng(0), [], []
    for repetition in range(8):
        values, groups = simulated(rng, 100, 0.6, num_columns=500)
        for hits, by in ((covered, groups), (covered_naively, np.arange(len(groups)))):
            low, high = statistics.curve_interval(values, by, num_resamples=1000, seed=repetition)
            hits.append((low <= 0.6) & (high >= 0.6))
    assert np.size(covered) == 4000
    assert 0.93 <= np.mean(covered) <= 0.97
    assert np.mean(covered_naively) < 0.85


def test_many_identities_give_the_normal_interval_of_a_ratio() -> None:
    (values, groups), num_identities = simulated(np.random.default_rng(1), 2000, 0.6), 2000
    values = values[:, 0]
    mean = values.mean()
    residuals = np.bincount(groups, values - mean)
    error = np.sqrt((residuals**2).sum() * num_identities / (num_identities - 1)) / len(values)
    low, high = interval_of(values, groups)
    assert (mean - low, high - mean) == pytest.approx([1.96 * error] * 2, rel=0.05)


def test_a_column_of_a_band_is_the_interval_of_its_mean() -> None:
    values, groups = simulated(np.random.default_rng(2), 40, 0.5, num_columns=3)
    values[:, 1] = 1
    lows, highs = statistics.curve_interval(values, groups, num_resamples=500)
    for column in range(3):
        low, high = interval_of(values[:, column], groups, num_resamples=500)
        assert (lows[column], highs[column]) == pytest.approx((low, high), abs=1e-12)
        assert low <= values[:, column].mean() <= high


def test_only_the_seed_draws_and_neither_order_nor_names_matter() -> None:
    values, groups = simulated(np.random.default_rng(3), 30, 0.5)
    values = values[:, 0]
    interval = interval_of(values, groups, num_resamples=300, seed=5)
    assert interval_of(values, groups, num_resamples=300, seed=5) == interval
    assert interval_of(values, groups, num_resamples=300, seed=6) != interval
    order = np.random.default_rng(4).permutation(len(values))
    assert interval_of(values[order], groups[order] * 7 - 50, num_resamples=300, seed=5) == interval


@pytest.mark.parametrize("num_identities", [1, 2, 100])
def test_identities_that_agree_are_bounded_as_a_binomial_is(num_identities: int) -> None:
    groups = np.repeat(np.arange(num_identities), 3)
    exact = binomtest(num_identities, num_identities).proportion_ci(0.95, method="exact")
    assert interval_of(np.ones(len(groups)), groups) == pytest.approx((exact.low, 1.0))
    assert interval_of(np.zeros(len(groups)), groups) == pytest.approx((0.0, 1 - exact.low))
    same = interval_of(np.full(len(groups), 0.3), groups)
    assert same == pytest.approx((0.3 * exact.low, 0.3 * exact.low + 1 - exact.low))


def test_one_identity_says_next_to_nothing() -> None:
    low, high = interval_of([0.0, 1.0, 1.0, 0.0], [7, 7, 7, 7])
    assert low == pytest.approx(0.0125)
    assert high == pytest.approx(0.9875)


@pytest.mark.parametrize("values", [[0, 1], [0, 1, 1, 1], [1] * 9 + [0]])
def test_few_identities_that_differ_give_a_finite_interval(values: list[int]) -> None:
    low, high = interval_of(values, range(len(values)))
    assert 0 <= low < np.mean(values) < high <= 1


@pytest.mark.slow
def test_thousands_of_identities_take_bounded_memory() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(3000), 2)
    values, others = rng.random(6000), rng.random(6000)
    tracemalloc.start()
    interval_of(values, groups, num_resamples=4000)
    statistics.paired_p_value(values, others, groups, num_resamples=4000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 80e6  # one array of all resamples would be 96e6, and either takes several


# --- paired test -------------------------------------------------------------------------------------------------


def enumerated(a: list[float], b: list[float], groups: list[int]) -> float:
    """Share of all swaps that make the difference at least as large."""
    totals = [
        sum(x - y for x, y, group in zip(a, b, groups, strict=True) if group == identity) for identity in set(groups)
    ]
    swaps = [
        abs(sum(sign * total for sign, total in zip(signs, totals, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(totals))
    ]
    return sum(swap >= abs(sum(totals)) - 1e-9 for swap in swaps) / len(swaps)


results = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0]), st.sampled_from([0.0, 0.1, 0.2, 1.0]), st.integers(0, 6)),
    min_size=1,
    max_size=20,
)


@given(results)
def test_few_identities_are_enumerated(rows: list[tuple[float, float, int]]) -> None:
    """Tenths make sums that tie but for their rounding."""
    a, b, groups = ([row[column] for row in rows] for column in range(3))
    p_value = statistics.paired_p_value(a, b, groups)
    assert p_value == pytest.approx(enumerated(a, b, groups), abs=1e-12)
    assert statistics.paired_p_value(b, a, groups) == p_value


def test_many_identities_give_the_p_value_of_a_normal_and_of_scipy() -> None:
    values, groups = simulated(np.random.default_rng(6), 400, 0.6, num_columns=2)
    a, b = values.T
    totals = np.bincount(groups, a - b)
    expected = 2 * norm.sf(abs(totals.sum()) / np.sqrt((totals**2).sum()))
    p_value = statistics.paired_p_value(a, b, groups)
    assert 0.02 < expected < 0.9
    assert p_value == pytest.approx(expected, abs=0.02)
    independent = permutation_test((totals,), np.sum, permutation_type="samples", batch=500, rng=1)
    assert p_value == pytest.approx(independent.pvalue, abs=0.02)
    assert statistics.paired_p_value(a, b, groups) == p_value


def test_equal_runs_differ_in_1_of_20_tests_by_identity_and_more_by_query() -> None:
    rng, by_identity, by_query = np.random.default_rng(7), [], []
    for repetition in range(1000):
        groups = np.repeat(np.arange(30), rng.integers(4, 9, 30))
        people = rng.random((30, 1)) + 0.5 * rng.random((30, 2))  # easy and hard people, and each run's luck with them
        a, b = (people[groups] + 0.5 * rng.random((len(groups), 2))).T / 2
        by_identity.append(statistics.paired_p_value(a, b, groups, num_resamples=199, seed=repetition) <= 0.05)
        if repetition < 200:
            by_query.append(statistics.paired_p_value(a, b, np.arange(len(groups)), num_resamples=199) <= 0.05)
    assert 0.035 <= np.mean(by_identity) <= 0.065
    assert np.mean(by_query) > 0.15


def test_identical_runs_give_1_and_a_clear_difference_a_small_p_value() -> None:
    values, groups = simulated(np.random.default_rng(8), 60, 0.6)
    a = values[:, 0]
    assert statistics.paired_p_value(a, a, groups) == 1.0
    assert statistics.paired_p_value(a, np.zeros_like(a), groups) == pytest.approx(1 / 10_000)
    assert statistics.paired_p_value([1, 1, 1], [0, 0, 0], [4, 4, 4]) == 1.0  # one identity is no evidence


# --- several tests, several seeds --------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.7, 0.5]) == [1.0, 1.0]
    assert statistics.holm([0.2]) == [0.2]
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.sampled_from([0.01, 0.05, 0.5]))
def test_holm_rejects_what_its_procedure_rejects(p_values: list[float], alpha: float) -> None:
    adjusted = statistics.holm(p_values)
    rejected = set()
    for step, position in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[position] * (len(p_values) - step) > alpha:
            break
        rejected.add(position)
    assert {position for position, value in enumerate(adjusted) if value <= alpha} == rejected
    assert all(p <= value <= min(1, p * len(p_values)) for p, value in zip(p_values, adjusted, strict=True))
    assert statistics.holm(p_values[::-1]) == adjusted[::-1]


def test_mean_and_deviation_over_seeds() -> None:
    assert statistics.mean_and_deviation([0.5, 0.6, 0.7]) == pytest.approx((0.6, 0.1))
    assert statistics.mean_and_deviation([0.25]) == (0.25, None)


# --- programming errors


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 69.7])
def test_values_outside_0_to_1_are_programming_errors(bad: float) -> None:
    good, groups = [0.5, 0.5], [0, 1]
    with pytest.raises(AssertionError, match="fractions, neither percent nor NaN"):
        statistics.curve_interval([[0.5], [bad]], groups)
    with pytest.raises(AssertionError, match="fractions"):
        statistics.paired_p_value([bad, 0.5], good, groups)
    with pytest.raises(AssertionError, match="fractions"):
        statistics.paired_p_value(good, [bad, 0.5], groups)
    with pytest.raises(AssertionError, match="fractions"):
        statistics.holm([0.1, bad])


@pytest.mark.parametrize(("values", "groups"), [([], []), ([0, 1], [0, 1, 2]), ([0, 1], [0.0, 1.0])])
def test_shapes_and_identities_that_do_not_fit_are_programming_errors(values: ArrayLike, groups: ArrayLike) -> None:
    with pytest.raises(AssertionError):
        interval_of(values, groups)
    with pytest.raises(AssertionError):
        statistics.paired_p_value(values, values, groups)


@pytest.mark.parametrize("values", [[], [0.5, np.nan]])
def test_only_finite_figures_have_a_mean_over_seeds(values: list[float]) -> None:
    with pytest.raises(AssertionError, match="finite numbers, at least one"):
        statistics.mean_and_deviation(values)


# --- seeds


def test_seeds_are_tested_by_welch() -> None:
    one, other = [0.60, 0.62, 0.64], [0.50, 0.55, 0.57]
    difference = np.mean(one) - np.mean(other)
    shares = np.var(one, ddof=1) / 3, np.var(other, ddof=1) / 3
    freedom = sum(shares) ** 2 / (shares[0] ** 2 / 2 + shares[1] ** 2 / 2)
    expected = 2 * t.sf(difference / sum(shares) ** 0.5, freedom)
    assert statistics.seeds_p_value(one, other) == pytest.approx(expected)
    assert statistics.seeds_p_value(other, one) == pytest.approx(expected)


def test_seeds_are_tested_against_a_method_that_always_gives_the_same() -> None:
    expected = 2 * t.sf((0.62 - 0.45) / (0.02 / 3**0.5), 2)
    assert statistics.seeds_p_value([0.60, 0.62, 0.64], [0.45]) == pytest.approx(expected)


def test_seeds_that_do_not_vary_say_nothing() -> None:
    assert statistics.seeds_p_value([0.5, 0.5], [0.4, 0.4]) is None


def test_the_test_over_seeds_errs_as_often_as_promised() -> None:
    """A seed moves all identities together: the test over people cannot know it, this one does."""
    random, false_alarms = np.random.default_rng(0), {"people": 0, "seeds": 0}
    groups = np.repeat(np.arange(60), 4)
    for _ in range(300):
        runs = [random.random(240) < 0.6 + random.normal(0, 0.04) for _ in range(6)]
        one, other = np.mean(runs[:3], axis=0), np.mean(runs[3:], axis=0)
        false_alarms["people"] += statistics.paired_p_value(one, other, groups, num_resamples=199) <= 0.05
        p_value = statistics.seeds_p_value([run.mean() for run in runs[:3]], [run.mean() for run in runs[3:]])
        false_alarms["seeds"] += p_value is not None and p_value <= 0.05
    assert false_alarms["seeds"] < 0.08 * 300 < 0.12 * 300 < false_alarms["people"]


def test_the_interval_of_a_difference_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    a, b = (rng.random(240) < share for share in (0.7, 0.6))
    low, high = statistics.difference_interval(a, b, groups)
    per_person = (a.astype(float) - b).reshape(60, 4).mean(axis=1)
    half = norm.ppf(0.975) * per_person.std(ddof=1) / 60**0.5
    assert (low, high) == pytest.approx((per_person.mean() - half, per_person.mean() + half), abs=0.01)
    assert statistics.difference_interval(b, a, groups) == pytest.approx((-high, -low), abs=0.01)
    same_low, same_high = statistics.difference_interval(a, a, groups)
    assert same_low == -same_high < 0, "60 people who do not differ do not exclude that others do"
