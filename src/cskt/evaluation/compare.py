"""Methods side by side on the same queries: means, intervals, and whether a difference is more than chance.

An entry is one method, trained with one seed or several. Over several seeds each query counts with its average, so that
the interval and the tests tell of the queries; how far the seeds lie apart stands beside them as a deviation.

**Two questions, two p-values.** Every entry but the baseline is tested against the baseline on R1 and on mAP, twice.
`p_value` asks of the trained models: would they differ on other people? It cannot know how far two trainings of one
method differ from each other. `seeds_p_value` asks of the methods: would they differ if both were trained again? It
needs at least two seeds of each, or one of a method that trains nothing. A difference of methods is one that both
questions affirm. The p-values of each question, of both metrics together, are corrected by Holm's method for their
number (Holm 1979). Other metrics are not tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from cskt.errors import CsktError
from cskt.evaluation.results import METRICS, Facts, Result
from cskt.evaluation.statistics import Interval, curve_interval, holm, mean_and_deviation, paired_p_value, seeds_p_value

TESTED = ("r1", "mean_ap")
"""Metrics whose differences are tested."""


@dataclass(frozen=True)
class Entry:
    """One method: its results over one or several seeds, all on one split.

    Raises:
        CsktError: no result, results of different splits or ways of ranking, or one seed twice.
    """

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

    def values(self, metric: str) -> NDArray[np.float64]:
        """[Q'] value of each matched query, averaged over the seeds."""
        values: NDArray[np.float64] = np.mean([result.values(metric) for result in self.results], axis=0)
        return values

    def seed_means(self, metric: str) -> list[float]:
        """The metric of each seed."""
        return [float(result.values(metric).mean()) for result in self.results]

    @property
    def is_exact(self) -> bool:
        """Whether nothing in it is trained, so that another seed would give the same."""
        return all(result.facts.trainable_parameters == 0 for result in self.results)


@dataclass(frozen=True)
class Figure:
    """One metric of one entry, as fractions."""

    mean: float
    interval: Interval
    """95 % interval of the mean, over people as they might have been drawn."""
    deviation: float | None
    """Sample standard deviation of the seeds' means; none for a single seed."""
    difference: float | None
    """Mean minus the baseline's; none for the baseline."""
    p_value: float | None
    """That these models do not differ from the baseline's on other people, corrected; none where not tested."""
    seeds_p_value: float | None
    """That the method does not differ from the baseline with other seeds, corrected; none where seeds are too few."""


@dataclass(frozen=True)
class Compared:
    """One entry beside the baseline."""

    label: str
    seeds: tuple[int | None, ...]
    note: str
    figures: dict[str, Figure]
    """By metric, all of `results.METRICS`."""
    facts: Facts
    """Time, rates and sizes averaged over the seeds, the peak of memory the largest."""
    zero_shot_r1: float | None = None
    """R1 of zero-shot CLIP on the same queries, a fraction; none where it is not known, and for zero-shot itself."""


@dataclass(frozen=True)
class Comparison:
    """Entries on one split, the baseline among them."""

    dataset: str
    split: str
    split_sha256: str
    num_queries: int
    num_gallery: int
    baseline: str
    num_tests: int
    """Tests that `p_value` is corrected for."""
    num_seeds_tests: int
    """Tests that `seeds_p_value` is corrected for: those of entries with enough seeds."""
    rows: tuple[Compared, ...]


def compare(
    entries: Sequence[Entry], baseline: int = 0, zero_shot: Mapping[str, float] = MappingProxyType({})
) -> Comparison:
    """Compare methods on the same queries.

    Args:
        entries: at least two, in the order to show.
        baseline: position in `entries` of the one that the others are measured against.
        zero_shot: label -> R1 of zero-shot CLIP on these queries, where a method knows its own; for the others it is
            the best R1 of an entry that trains nothing and ranks in the same way.

    Raises:
        CsktError: fewer than two entries, labels that are not distinct, or different queries or galleries.
    """
    if len(entries) < 2:
        raise CsktError(f"{len(entries)} to compare; give at least two")
    labels = [entry.label for entry in entries]
    if len(set(labels)) < len(labels):
        raise CsktError(f"two of {', '.join(labels)} have the same name; give each its own")
    reference = entries[baseline]
    for entry in entries:
        check_same_split(reference.label, reference.results[0], entry.label, entry.results[0])

    groups = reference.results[0].groups
    tests = [(position, metric) for position in range(len(entries)) if position != baseline for metric in TESTED]
    raw = [paired_p_value(entries[n].values(metric), reference.values(metric), groups) for n, metric in tests]
    p_values = dict(zip(tests, holm(raw), strict=True))
    of_seeds = {(n, metric): _seeds_p_value(entries[n], reference, metric) for n, metric in tests}
    known = {test: p_value for test, p_value in of_seeds.items() if p_value is not None}
    seeds_p_values = dict(zip(known, holm(list(known.values())), strict=True))
    one = reference.results[0]
    return Comparison(
        dataset=one.dataset,
        split=one.split,
        split_sha256=one.split_sha256,
        num_queries=int(one.metrics["t2i"]["num_queries"]),
        num_gallery=int(one.metrics["t2i"]["num_gallery"]),
        baseline=reference.label,
        num_tests=len(tests),
        num_seeds_tests=len(known),
        rows=tuple(
            Compared(
                label=entry.label,
                seeds=entry.seeds,
                note="; ".join(dict.fromkeys(result.note for result in entry.results if result.note)),
                figures=figures_of(
                    entry,
                    None if position == baseline else reference,
                    {metric: p_values.get((position, metric)) for metric in METRICS},
                    {metric: seeds_p_values.get((position, metric)) for metric in METRICS},
                ),
                facts=mean_facts([result.facts for result in entry.results]),
                zero_shot_r1=None if entry.is_exact else zero_shot.get(entry.label, _exact_r1(entries, entry)),
            )
            for position, entry in enumerate(entries)
        ),
    )


def _exact_r1(entries: Sequence[Entry], entry: Entry) -> float | None:
    """The best R1 of the entries that train nothing and rank as this one does."""
    options = entry.results[0].options
    found = [float(one.values("r1").mean()) for one in entries if one.is_exact and one.results[0].options == options]
    return max(found, default=None)


def figures_of(
    entry: Entry,
    reference: Entry | None = None,
    p_values: Mapping[str, float | None] = MappingProxyType({}),
    seeds_p_values: Mapping[str, float | None] = MappingProxyType({}),
) -> dict[str, Figure]:
    """Every metric of an entry, beside a reference unless there is none, with the p-values that are known."""
    columns = np.column_stack([entry.values(metric) for metric in METRICS])
    band = curve_interval(columns, entry.results[0].groups)
    figures = {}
    for place, metric in enumerate(METRICS):
        mean = float(columns[:, place].mean())
        figures[metric] = Figure(
            mean=mean,
            interval=Interval(float(band.low[place]), float(band.high[place])),
            deviation=mean_and_deviation(entry.seed_means(metric)).deviation,
            difference=None if reference is None else mean - float(reference.values(metric).mean()),
            p_value=p_values.get(metric),
            seeds_p_value=seeds_p_values.get(metric),
        )
    return figures


def _seeds_p_value(entry: Entry, reference: Entry, metric: str) -> float | None:
    """See `statistics.seeds_p_value`; none where either side has too few seeds."""
    here, there = entry.seed_means(metric), reference.seed_means(metric)
    if len(here) < len(there):  # the test takes the side that varies first, and is the same both ways
        here, there, entry, reference = there, here, reference, entry
    enough = len(here) > 1 and (len(there) > 1 or reference.is_exact)
    return seeds_p_value(here, there) if enough else None


def check_same_split(label: str, result: Result, other_label: str, other: Result) -> None:
    """See that two results rank the same queries against the same gallery.

    Raises:
        CsktError: they do not; one line that names both.
    """
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


def mean_facts(facts: Sequence[Facts]) -> Facts:
    """The facts of several seeds as one: what differs is averaged, and unknown where any seed's is."""

    def mean(name: str) -> float | None:
        values = [getattr(one, name) for one in facts]
        return None if None in values else float(np.mean(values))

    def common(name: str) -> str | None:
        values = {getattr(one, name) for one in facts}
        return values.pop() if len(values) == 1 else None

    def whole(name: str) -> int | None:
        value = mean(name)
        return None if value is None else round(value)

    peaks = [one.training_peak_memory_bytes for one in facts]
    return Facts(
        trainable_parameters=whole("trainable_parameters"),
        total_parameters=whole("total_parameters"),
        checkpoint_bytes=whole("checkpoint_bytes"),
        weights_sha256=common("weights_sha256"),
        trained_on=common("trained_on"),
        training_seconds=mean("training_seconds"),
        training_peak_memory_bytes=None if None in peaks else max(peak for peak in peaks if peak is not None),
        images_per_second=mean("images_per_second"),
        captions_per_second=mean("captions_per_second"),
        device=common("device"),
        precision=common("precision"),
    )
