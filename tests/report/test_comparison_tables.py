"""Comparisons and cross-domain tables in every format: nothing cut, nothing read as markup."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from cskt.evaluation.comparison import ComparedMethod, Estimate, MethodComparison
from cskt.evaluation.results import ResultInfo
from cskt.evaluation.statistics import Interval, MeanAndDeviation
from cskt.report.comparison_tables import (
    SettingDifference,
    comparison_grid,
    comparison_records,
    comparison_table,
    comparison_text,
    verdict,
)
from cskt.report.cross_domain import (
    CrossDomainCell,
    CrossDomainRow,
    cross_domain_grid,
    cross_domain_records,
    cross_domain_table,
)
from cskt.report.numbers import METRIC_NAMES, difference_text, duration, p_text, rate, size
from cskt.report.tables import latex, markdown, table_text


def estimates(
    mean: float,
    difference: float | None = None,
    p_value: float | None = None,
    deviation: float | None = None,
) -> dict[str, Estimate]:
    """The same for all metrics, but only R1 and mAP tested."""
    seeds_p_value = None if deviation is None else 0.0213
    interval = Interval(mean - 0.012, mean + 0.0113)
    tested = Estimate(mean, interval, deviation, difference, p_value, seeds_p_value)
    untested = replace(tested, p_value=None, seeds_p_value=None)
    return {key: tested if key in ("r1", "mean_ap") else untested for key in METRIC_NAMES}


CLIP = ComparedMethod(
    "CLIP",
    estimates(0.12),
    facts=ResultInfo(
        trainable_parameters=0, total_parameters=149_620_737, checkpoint_bytes=0,
        images_per_second=1234.0, captions_per_second=4567.0,
    ),
)  # fmt: skip
CSKT = ComparedMethod(
    "cskt_[x] 100% & more",
    estimates(0.69704, 0.577, 0.0001, 0.0031),
    seeds=(1, 2, 3),
    note="selected on test | a",
    facts=ResultInfo(
        trained_on="cuhk-pedes", trainable_parameters=12_117_888, total_parameters=161_735_552,
        checkpoint_bytes=48_500_000, training_seconds=7200, training_peak_memory_bytes=22_000_000_000,
        images_per_second=1034.0, captions_per_second=3567.0,
    ),
)  # fmt: skip
COMPARISON = MethodComparison("cuhk-pedes", "test", "ab" * 32, 6156, 3074, "CLIP", 2, 2, (CLIP, CSKT), 1000)


def csv_of(records: list[dict[str, object]]) -> str:
    return table_text("csv", grid=[], records=records, content=None, terminal=lambda width: Table())


def squeezed(text: str) -> str:
    """Without the padding of columns."""
    return re.sub(" +", " ", text)


def on_terminal(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (60, ("R1", "Δ R1"), ("R5", "Checkpoint")),
        (80, ("R1", "Δ R1", "mAP", "Δ mAP", "R5", "R10"), ("Trained", "Seeds")),
        (140, ("R1", "Δ R1", "mAP", "Δ mAP", "R5", "R10", "mINP", "Trained", "Training", "Checkpoint"), ()),
    ],
)
def test_a_terminal_shows_the_columns_that_fit_and_names_the_others(
    width: int, shown: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    text = on_terminal(comparison_table([CLIP, CSKT], "title", "explanation", width), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    headings = next(line for line in lines if "Method" in line)
    assert all(f"  {name}" in headings for name in shown)
    assert not any(f"  {name}" in headings for name in left_out)
    rest = text.partition("--format csv: ")[2]
    assert all(name in rest for name in left_out) and not any(f"{name}," in rest for name in shown[:2])
    for part in ("69.70 ± 0.31", "68.50–70.83", "+57.70", "p <0.001", "explanation", "selected on test | a"):
        assert part in text


def test_grid_holds_all_columns_and_only_those_that_something_fills() -> None:
    headings, clip, cskt = comparison_grid([CLIP, CSKT])
    assert headings == [
        "Method", "Trained on", "Seeds", "R1", "Δ R1", "p people (R1)", "p seeds (R1)", "R5", "R10",
        "mAP", "Δ mAP", "p people (mAP)", "p seeds (mAP)", "mINP",
        "Trained", "Parameters", "Training", "Peak memory", "Images/s", "Captions/s", "Checkpoint", "Note",
    ]  # fmt: skip
    line = dict(zip(headings, cskt, strict=True))
    assert line["R1"] == "69.70 ± 0.31 (68.50–70.83)"
    assert (line["p people (R1)"], line["p seeds (mAP)"]) == ("<0.001", "0.021")
    assert (line["Seeds"], line["Training"], line["Peak memory"]) == ("1, 2, 3", "2.0 h", "22.0 GB")
    assert dict(zip(headings, clip, strict=True))["Δ R1"] == "–"
    assert "Trained on" not in comparison_grid([CLIP])[0] and "Note" not in comparison_grid([CLIP])[0]


def test_records_hold_fractions_and_all_keys() -> None:
    clip, cskt = comparison_records([CLIP, CSKT])
    assert clip.keys() == cskt.keys()
    assert (cskt["r1"], cskt["r1_difference"], cskt["seeds"], cskt["checkpoint_bytes"]) == (
        0.69704, 0.577, "1 2 3", 48_500_000,
    )  # fmt: skip
    (first, second) = csv.DictReader(io.StringIO(csv_of([clip, cskt])))
    assert (first["training_seconds"], second["label"], second["note"]) == ("", CSKT.label, CSKT.note)
    assert float(second["mean_ap_low"]) == cskt["mean_ap_low"]


@pytest.mark.parametrize(("zero_shot", "better"), [(0.5, True), (0.69704, False), (0.8, False), (None, None)])
def test_methods_no_better_than_zero_shot_are_marked(zero_shot: float | None, better: bool | None) -> None:
    row = replace(CSKT, zero_shot_r1=zero_shot)
    assert row.is_better_than_zero_shot is better
    (record,) = comparison_records([row])
    assert (record["better_than_zero_shot"], record["zero_shot_r1"], record["note"]) == (better, zero_shot, CSKT.note)
    mark = f"selected on test | a; no better than zero-shot (R1 {100 * (zero_shot or 0):.2f})"
    grid_note = comparison_grid([CLIP, row])[2][-1]
    assert grid_note == (mark if better is False else CSKT.note)
    assert (mark in on_terminal(comparison_table([CLIP, row], "title", "explanation", 140), 140)) == (better is False)


def test_markdown_and_latex_show_text_as_it_is() -> None:
    grid = [["Method", "R1"], ["a_b | *c* `d`\n[e](f) <g> \\", "50.00"]]
    heading, rule, line = squeezed(markdown(grid)).splitlines()
    assert (heading, line) == ("| Method | R1 |", r"| a\_b \| \*c\* \`d\` \[e\](f) \<g> \\ | 50.00 |")
    assert re.fullmatch(r"\|:-+\|-+:\|", rule)
    lines = latex([["Method", "R1"], [r"100 % & a_b #1 {x} \y ~ ^ $ – ±", "−1"]], ["one", "two"]).splitlines()
    assert lines[:4] == ["% one", "% two", r"% \usepackage{booktabs}", r"\begin{tabular}{lr}"]
    assert squeezed(lines[7]) == (
        r" 100 \% \& a\_b \#1 \{x\} \textbackslash{}y \textasciitilde{} \^{} \$ -- $\pm$ & $-$1 \\"
    )


def test_a_comparison_in_every_format() -> None:
    settings = [SettingDifference("optim.lr", {"cskt_[x] 100% & more": [0.001, 0.0003]})]
    explanation = "Percent, with the 95 % interval over people. Δ: against CLIP."
    text = {form: comparison_text(COMPARISON, form, settings) for form in ("markdown", "latex", "json", "csv")}
    assert text["markdown"].startswith("cuhk-pedes test: 6,156 captions, 3,074 images\n\n| Method ")
    assert explanation in text["markdown"] and "% Settings that differ between the trained runs:" in text["latex"]
    assert r"- optim.lr: cskt\_\[x\] 100% & more 0.001 / 0.0003" in text["markdown"]
    content = json.loads(text["json"])
    assert (content["baseline"], content["num_tests"], content["rows"][1]["r1"]) == ("CLIP", 2, 0.69704)
    assert content["differing_settings"] == {"optim.lr": {CSKT.label: [0.001, 0.0003]}}
    clip, cskt = csv.DictReader(io.StringIO(text["csv"]))
    assert (clip["optim.lr"], cskt["optim.lr"]) == ("", "0.001 / 0.0003")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (difference_text(0.0123), "+1.23"),
        (difference_text(-0.0123), "−1.23"),
        (difference_text(None), "–"),
        (p_text(0.0004), "<0.001"),
        (p_text(0.0126), "0.013"),
        (p_text(1.0), "1.000"),
        (duration(4.25), "4.2 s"),
        (duration(60), "60 s"),
        (duration(720), "12 min"),
        (duration(3 * 3600), "3.0 h"),
        (size(0), "0"),
        (size(512), "512 B"),
        (size(48_500_000), "48.5 MB"),
        (rate(7.13), "7.1"),
        (rate(4567.3), "4,567"),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text == expected


# --- cross-domain tables

DATASETS = ("cuhk-pedes", "jsonl (my_data)")


def cell(r1: float, mean_ap: float, in_domain: bool, deviation: float | None = None) -> CrossDomainCell:
    return CrossDomainCell(MeanAndDeviation(r1, deviation), MeanAndDeviation(mean_ap, None), in_domain)


MATRIX = [
    CrossDomainRow("cskt", "cuhk-pedes", [cell(0.697, 0.6, True), cell(0.3, 0.2, False, 0.011)]),
    CrossDomainRow("[b]CLIP", "", [cell(0.1, 0.05, False), cell(0.2, 0.1, False)], note="selected on test"),
]


def test_cross_domain_tables_mark_the_own_domain() -> None:
    assert cross_domain_grid(MATRIX, DATASETS) == [
        ["Method", "Trained on", *DATASETS, "Note"],
        ["cskt", "cuhk-pedes", "69.70 *", "30.00 ± 1.10", ""],
        ["[b]CLIP", "nothing", "10.00", "20.00", "selected on test"],
    ]
    assert "Note" not in cross_domain_grid(MATRIX[:1], DATASETS)[0]
    text = on_terminal(cross_domain_table(MATRIX, DATASETS, "[i]title"), 80)
    for part in ("69.70 *", "30.00", "± 1.10", "[b]CLIP", "[i]title", "in domain", "[b]CLIP: selected on test"):
        assert part in text


def test_cross_domain_numbers_stay_whole_if_names_fold() -> None:
    datasets = [f"a data set with a long name {number}" for number in range(5)]
    row = CrossDomainRow("a method with a long name", "cuhk-pedes", [cell(0.697, 0.6, True, 0.0123)] * 5)
    text = on_terminal(cross_domain_table([row], datasets, "title"), 80)
    assert text.count("69.70 *") == text.count("± 1.23") == 5 and max(map(len, text.splitlines())) <= 80


def test_cross_domain_records_hold_one_cell_each() -> None:
    records = cross_domain_records(MATRIX, DATASETS)
    assert [(one["label"], one["tested_on"], one["r1"], one["in_domain"]) for one in records] == [
        ("cskt", "cuhk-pedes", 0.697, True), ("cskt", "jsonl (my_data)", 0.3, False),
        ("[b]CLIP", "cuhk-pedes", 0.1, False), ("[b]CLIP", "jsonl (my_data)", 0.2, False),
    ]  # fmt: skip
    assert records[2]["trained_on"] is None


def test_untrusted_labels_stay_text_in_every_format() -> None:
    grid = [["Method", "R1"], ["[1pt] \\input{x} *a* <b> & &lt; $x$ | \x1b[2J", "=1+1;+2"]]
    line = squeezed(markdown(grid)).splitlines()[2]
    assert line == r"| \[1pt\] \\input{x} \*a\* \<b> & \&lt; \$x\$ \| \\x1b\[2J | =1+1;+2 |"
    line = latex(grid, ["a\nb\x0bc\x1b"]).splitlines()
    assert all(part.startswith("% ") for part in line[:2]) and line[2].startswith(r"\begin")
    cell = next(part for part in line if "pt" in part)
    assert cell.startswith(" {[}1pt] ") and "\\input" not in cell and "\x1b" not in cell
    assert csv_of([{"label": "=1+1;+2", "difference": -0.5, "note": None}]) == (
        '"label","difference","note"\n"\'=1+1;\'+2","-0.5",""\n'
    )


@pytest.mark.parametrize(
    ("difference", "interval", "p_values", "answer"),
    [
        (0.031, (0.004, 0.058), (0.01, None), "better, R1 +3.10 (95 % interval +0.40 to +5.80)"),
        (-0.031, (-0.058, -0.004), (0.01, None), "worse, R1 −3.10 (95 % interval −5.80 to −0.40)"),
        (0.003, (-0.02, 0.026), (0.8, None), "too few people to decide, R1 +0.30 (95 % interval −2.00 to +2.60)"),
        (0.031, (-0.001, 0.063), (0.04, None), "too few people to decide"),
        (0.031, (0.004, 0.058), (0.01, 0.3), "too few seeds to decide"),
        (0.031, (0.004, 0.058), (0.01, 0.02), "better"),
    ],
)
def test_two_methods_get_a_verdict(
    difference: float, interval: tuple[float, float], p_values: tuple[float, float | None], answer: str
) -> None:
    one = replace(
        CSKT.estimates["r1"], difference=difference, difference_interval=Interval(*interval),
        p_value=p_values[0], seeds_p_value=p_values[1],
    )  # fmt: skip
    seeds: tuple[int, ...] = (1,) if p_values[1] is None else (1, 2, 3)
    method = replace(CSKT, label="adapt", estimates={**CSKT.estimates, "r1": one}, seeds=seeds)
    clip = replace(CLIP, seeds=(None,))
    (line,) = verdict(replace(COMPARISON, methods=(clip, method)))
    assert line.startswith(f"adapt against CLIP: {answer}")
    about_models = "; about these two trained models (one seed each)"
    assert line.endswith(about_models) == (p_values[1] is None) and line.count(";") == (p_values[1] is None)
    assert verdict(replace(COMPARISON, methods=(clip, method, replace(method, label="third")))) == []
    assert line in comparison_text(replace(COMPARISON, methods=(clip, method)), "markdown")


def test_a_verdict_without_a_test_of_seeds_has_their_numbers() -> None:
    r1 = replace(CSKT.estimates["r1"], difference_interval=Interval(0.5, 0.6), seeds_p_value=None)
    methods = replace(CLIP, seeds=(1,)), replace(CSKT, label="adapt", estimates={**CSKT.estimates, "r1": r1})
    (line,) = verdict(replace(COMPARISON, methods=methods))
    assert line.endswith(" +60.00); about these two trained models (seeds: CLIP 1, adapt 3)")


def test_few_people_are_explained_below_the_table() -> None:
    assert "Only" not in comparison_text(COMPARISON, "markdown")
    text = comparison_text(replace(COMPARISON, num_people=6), "markdown")
    assert "Only 6 people: an interval is wide where all of them have the same value" in text
