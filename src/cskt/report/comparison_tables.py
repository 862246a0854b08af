"""Methods side by side as a terminal table, Markdown, LaTeX, CSV or JSON.

Tables for people hold percent with intervals; CSV and JSON hold fractions, bytes and seconds. A terminal shows as many
columns as fit, the most important first, and names the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from cskt.evaluation.comparison import TESTED, ComparedMethod, Estimate, MethodComparison
from cskt.evaluation.statistics import few_people_note
from cskt.report.numbers import (
    METRIC_NAMES,
    UNKNOWN,
    difference_text,
    duration,
    p_text,
    parameter_text,
    percent,
    rate,
    short,
    size,
)
from cskt.report.tables import bare_table, table_text
from cskt.utils.console import literal

MIN_LABEL_CHARACTERS = 14
"""Characters of a terminal that are reserved for labels; longer ones fold."""
SIGNIFICANT = 0.05
"""P-value below which a difference is more than chance."""
COST_FACTS = (
    "trainable_parameters", "total_parameters", "training_seconds", "training_peak_memory_bytes", "images_per_second",
    "captions_per_second", "checkpoint_bytes",
)  # fmt: skip
"""Fields of `ResultInfo` that records contain."""
COST_HEADINGS = ("Trained", "Parameters", "Training", "Peak memory", "Images/s", "Captions/s", "Checkpoint")
"""Columns of sizes, times and rates."""


@dataclass(frozen=True)
class SettingDifference:
    """A config field in which the compared runs differ."""

    key: str
    """Dotted name in the config: `optim.lr`."""
    values: Mapping[str, list[Any]]
    """Label of a method -> its values as plain data: one, or several where its seeds differ."""

    def text_of(self, label: str) -> str:
        """Return the value of a method as text; empty if its settings are unknown."""
        return " / ".join(_value_text(value) for value in self.values.get(label, []))


def comparison_text(comparison: MethodComparison, form: str, settings: Sequence[SettingDifference] = ()) -> str:
    """Return a comparison in one of `tables.FORMATS`, with the settings in which the runs differ."""
    methods, labels = comparison.methods, [method.label for method in comparison.methods]
    title = (
        f"{comparison.dataset} {comparison.split}: {comparison.num_queries:,} captions,"
        f" {comparison.num_gallery:,} images"
    )
    note = few_people_note(comparison.num_people)
    lines = [comparison_explanation(comparison), *([note] if note else []), *verdict(comparison)]
    if settings:
        lines.append("Settings that differ between the trained runs:")
        for one in settings:
            values = [f"{label} {text}" for label in labels if (text := one.text_of(label))]
            lines.append(f"- {one.key}: {', '.join(values)}")
    records = comparison_records(methods)
    names = [field.name for field in dataclasses.fields(comparison) if field.name != "methods"]
    content = {name: getattr(comparison, name) for name in names} | {
        "rows": records,
        "differing_settings": {
            one.key: {label: values[0] if len(values) == 1 else values for label, values in one.values.items()}
            for one in settings
        },
    }
    return table_text(
        form,
        grid=comparison_grid(methods),
        records=[
            record | {one.key: one.text_of(label) for one in settings}
            for record, label in zip(records, labels, strict=True)
        ],
        content=content,
        terminal=lambda width: comparison_table(methods, title, "\n".join(lines), width),
        title=title,
        lines=lines,
    )


def comparison_explanation(comparison: MethodComparison) -> str:
    """Return an explanation of the columns of a comparison."""
    explanation = (
        f"Percent, with the 95 % interval over people. Δ: against {comparison.baseline}. p or p people: these models on"
        f" other people (permutation test, corrected for {comparison.num_tests} tests by Holm)."
    )
    if comparison.num_seeds_tests:
        explanation += (
            f" s or p seeds: the methods trained again (Welch's test, for {comparison.num_seeds_tests})."
            " Methods differ where both are small."
        )
    return explanation


def page_explanation(comparison: MethodComparison) -> str:
    """Return an explanation of the differences that a page shows."""
    return (
        f"Δ: difference from {comparison.baseline} in percentage points. p people: how probable a difference at least"
        " as large is, if both models were equally good on people in general (permutation test over people, corrected"
        f" for {comparison.num_tests} tests by Holm); below 0.05, chance alone is a poor explanation."
    )


def verdict(comparison: MethodComparison) -> list[str]:
    """Return in one line whether the second of two methods is better than the baseline; nothing for more methods."""
    others = [method for method in comparison.methods if method.label != comparison.baseline]
    if len(others) != 1:
        return []
    one = others[0].estimates["r1"]
    if one.difference is None or one.difference_interval is None:
        return []
    low, high = one.difference_interval
    answer = "better" if one.difference > 0 else "worse"
    if one.p_value is None or one.p_value >= SIGNIFICANT or low <= 0 <= high:
        answer = "too few people to decide"
    elif one.seeds_p_value is not None and one.seeds_p_value >= SIGNIFICANT:
        answer = "too few seeds to decide"
    gain, *ends = map(difference_text, (one.difference, low, high))
    line = (
        f"{others[0].label} against {comparison.baseline}: {answer}, R1 {gain} (95 % interval {ends[0]} to {ends[1]})"
    )
    return [
        line
        if one.seeds_p_value is not None
        else f"{line}; about these two trained models ({_seed_counts(comparison)})"
    ]


def _seed_counts(comparison: MethodComparison) -> str:
    counts = {method.label: len(method.seeds) for method in comparison.methods}
    if set(counts.values()) == {1}:
        return "one seed each"
    return "seeds: " + ", ".join(f"{label} {count}" for label, count in counts.items())


def comparison_grid(methods: Sequence[ComparedMethod]) -> list[list[str]]:
    """Return all columns as text, headings first, without the columns that are empty for all methods."""
    rows = [_grid_row(method) for method in methods]
    headings = _filled(rows)
    return [headings, *([row[heading] for heading in headings] for row in rows)]


def split_columns(grid: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the differences and the costs of a comparison as two grids, each narrow enough for a page.

    The metrics themselves are in the table of results.
    """
    costs = [place for place, heading in enumerate(grid[0]) if heading in COST_HEADINGS]
    left_out = {*COST_HEADINGS, *METRIC_NAMES.values()}
    differences = [place for place, heading in enumerate(grid[0]) if heading not in left_out]
    return [[row[place] for place in differences] for row in grid], [
        [row[place] for place in (0, *costs)] for row in grid
    ]


