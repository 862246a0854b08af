"""Numbers as text: fractions as percent, bytes, seconds and rates. Here, and only here, fractions become percent."""

from __future__ import annotations

METRIC_NAMES = {"r1": "R1", "r5": "R5", "r10": "R10", "mean_ap": "mAP", "mean_inp": "mINP"}
"""Key in `RetrievalMetrics.summary()` -> name in tables, in the order in which papers print them."""
UNKNOWN = "–"
"""Text of a number that is not known."""


def percent(fraction: float | None) -> str:
    """Return a fraction as percent with two decimals, without the sign: 0.697 -> `69.70`."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.2f}"


def difference_text(fraction: float | None) -> str:
    """Return a difference of fractions in percentage points with its sign: 0.0123 -> `+1.23`."""
    return UNKNOWN if fraction is None else f"{100 * fraction:+.2f}".replace("-", "−")


def p_text(p_value: float | None, prefix: str = "") -> str:
    """Return a p-value with three decimals: `0.012`, `<0.001`."""
    if p_value is None:
        return UNKNOWN
    return f"{prefix}<0.001" if p_value < 0.001 else f"{prefix}{p_value:.3f}"


def parameter_text(trainable: int | None, total: int | None) -> str:
    """Return the number of trained parameters and their share: `12,117,888 (7.49 %)`."""
    if trainable is None:
        return UNKNOWN
    share = f" ({100 * trainable / total:.2f} %)" if total else ""
    return f"{trainable:,}{share}"


def duration(seconds: float | None) -> str:
    """Return seconds as `45 s`, `12 min` or `3.4 h`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def size(num_bytes: int | None) -> str:
    """Return bytes in decimal units: `48.5 MB`; zero is `0`."""
    return short(num_bytes, unit="B")


def short(number: int | None, prefix: str = "", unit: str = "") -> str:
    """Return a number with its decimal unit: `12.1 M`, with a prefix `of 161.7 M`."""
    if number is None:
        return UNKNOWN
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{prefix}{number / factor:.1f} {letter}{unit}"
    return f"{prefix}{number}" + (f" {unit}" if unit and number else "")


def rate(per_second: float | None, suffix: str = "") -> str:
    """Return a rate as an integer, below 10 with one decimal."""
    if per_second is None:
        return UNKNOWN
    return f"{per_second:,.0f}{suffix}" if per_second >= 10 else f"{per_second:.1f}{suffix}"
