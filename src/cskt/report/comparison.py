"""Methods side by side: one set of rows as a terminal table, Markdown, LaTeX, CSV or JSON.

People read percent, rounded, with the interval beside or below its figure; machines (CSV, JSON) read fractions, bytes
and seconds as they are. A terminal shows the columns that it has room for, the most important first, and names the
others; every other form shows all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from cskt.report.tables import METRIC_NAMES, UNKNOWN, bare_table, parameter_text, percent
from cskt.utils.console import literal
from cskt.utils.terminal import printable

NARROWEST_LABEL = 14
"""Characters that a terminal leaves to the name of a method, which folds where it is longer."""
ROUNDING = 1e-9
COST_KEYS = (
    "trainable_parameters", "total_parameters", "training_seconds", "training_peak_memory_bytes", "images_per_second",
    "captions_per_second", "checkpoint_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class ComparedFigure:
    """One metric of one method, as fractions."""

    mean: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end."""
    deviation: float | None = None
    """Standard deviation over seeds."""
    difference: float | None = None
    """Mean minus the baseline's; none for the baseline."""
    p_value: float | None = None
    """That the models do not differ on other people, corrected for the number of tests; none where not tested."""
    seeds_p_value: float | None = None
    """That the methods do not differ with other seeds, corrected; none where seeds are too few."""


@dataclass(frozen=True)
class ComparisonRow:
    """One method; what is not known is none."""

    label: str
    figures: Mapping[str, ComparedFigure]
    """By the names of `METRIC_NAMES`, all of them."""
    seeds: Sequence[int | None] = ()
    note: str = ""
    trained_on: str | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    training_seconds: float | None = None
    training_peak_memory_bytes: int | None = None
    images_per_second: float | None = None
    captions_per_second: float | None = None
    checkpoint_bytes: int | None = None
    zero_shot_r1: float | None = None
    """R1 of zero-shot CLIP on the same queries, a fraction."""

    @property
    def better_than_zero_shot(self) -> bool | None:
        """True if R1 is above that of zero-shot CLIP; None where that is not known."""
        return None if self.zero_shot_r1 is None else self.figures["r1"].mean > self.zero_shot_r1 + ROUNDING

    @property
    def remark(self) -> str:
        """The note, and a mark on a method that is no better than zero-shot CLIP."""
        marked = self.better_than_zero_shot is False
        mark = f"no better than zero-shot (R1 {percent(self.zero_shot_r1)})" if marked else ""
        return "; ".join(part for part in (self.note, mark) if part)


def comparison_grid(rows: Sequence[ComparisonRow]) -> list[list[str]]:
    """All that is known of the methods as text, headings first; columns that no row fills are left out."""
    columns = [
        ["Method", *(row.label for row in rows)],
        ["Trained on", *(row.trained_on or "" for row in rows)],
        ["Seeds", *(seed_text(row.seeds) for row in rows)],
    ]
    for key, name in METRIC_NAMES.items():
        figures = [row.figures[key] for row in rows]
        columns.append([name, *(f"{_mean(figure)} ({_interval(figure)})" for figure in figures)])
        if any(figure.p_value is not None for figure in figures):
            columns.append([f"Δ {name}", *(difference_text(figure.difference) for figure in figures)])
            columns.append([f"p people ({name})", *(p_text(figure.p_value) for figure in figures)])
            columns.append([f"p seeds ({name})", *(p_text(figure.seeds_p_value) for figure in figures)])
    columns += [
        ["Trained", *(parameter_text(row.trainable_parameters, row.total_parameters) for row in rows)],
        ["Parameters", *(UNKNOWN if row.total_parameters is None else f"{row.total_parameters:,}" for row in rows)],
        ["Training", *(duration(row.training_seconds) for row in rows)],
        ["Peak memory", *(size(row.training_peak_memory_bytes) for row in rows)],
        ["Images/s", *(rate(row.images_per_second) for row in rows)],
        ["Captions/s", *(rate(row.captions_per_second) for row in rows)],
        ["Checkpoint", *(size(row.checkpoint_bytes) for row in rows)],
        ["Note", *(row.remark for row in rows)],
    ]
    kept = [column for column in columns if column[0] == "Method" or set(column[1:]) - {"", UNKNOWN}]
    return [list(line) for line in zip(*kept, strict=True)]


def comparison_records(rows: Sequence[ComparisonRow]) -> list[dict[str, object]]:
    """The methods as flat records of plain values, all with the same keys; what is not known is none."""
    return [
        {
            "label": row.label,
            "seeds": " ".join("?" if seed is None else str(seed) for seed in row.seeds),
            "num_seeds": len(row.seeds),
            **{
                key if part == "mean" else f"{key}_{part}": getattr(row.figures[key], part)
                for key in METRIC_NAMES
                for part in ("mean", "low", "high", "deviation", "difference", "p_value", "seeds_p_value")
            },
            "trained_on": row.trained_on,
            **{key: getattr(row, key) for key in COST_KEYS},
            "note": row.note,
            "zero_shot_r1": row.zero_shot_r1,
            "better_than_zero_shot": row.better_than_zero_shot,
        }
        for row in rows
    ]


