"""Statistics by identity: intervals, paired tests and their correction.

Queries of one identity are captions of the same person and fail together. Treated as independent they would make
intervals too narrow and p-values too small; therefore whole identities are resampled (cluster bootstrap, Davison and
Hinkley 1997, section 3.8) and exchanged.

`values` are figures in [0, 1] of the queries that have a right image, such as `rank <= 1` or the average precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from cskt.evaluation.results import Floats

ENTRIES_AT_ONCE = 2**20
"""Identities times resamples in one batch: 8 MiB an array, some tens of MiB in all."""
CONFIDENCE = 0.95
ROUNDING = 1e-12
"""Means that differ by less, and smaller deviations, differ by rounding only."""
DECIMALS = 9
"""Decimals of sums of differences, so that ties are not broken by the order of summation."""

FEW_PEOPLE = 20
"""Number of identities below which `few_people_note` explains the intervals."""


class Interval(NamedTuple):
    """A confidence interval of a mean."""

    low: float
    high: float


class MeanAndDeviation(NamedTuple):
    """Mean and deviation of a figure over seeds."""

    mean: float
    deviation: float | None
    """Sample standard deviation (n - 1); None for a single value."""


def curve_interval(
    values: ArrayLike, groups: ArrayLike, *, num_resamples: int = 10_000, seed: int = 0
) -> tuple[Floats, Floats]:
    """Compute the ends [K] of 95 % intervals of the means of K columns of values [Q, K], such as those of a CMC curve.

    Whole identities are drawn with replacement; the statistic is the ratio of the sum of their values to their number
    of queries. The interval is BCa's (Efron 1987): in 20,000 simulated data sets of 100 identities with 4 to 8 queries
    each, the nominal 95 % cover a true mean of 0.6 / 0.9 / 0.97 in 94.8 / 94.7 / 93.2 % of the cases; percentile
    intervals in 94.6 / 93.7 / 90.5 %, basic ones in 94.0 / 92.2 / 86.6 %.

    If all n identities have the same mean m, a bootstrap has nothing to vary. Then a share of at least
    L = (alpha / 2) ** (1 / n) of all people has that mean (Clopper and Pearson 1934), and the interval is
    [L m, 1 - L (1 - m)].
    """
    sums, counts = _per_identity(_fractions(values, 2), groups)
    means = sums / counts[:, None]
    mean = means[0]
    share = ((1 - CONFIDENCE) / 2) ** (1 / len(counts))
    low, high = share * mean, 1 - share * (1 - mean)
    varying = np.ptp(means, axis=0) > ROUNDING
    if varying.any():
        low[varying], high[varying] = _bootstrap(sums[:, varying], counts, num_resamples, seed)
    return low, high


def few_people_note(num_identities: int) -> str:
    """Return why neighbouring intervals differ much in width; empty if there are enough people."""
    if num_identities >= FEW_PEOPLE:
        return ""
    return (
        f"Only {num_identities} people: an interval is wide where all of them have the same value (100 for example),"
        " since it then allows for people of another value (Clopper and Pearson). Where they differ, it is computed"
        " from these people alone, and likely too narrow."
    )


def difference_interval(a: ArrayLike, b: ArrayLike, groups: ArrayLike) -> Interval:
    """Compute the 95 % interval of the mean difference a - b of two models on the same queries [Q], in [-1, 1].

    People are resampled as by `curve_interval`, each with the difference of the models on its queries.
    """
    halves = (1 + _fractions(a, 1) - _fractions(b, 1)) / 2  # in [0, 1], as `curve_interval` takes them
    low, high = curve_interval(halves[:, None], groups)
    return Interval(float(2 * low[0] - 1), float(2 * high[0] - 1))


def _bootstrap(sums: Floats, counts: Floats, num_resamples: int, seed: int) -> tuple[Floats, Floats]:
    """BCa bounds [K] of sum(sums) / sum(counts) over n identities; sums are [n, K], counts [n]."""
    num_identities = len(counts)
    sums_and_counts = np.column_stack([sums, counts])

    def ratio(identities: NDArray[Any], axis: int) -> Floats:
        # [..., n] indices -> [K, ...]. Counts of draws times sums is one matrix product for all K columns; gathering
        # the sums would take K times the memory.
        drawn = identities.astype(np.int64).reshape(-1, identities.shape[axis])
        places = drawn + num_identities * np.arange(len(drawn))[:, None]
        times = np.bincount(places.ravel(), minlength=len(drawn) * num_identities).reshape(len(drawn), num_identities)
        totals = times @ sums_and_counts
        return (totals[:, :-1] / totals[:, -1:]).T.reshape(-1, *identities.shape[:-1])

    interval = stats.bootstrap(
        (np.arange(num_identities),),
        ratio,
        n_resamples=num_resamples,
        batch=max(1, ENTRIES_AT_ONCE // num_identities),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return interval.low, interval.high


def paired_p_value(
    a: ArrayLike, b: ArrayLike, groups: ArrayLike, *, num_resamples: int = 9_999, seed: int = 0
) -> float:
    """Compute the two-sided p-value of the difference of two trained models on the same queries [Q], in (0, 1].

    It is about these models on other people, not about the methods: a method trained with another seed may differ from
    itself by as much, because a seed moves all identities together. See `seeds_p_value`.

    Permutation test: if the runs are equal, their results can be swapped within any identity (Fisher 1935,
    section 21). Exact if there are at most `num_resamples` swaps, otherwise with random swaps, the observed one
    included (Phipson and Smyth 2010).
    """
    sums = _per_identity((_fractions(a, 1) - _fractions(b, 1))[:, None], groups)[0][:, 0]
    differences = sums[sums.round(DECIMALS) != 0]  # swapping the others changes nothing
    observed = abs(differences.sum()).round(DECIMALS)
    num_different = len(differences)
    exact = 2**num_different <= num_resamples
    num_swaps = 2**num_different if exact else num_resamples
    step, rng, at_least = max(1, ENTRIES_AT_ONCE // max(1, num_different)), np.random.default_rng(seed), 0
    for start in range(0, num_swaps, step):
        numbers = np.arange(start, min(start + step, num_swaps))
        if exact:
            swapped = numbers[:, None] >> np.arange(num_different) & 1
        else:
            swapped = rng.integers(0, 2, (len(numbers), num_different))
        at_least += int((abs((1 - 2 * swapped) @ differences).round(DECIMALS) >= observed).sum())
    return at_least / num_swaps if exact else (at_least + 1) / (num_swaps + 1)


def seeds_p_value(a: ArrayLike, b: ArrayLike) -> float | None:
    """Compute the two-sided p-value of the difference of two methods, each a figure per seed; at least two of `a`.

    Welch's t-test (1947) on the seeds; a side that is exactly known, because nothing in it is trained, is given as one
    value of `b`, and `a` tested against it. None where the figures do not vary, so that nothing can be said.
    """
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    assert len(one) > 1 and len(other), "a single seed shows no variation"
    if one.std() + other.std() < ROUNDING:
        return None
    if len(other) == 1:
        return float(stats.ttest_1samp(one, other[0]).pvalue)
    return float(stats.ttest_ind(one, other, equal_var=False).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979): below alpha where the step-down procedure rejects at alpha.

    Of m p-values the result is max over j <= i of (m - j) p_(j), j from 0 in ascending order, at most 1; in the order
    given.
    """
    values = _fractions(p_values, 1) if len(p_values) else np.empty(0)
    order = values.argsort(kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return [float(value) for value in adjusted]


def mean_and_deviation(values: ArrayLike) -> MeanAndDeviation:
    """Return mean and sample deviation of a figure over seeds."""
    array = np.asarray(values, dtype=np.float64)
    assert array.ndim == 1 and array.size and np.isfinite(array).all(), "finite numbers, at least one"
    return MeanAndDeviation(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None)


def _fractions(values: ArrayLike, ndim: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    assert array.ndim == ndim and array.size, "[queries] or [queries, K], at least one"
    assert ((array >= 0) & (array <= 1)).all(), "fractions, neither percent nor NaN"
    return array


def _per_identity(values_QK: Floats, groups: ArrayLike) -> tuple[Floats, Floats]:
    """Sums [n, K] and numbers of queries [n] of the n identities, in ascending order of identity."""
    identities = np.asarray(groups)
    assert identities.shape == (len(values_QK),) and identities.dtype.kind in "iuU", "integers or strings"
    _, position, counts = np.unique(identities, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), values_QK.shape[1]))
    np.add.at(sums, position, values_QK)
    return sums, counts.astype(np.float64)
