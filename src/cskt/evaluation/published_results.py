"""Results that papers report, and whether ours agree with them.

Figures: CSKT (Liu et al., ICASSP 2024, tables 1 to 3), IRRA (Jiang and Ye, CVPR 2023, tables 1 to 3), RDE (Qin et al.,
CVPR 2024), TBPS-CLIP (Cao et al., AAAI 2024; others report an R1 of 62.10 for it on RSTPReid). All select the epoch on
the test split, and report one number without an interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy import stats

from cskt.evaluation.statistics import Interval, mean_and_deviation

RECIPES = {"cskt": "cskt-reference", "irra": "irra", "rde": "rde-released", "tbps-clip": "tbps-clip"}
"""Method -> the recipe that repeats its released code."""

PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "cskt": {
        "cuhk-pedes": {"r1": 0.6970},
        "icfg-pedes": {"r1": 0.5890},
        "rstpreid": {"r1": 0.5775},
    },
    "irra": {
        "cuhk-pedes": {"r1": 0.7338, "mean_ap": 0.6613},
        "icfg-pedes": {"r1": 0.6346, "mean_ap": 0.3805},
        "rstpreid": {"r1": 0.6020, "mean_ap": 0.4717},
    },
    "rde": {
        "cuhk-pedes": {"r1": 0.7594, "mean_ap": 0.6756},
        "icfg-pedes": {"r1": 0.6768, "mean_ap": 0.4006},
        "rstpreid": {"r1": 0.6535, "mean_ap": 0.5088},
    },
    "tbps-clip": {
        "cuhk-pedes": {"r1": 0.7354, "mean_ap": 0.6538},
        "icfg-pedes": {"r1": 0.6505, "mean_ap": 0.3983},
        "rstpreid": {"r1": 0.6195, "mean_ap": 0.4826},
    },
}
"""Method -> data set -> metric -> fraction."""

PROTOCOLS = {
    "val": "epoch selected on val",
    "published": "published protocol: epoch selected on test",
}
"""Way to select the epoch -> label of its results."""

MIN_SEEDS = 3
"""With two seeds, the prediction interval is 13 deviations wide on each side: any figure would agree."""


def verdict(published: float, ours: Sequence[float]) -> str:
    """Return in words whether a published figure agrees with ours, one per seed; all are fractions.

    Both are measured on the same test split, so that only the trainings differ: the published figure agrees if it could
    be one more seed of ours, that is, if it is in the 95 % prediction interval of the next seed (Student's t; Hahn and
    Meeker 1991, section 4.7).
    """
    difference = f"{100 * (mean_and_deviation(ours).mean - published):+.2f} points"
    if len(ours) < MIN_SEEDS:
        return f"no verdict below {MIN_SEEDS} seeds, too few for the variation between seeds; {difference} from it"
    low, high = next_seed(ours)
    where = f"{difference} from it; another seed would be in {100 * low:.2f} to {100 * high:.2f}"
    if low <= published <= high:
        return f"agrees: the published figure could be one more seed of ours ({where})"
    return f"{'below' if published > high else 'above'} the published figure ({where})"


def next_seed(ours: Sequence[float]) -> Interval:
    """Return the 95 % prediction interval of the figure of one more seed, from at least two."""
    mean, deviation = mean_and_deviation(ours)
    assert deviation is not None, "one seed shows no variation"
    num_seeds = len(ours)
    half = float(stats.t.ppf(0.975, num_seeds - 1)) * deviation * (1 + 1 / num_seeds) ** 0.5
    return Interval(mean - half, mean + half)