def comparison_table(rows: Sequence[ComparisonRow], title: str, explanation: str, width: int) -> Table:
    """The methods for a terminal, a few lines each: a figure, and what belongs to it below.

    Args:
        rows: the methods in the order to show.
        title: shown literally, above.
        explanation: of the figures, shown below.
        width: of the terminal in characters.
    """
    known = [column for column in _terminal_columns(rows) if set(column[1:]) - {"", UNKNOWN}]
    room = width - max(NARROWEST_LABEL, min(len(row.label) for row in rows))
    shown: list[list[str]] = []
    left_out: list[str] = []
    for column in known:
        needed = 2 + max(len(line) for cell in column for line in cell.splitlines() or [""])
        if needed <= room and not left_out:
            shown.append(column)
            room -= needed
        else:
            left_out.append(column[0])

    caption = Text(printable(explanation, keep="\n"), style="dim")
    if left_out:
        caption.append(f"\nnot shown here, but by --format csv: {', '.join(left_out)}")
    for row in rows:
        if row.remark:
            caption.append("\n" + printable(f"{row.label}: {row.remark}"), style="not dim yellow")
    table = bare_table(title, caption)
    table.add_column("Method", overflow="fold")
    for heading, *_ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(rows, start=1):
        table.add_row(literal(row.label), *(_two_lines(column[number]) for column in shown))
    return table


def _terminal_columns(rows: Sequence[ComparisonRow]) -> list[list[str]]:
    """Columns beside the name, the most important first; a cell is one to three lines."""
    figures = {key: [row.figures[key] for row in rows] for key in METRIC_NAMES}
    columns = []
    for key in ("r1", "mean_ap"):
        name = METRIC_NAMES[key]
        columns.append([name, *(f"{_mean(figure)}\n{_interval(figure)}" for figure in figures[key])])
        differences = [
            _lines(difference_text(one.difference), p_text(one.p_value, "p "), p_text(one.seeds_p_value, "s "))
            for one in figures[key]
        ]
        columns.append([f"Δ {name}", *differences])
    columns += [[METRIC_NAMES[key], *(percent(one.mean) for one in figures[key])] for key in ("r5", "r10", "mean_inp")]
    columns += [
        ["Trained", *(_lines(short(row.trainable_parameters), short(row.total_parameters, "of ")) for row in rows)],
        ["Training", *(_lines(duration(row.training_seconds), size(row.training_peak_memory_bytes)) for row in rows)],
        ["Checkpoint", *(size(row.checkpoint_bytes) for row in rows)],
        [
            "Encodes/s",
            *(_lines(rate(row.images_per_second, " img"), rate(row.captions_per_second, " txt")) for row in rows),
        ],
        ["Seeds", *(seed_text(row.seeds) for row in rows)],
    ]
    return columns


def seed_text(seeds: Sequence[int | None]) -> str:
    """`1, 2, 3`, or nothing where no seed is known."""
    return ", ".join(str(seed) for seed in seeds if seed is not None)


def difference_text(fraction: float | None) -> str:
    """A difference of fractions in percent points, with its sign."""
    return UNKNOWN if fraction is None else f"{100 * fraction:+.2f}".replace("-", "−")


def p_text(p_value: float | None, prefix: str = "") -> str:
    """A p-value to three decimals: `0.012`, `<0.001`."""
    if p_value is None:
        return UNKNOWN
    return f"{prefix}<0.001" if p_value < 0.001 else f"{prefix}{p_value:.3f}"


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def size(num_bytes: int | None) -> str:
    """Bytes in thousands: `48.5 MB`; zero is `0`."""
    return short(num_bytes, unit="B")


def short(number: int | None, prefix: str = "", unit: str = "") -> str:
    """A count with three figures or so: `12.1 M`, `of 161.7 M`."""
    if number is None:
        return UNKNOWN
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{prefix}{number / factor:.1f} {letter}{unit}"
    return f"{prefix}{number}" + (f" {unit}" if unit and number else "")


def rate(per_second: float | None, suffix: str = "") -> str:
    """A rate as a whole number, or with a decimal where it is small."""
    if per_second is None:
        return UNKNOWN
    return f"{per_second:,.0f}{suffix}" if per_second >= 10 else f"{per_second:.1f}{suffix}"


def _mean(figure: ComparedFigure) -> str:
    deviation = "" if figure.deviation is None else f" ± {100 * figure.deviation:.2f}"
    return percent(figure.mean) + deviation


def _interval(figure: ComparedFigure) -> str:
    return f"{percent(figure.low)}–{percent(figure.high)}"


def _lines(*parts: str) -> str:
    """What is known, one below the other."""
    known = [part for part in parts if part != UNKNOWN]
    return "\n".join(known) if known else UNKNOWN


def _two_lines(cell: str) -> Text:
    first, newline, second = cell.partition("\n")
    return Text(first + newline).append(second, style="dim")
