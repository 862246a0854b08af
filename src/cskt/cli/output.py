"""Comparisons and matrices in the form that the user asks for, on the terminal or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cskt.cli.parsing import Parser
from cskt.cli.run_settings import Difference
from cskt.errors import CsktError
from cskt.evaluation.compare import Comparison
from cskt.evaluation.results import Result
from cskt.evaluation.statistics import mean_and_deviation
from cskt.report.comparison import (
    COST_KEYS,
    ComparedFigure,
    ComparisonRow,
    comparison_grid,
    comparison_records,
    comparison_table,
)
from cskt.report.cross_domain import LEGEND, MatrixCell, MatrixRow, matrix_grid, matrix_records, matrix_table
from cskt.report.formats import csv_of, latex, markdown, markdown_cell
from cskt.report.tables import is_number_column
from cskt.utils.console import console, write_rendered
from cskt.utils.files import write_atomically
from cskt.utils.terminal import json_text

SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".json": "json"}
"""Suffix of an output file -> the format it asks for."""
FORMATS = ("terminal", *SUFFIXES.values())


def add_format_flags(parser: Parser) -> None:
    """`--format` and `--output`."""
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --output, else terminal")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write here instead of to the terminal")


def output_format(asked: str | None, path: Path | None) -> str:
    """The format that was asked for, by name or by the suffix of a file.

    Raises:
        CsktError: neither says it.
    """
    if asked or path is None:
        return asked or "terminal"
    if path.suffix.lower() not in SUFFIXES:
        raise CsktError(f"--output {path}: end it in {', '.join(SUFFIXES)}, or say the --format")
    return SUFFIXES[path.suffix.lower()]


def write_output(text: str, form: str, path: Path | None) -> None:
    """Write text in one of `FORMATS` to a file, whole or not at all, or to stdout."""
    if path is None and form == "terminal":
        write_rendered(text)
    elif path is None:
        print(text, end="")
    else:
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def comparison_text(comparison: Comparison, form: str, settings: Sequence[Difference] = ()) -> str:
    """A comparison in one of `FORMATS`, ending in a newline.

    Args:
        comparison: figures and facts.
        form: one of `FORMATS`.
        settings: in which the runs differ, by label.
    """
    rows = comparison_rows(comparison)
    title = (
        f"{comparison.dataset} {comparison.split}: {comparison.num_queries:,} captions,"
        f" {comparison.num_gallery:,} images"
    )
    labels = [row.label for row in rows]
    lines = [comparison_explanation(comparison), *settings_lines(settings, labels)]
    explanation = "\n".join(lines)
    if form == "json":
        content = {
            "dataset": comparison.dataset,
            "split": comparison.split,
            "split_sha256": comparison.split_sha256,
            "num_queries": comparison.num_queries,
            "num_gallery": comparison.num_gallery,
            "baseline": comparison.baseline,
            "num_tests": comparison.num_tests,
            "num_seeds_tests": comparison.num_seeds_tests,
            "rows": comparison_records(rows),
            "differing_settings": {
                one.key: {label: values[0] if len(values) == 1 else values for label, values in one.values.items()}
                for one in settings
            },
        }
        return json_text(content, indent=1) + "\n"
    if form == "csv":
        return csv_of(
            [
                record | {one.key: one.text_of(label) for one in settings}
                for record, label in zip(comparison_records(rows), labels, strict=True)
            ]
        )
    if form == "markdown":
        grid = markdown(comparison_grid(rows), is_number_column)
        return "\n".join([markdown_cell(title), "", grid, *map(markdown_cell, lines), ""])
    if form == "latex":
        return latex(comparison_grid(rows), is_number_column, f"{title}\n{explanation}")
    terminal = console()
    with terminal.capture() as capture:
        terminal.print(comparison_table(rows, title, explanation, terminal.width))
    return capture.get()


def settings_lines(settings: Sequence[Difference], labels: Sequence[str]) -> list[str]:
    """`optim.lr: cskt 0.001, lora 0.0003` for every setting, under a heading; nothing where none differs."""
    if not settings:
        return []
    lines = [
        f"- {one.key}: " + ", ".join(f"{label} {text}" for label in labels if (text := one.text_of(label)))
        for one in settings
    ]
    return ["Settings that differ between the trained runs:", *lines]


def comparison_explanation(comparison: Comparison) -> str:
    """How to read the figures of a comparison."""
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


def comparison_rows(comparison: Comparison) -> list[ComparisonRow]:
    """The rows of a comparison as plain values for a table."""
    return [
        ComparisonRow(
            label=row.label,
            figures={
                metric: ComparedFigure(
                    mean=figure.mean,
                    low=figure.interval.low,
                    high=figure.interval.high,
                    deviation=figure.deviation,
                    difference=figure.difference,
                    p_value=figure.p_value,
                    seeds_p_value=figure.seeds_p_value,
                )
                for metric, figure in row.figures.items()
            },
            seeds=row.seeds,
            note=row.note,
            trained_on=row.facts.trained_on,
            zero_shot_r1=row.zero_shot_r1,
            **{key: getattr(row.facts, key) for key in COST_KEYS},
        )
        for row in comparison.rows
    ]


def matrix_row(results: Sequence[Sequence[Result]], trained_on: str, in_domain: Sequence[bool]) -> MatrixRow:
    """The line of a run, or of several seeds of it.

    Args:
        results: per seed one per data set.
        trained_on: what tables call the data set of the training; empty where nothing was trained.
        in_domain: per data set whether it is that one.
    """
    cells = []
    for of_place, own in zip(zip(*results, strict=True), in_domain, strict=True):
        r1, mean_ap = (
            mean_and_deviation([result.metrics["t2i"][metric] for result in of_place]) for metric in ("r1", "mean_ap")
        )
        cells.append(MatrixCell(r1.mean, mean_ap.mean, own, r1.deviation))
    first = results[0][0]
    return MatrixRow(first.label, trained_on, cells, first.note)


def matrix_text(rows: Sequence[MatrixRow], columns: Sequence[str], split: str, form: str) -> str:
    """The table in one of the formats of `cskt compare`, ending in a newline."""
    if form == "json":
        return json_text({"split": split, "cells": matrix_records(rows, columns)}, indent=1) + "\n"
    if form == "csv":
        return csv_of(matrix_records(rows, columns))
    if form == "markdown":
        return f"{markdown(matrix_grid(rows, columns), is_number_column)}\n{LEGEND}\n"
    if form == "latex":
        return latex(matrix_grid(rows, columns), is_number_column, LEGEND)
    terminal = console()
    with terminal.capture() as capture:
        terminal.print(matrix_table(rows, columns, f"trained on x tested on, split {split}"))
    return capture.get()