def _grid_row(method: ComparedMethod) -> dict[str, str]:
    """Return the cells of a method by their headings."""
    facts = method.facts
    cells = {"Method": method.label, "Trained on": facts.trained_on or "", "Seeds": _seeds_text(method)}
    for key, name in METRIC_NAMES.items():
        one = method.estimates[key]
        cells[name] = f"{_mean_text(one)} ({_interval_text(one)})"
        if key in TESTED:
            cells[f"Δ {name}"] = difference_text(one.difference)
            cells[f"p people ({name})"] = p_text(one.p_value)
            cells[f"p seeds ({name})"] = p_text(one.seeds_p_value)
    return cells | {
        "Trained": parameter_text(facts.trainable_parameters, facts.total_parameters),
        "Parameters": UNKNOWN if facts.total_parameters is None else f"{facts.total_parameters:,}",
        "Training": duration(facts.training_seconds),
        "Peak memory": size(facts.training_peak_memory_bytes),
        "Images/s": rate(facts.images_per_second),
        "Captions/s": rate(facts.captions_per_second),
        "Checkpoint": size(facts.checkpoint_bytes),
        "Note": _note(method),
    }


def _filled(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the headings of the columns that are not empty in all rows."""
    return [heading for heading in rows[0] if {row[heading] for row in rows} - {"", UNKNOWN}]


def comparison_records(methods: Sequence[ComparedMethod]) -> list[dict[str, object]]:
    """Return the methods as flat records of plain values, all with the same keys; unknown values are None."""
    records = []
    for method in methods:
        record: dict[str, object] = {
            "label": method.label,
            "seeds": " ".join("?" if seed is None else str(seed) for seed in method.seeds),
            "num_seeds": len(method.seeds),
        }
        for key in METRIC_NAMES:
            one = method.estimates[key]
            record[key] = one.mean
            record[f"{key}_low"], record[f"{key}_high"] = one.interval
            for part in ("deviation", "difference", "p_value", "seeds_p_value"):
                record[f"{key}_{part}"] = getattr(one, part)
        record["trained_on"] = method.facts.trained_on
        record |= {name: getattr(method.facts, name) for name in COST_FACTS}
        record["note"] = method.note
        record["zero_shot_r1"] = method.zero_shot_r1
        record["better_than_zero_shot"] = method.is_better_than_zero_shot
        records.append(record)
    return records


def comparison_table(methods: Sequence[ComparedMethod], title: str, explanation: str, width: int) -> Table:
    """Return the table for a terminal: each number with its interval or p-values below it."""
    rows = [_terminal_row(method) for method in methods]
    known, shown = _filled(rows), []
    remaining = width - max(MIN_LABEL_CHARACTERS, min(len(method.label) for method in methods))
    for heading in known:
        lines = [line for text in (heading, *(row[heading] for row in rows)) for line in text.splitlines()]
        remaining -= 2 + max(map(len, lines))
        if remaining < 0:
            break
        shown.append(heading)
    if hidden := known[len(shown) :]:
        explanation += f"\nnot shown here, but by --format csv: {', '.join(hidden)}"
    table = bare_table(title, explanation, [(method.label, _note(method)) for method in methods])
    table.add_column("Method", overflow="fold")
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for method, row in zip(methods, rows, strict=True):
        table.add_row(literal(method.label), *(_two_lines(row[heading]) for heading in shown))
    return table


def _terminal_row(method: ComparedMethod) -> dict[str, str]:
    """Return the cells after the label by their headings, the most important first; a cell is one to three lines."""
    facts, cells = method.facts, {}
    for key in TESTED:
        name, one = METRIC_NAMES[key], method.estimates[key]
        p_values = p_text(one.p_value, "p "), p_text(one.seeds_p_value, "s ")
        cells[name] = f"{_mean_text(one)}\n{_interval_text(one)}"
        cells[f"Δ {name}"] = _lines(difference_text(one.difference), *p_values)
    for key in ("r5", "r10", "mean_inp"):
        cells[METRIC_NAMES[key]] = percent(method.estimates[key].mean)
    return cells | {
        "Trained": _lines(short(facts.trainable_parameters), short(facts.total_parameters, "of ")),
        "Training": _lines(duration(facts.training_seconds), size(facts.training_peak_memory_bytes)),
        "Checkpoint": size(facts.checkpoint_bytes),
        "Encodes/s": _lines(rate(facts.images_per_second, " img"), rate(facts.captions_per_second, " txt")),
        "Seeds": _seeds_text(method),
    }


def _note(method: ComparedMethod) -> str:
    """Return the note of a method, and a mark if it is no better than zero-shot CLIP."""
    is_marked = method.is_better_than_zero_shot is False
    mark = f"no better than zero-shot (R1 {percent(method.zero_shot_r1)})" if is_marked else ""
    return "; ".join(part for part in (method.note, mark) if part)


def _seeds_text(method: ComparedMethod) -> str:
    return ", ".join(str(seed) for seed in method.seeds if seed is not None)


def _mean_text(estimate: Estimate) -> str:
    deviation = "" if estimate.deviation is None else f" ± {100 * estimate.deviation:.2f}"
    return percent(estimate.mean) + deviation


def _interval_text(estimate: Estimate) -> str:
    return "–".join(map(percent, estimate.interval))


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_value_text(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part != UNKNOWN) or UNKNOWN


def _two_lines(cell: str) -> Text:
    first, newline, second = cell.partition("\n")
    return Text(first + newline).append(second, style="dim")
