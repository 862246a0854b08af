"""Methods compared on the same queries: means, intervals, and whether a difference is more than chance.

Over several seeds each query counts with its mean over the seeds, so that intervals and tests are about the queries;
the variation between seeds is a separate deviation.

**Two p-values.** R1 and mAP of every method are tested against the baseline, twice. `p_value`: would the trained models
differ on other people? It does not know how much two trainings of one method differ. `seeds_p_value`: would the methods
differ if both were trained again? It needs at least two seeds of each, or one of a method that trains nothing. Methods
differ where both are small. The p-values of each kind, of both metrics together, are corrected for their number by
Holm's method (Holm 1979).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cskt.errors import CsktError
from cskt.evaluation.results import METRICS, Result, ResultInfo
from cskt.evaluation.statistics import (
    Interval,
    curve_interval,
    difference_interval,
    holm,
    mean_and_deviation,
    paired_p_value,
    seeds_p_value,
)

TESTED = ("r1", "mean_ap")
"""Metrics whose differences are tested."""
ROUNDING = 1e-9
PValues: TypeAlias = Mapping[tuple[str, str], float]
"""P-values by label and metric."""
EMPTY: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True)
class MethodResults:
    """Results of one method over one or several seeds, all on one split and ranked in one way."""

    label: str
    results: tuple[Result, ...]

    def __post_init__(self) -> None:
        if not self.results:
            raise CsktError(f"{self.label}: no results to compare")
        for other in self.results[1:]:
            check_same_split(self.label, self.results[0], self.label, other)
        if len({result.options for result in self.results}) > 1:
            raise CsktError(f"{self.label}: results with and without query expansion or re-ranking; give them apart")
        if len(set(self.seeds)) < len(self.seeds):
            raise CsktError(f"{self.label}: seeds {', '.join(map(str, self.seeds))}; each seed counts once")

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """Seed of each result."""
        return tuple(result.seed for result in self.results)

    @property
    def trains_nothing(self) -> bool:
        """True if another seed would give the same results."""
        return all(result.facts.trainable_parameters == 0 for result in self.results)

    def values(self, metric: str) -> NDArray[np.float64]:
        """Return the value [Q'] of each matched query, averaged over the seeds."""
        values: NDArray[np.float64] = np.mean([result.values(metric) for result in self.results], axis=0)
        return values

    def seed_means(self, metric: str) -> list[float]:
        """Return the metric of each seed."""
        return [float(result.values(metric).mean()) for result in self.results]

    def estimates(
        self, reference: MethodResults | None = None, p_values: PValues = EMPTY, seeds_p_values: PValues = EMPTY
    ) -> dict[str, Estimate]:
        """Return every metric with its interval, its p-values and, if there is a reference, the difference from it."""
        columns = np.column_stack([self.values(metric) for metric in METRICS])
        low, high = curve_interval(columns, self.results[0].groups)
        means = columns.mean(axis=0).tolist()
        return {
            metric: Estimate(
                mean=means[place],
                interval=Interval(float(low[place]), float(high[place])),
                deviation=mean_and_deviation(self.seed_means(metric)).deviation,
                difference=None if reference is None else means[place] - float(reference.values(metric).mean()),
                p_value=p_values.get((self.label, metric)),
                seeds_p_value=seeds_p_values.get((self.label, metric)),
                difference_interval=None
                if reference is None or metric not in TESTED
                else difference_interval(self.values(metric), reference.values(metric), self.results[0].groups),
            )
            for place, metric in enumerate(METRICS)
        }


@dataclass(frozen=True)
class Estimate:
    """One metric of one method, as fractions."""

    mean: float
    interval: Interval
    """95 % interval of the mean, people resampled."""
    deviation: float | None = None
    """Sample standard deviation of the seeds' means; None for a single seed."""
    difference: float | None = None
    """Mean minus the baseline's; None for the baseline."""
    p_value: float | None = None
    """P-value of "the models do not differ on other people", corrected; None if not tested."""
    seeds_p_value: float | None = None
    """P-value of "the methods do not differ with other seeds", corrected; None with too few seeds."""
    difference_interval: Interval | None = None
    """95 % interval of the difference, people resampled; None for the baseline and for metrics that are not tested."""


@dataclass(frozen=True)
class ComparedMethod:
    """One method of a comparison."""

    label: str
    estimates: Mapping[str, Estimate]
    """By metric, all of `results.METRICS`."""
    seeds: tuple[int | None, ...] = ()
    note: str = ""
    facts: ResultInfo = field(default_factory=ResultInfo)
    """Mean over the seeds."""
    zero_shot_r1: float | None = None
    """R1 of zero-shot CLIP on the same queries, a fraction; None if unknown, and for zero-shot CLIP itself."""

    @property
    def is_better_than_zero_shot(self) -> bool | None:
        """True if R1 is above that of zero-shot CLIP; None if unknown."""
        return None if self.zero_shot_r1 is None else self.estimates["r1"].mean > self.zero_shot_r1 + ROUNDING


@dataclass(frozen=True)
class MethodComparison:
    """Methods on one split, the baseline among them."""

    dataset: str
    split: str
    split_sha256: str
    num_queries: int
    num_gallery: int
    baseline: str
    num_tests: int
    """Tests that `p_value` is corrected for."""
    num_seeds_tests: int
    """Tests that `seeds_p_value` is corrected for: those of methods with enough seeds."""
    methods: tuple[ComparedMethod, ...]
    num_people: int
    """Identities of the queries that have a right image."""


def compare(
    methods: Sequence[MethodResults], baseline: int = 0, zero_shot: Mapping[str, float] = EMPTY
) -> MethodComparison:
    """Compare at least two methods on the same queries, all of them with the one at position `baseline`.

    `zero_shot` holds R1 of zero-shot CLIP on these queries by label, where a run recorded it; for the others it is the
    best R1 of a method that trains nothing and ranks in the same way.
    """
    if len(methods) < 2:
        raise CsktError(f"{len(methods)} to compare; give at least two")
    labels = [method.label for method in methods]
    if len(set(labels)) < len(labels):
        raise CsktError(f"two of {', '.join(labels)} have the same name; give each its own")
    reference = methods[baseline]
    one = reference.results[0]
    for method in methods:
        check_same_split(reference.label, one, method.label, method.results[0])

    tests = [(method, metric) for method in methods if method is not reference for metric in TESTED]
    p_values = _corrected(
        {
            (method.label, metric): paired_p_value(method.values(metric), reference.values(metric), one.groups)
            for method, metric in tests
        }
    )
    seeds_p_values = _corrected(
        {(method.label, metric): _seeds_p_value(method, reference, metric) for method, metric in tests}
    )

    def compared(method: MethodResults) -> ComparedMethod:
        recorded = zero_shot.get(method.label, _best_untrained_r1(methods, method.results[0].options))
        return ComparedMethod(
            label=method.label,
            estimates=method.estimates(None if method is reference else reference, p_values, seeds_p_values),
            seeds=method.seeds,
            note="; ".join(dict.fromkeys(result.note for result in method.results if result.note)),
            facts=mean_facts([result.facts for result in method.results]),
            zero_shot_r1=None if method.trains_nothing else recorded,
        )

    return MethodComparison(
        dataset=one.dataset,
        split=one.split,
        split_sha256=one.split_sha256,
        num_queries=int(one.metrics["t2i"]["num_queries"]),
        num_gallery=int(one.metrics["t2i"]["num_gallery"]),
        baseline=reference.label,
        num_tests=len(p_values),
        num_seeds_tests=len(seeds_p_values),
        methods=tuple(map(compared, methods)),
        num_people=len(np.unique(one.groups)),
    )


def _corrected(p_values: Mapping[tuple[str, str], float | None]) -> PValues:
    """Correct the p-values that are known for their number."""
    known = {test: p_value for test, p_value in p_values.items() if p_value is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def _best_untrained_r1(methods: Sequence[MethodResults], options: str) -> float | None:
    """Return the best R1 of the methods that train nothing and rank with the same options."""
    untrained = [method for method in methods if method.trains_nothing and method.results[0].options == options]
    return max((float(method.values("r1").mean()) for method in untrained), default=None)


def _seeds_p_value(method: MethodResults, reference: MethodResults, metric: str) -> float | None:
    """Return `statistics.seeds_p_value`; None if either side has too few seeds."""
    more, fewer = sorted((method, reference), key=lambda one: -len(one.results))
    is_testable = len(more.results) > 1 and (len(fewer.results) > 1 or fewer.trains_nothing)
    return seeds_p_value(more.seed_means(metric), fewer.seed_means(metric)) if is_testable else None


def check_same_split(label: str, result: Result, other_label: str, other: Result) -> None:
    """Raise CsktError if two results do not rank the same queries against the same gallery."""
    if result.split_sha256 != other.split_sha256:
        places = [
            f"{name}: {one.dataset} {one.split}, {len(one.query_pids)} queries, SHA-256 {one.split_sha256[:8]}"
            for name, one in ((label, result), (other_label, other))
        ]
        raise CsktError(
            f"different queries or galleries cannot be compared ({' | '.join(places)}); evaluate both on the same split"
        )
    if not len(result.groups):
        raise CsktError(f"{label}: no query of {result.dataset} {result.split} has a right image; nothing to compare")


def mean_facts(facts: Sequence[ResultInfo]) -> ResultInfo:
    """Return the facts of several seeds as one: means, of peak memory the maximum; None where a seed's is unknown."""

    def combined(name: str) -> Any:
        values = [getattr(one, name) for one in facts]
        if None in values:
            return None
        if isinstance(values[0], str):
            return values[0] if len(set(values)) == 1 else None
        if name == "training_peak_memory_bytes":
            return max(values)
        mean = float(np.mean(values))
        return round(mean) if isinstance(values[0], int) else mean

    return ResultInfo(**{one.name: combined(one.name) for one in dataclasses.fields(ResultInfo)})
