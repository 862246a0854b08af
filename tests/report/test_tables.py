"""Tables of results as text, on a terminal and in Markdown."""

import io
import re

import pytest
from rich.console import Console

from cskt.report.tables import ResultRow, Standing, markdown, result_table, table_grid

PUBLISHED = ResultRow("published", {"r1": 0.697})
ZERO_SHOT = ResultRow(
    "CLIP zero-shot", {"r1": 0.1265, "r5": 0.3, "r10": 0.4, "mean_ap": 0.11, "mean_inp": 0.05}, 0, 100
)
TRAINED = ResultRow(
    "cskt",
    {
        "r1": 0.69704, "r5": 0.82, "r10": 1.0, "mean_ap": 0.6, "mean_inp": 0.5,
        "num_queries": 6156, "num_gallery": 3074, "num_unmatched_queries": 12,
    },
    12_117_888,
    161_735_552,
    note="selected on test",
)  # fmt: skip


def on_terminal(rows: list[ResultRow], title: str = "CUHK-PEDES", width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(result_table(rows, title))
    return console.file.getvalue()


def test_figures_are_percent_with_two_decimals_and_unknown_ones_a_dash() -> None:
    headings, published, trained = table_grid([PUBLISHED, TRAINED])
    assert headings == ["Method", "R1", "R5", "R10", "mAP", "mINP", "Trained", "Note"]
    assert published[:7] == ["published", "69.70", "–", "–", "–", "–", "–"]
    assert trained[:7] == ["cskt", "69.70", "82.00", "100.00", "60.00", "50.00", "12,117,888 (7.49 %)"]


def test_notes_and_unmatched_queries_are_visible_in_every_form() -> None:
    note = "selected on test; 12 of 6,156 queries have no match"
    assert note in markdown(table_grid([ZERO_SHOT, TRAINED]))
    assert f"cskt: {note}" in on_terminal([ZERO_SHOT, TRAINED])


@pytest.mark.parametrize(
    "interval, zero_shot_r1, expected",
    [
        ((0.5, 0.7), 0.49, Standing.ABOVE),
        ((0.5, 0.7), 0.5, Standing.UNCLEAR),
        ((0.5, 0.7), 0.7, Standing.UNCLEAR),
        ((0.5, 0.7), 0.71, Standing.BELOW),
        ((0.5, 0.7), None, Standing.UNKNOWN),
        (None, 0.59, Standing.ABOVE),
        (None, 0.6, Standing.UNCLEAR),
        (None, 0.61, Standing.BELOW),
        (None, None, Standing.UNKNOWN),
    ],
)
def test_a_run_stands_above_zero_shot_only_with_its_whole_interval(
    interval: tuple[float, float] | None, zero_shot_r1: float | None, expected: Standing
) -> None:
    row = ResultRow("run", {"r1": 0.6}, intervals={"r1": interval} if interval else {}, zero_shot_r1=zero_shot_r1)
    assert row.standing is expected
    assert (row.against_zero_shot == "–") == (expected is Standing.UNKNOWN)


def test_empty_columns_are_omitted() -> None:
    assert table_grid([PUBLISHED])[0] == ["Method", "R1", "R5", "R10", "mAP", "mINP"]
    assert table_grid([ZERO_SHOT])[0][-1] == "Trained"
    assert table_grid([ZERO_SHOT])[1][-1] == "0 (0.00 %)"


def test_an_unknown_total_leaves_the_count_alone() -> None:
    row = ResultRow("lora", {}, trainable_parameters=1234567)
    assert table_grid([row])[1][-1] == "1,234,567"


def test_no_figure_is_cut_on_a_terminal_of_eighty_columns() -> None:
    text = on_terminal([ZERO_SHOT, TRAINED])
    for figure in ("12.65", "69.70", "100.00", "12,117,888 (7.49 %)"):
        assert figure in text


def test_markdown_has_one_line_per_row_and_escapes_pipes() -> None:
    lines = markdown(table_grid([ResultRow("a | b\nc", {"r1": 0.5})])).splitlines()
    assert [re.sub(" +", " ", line) for line in lines] == [
        "| Method | R1 | R5 | R10 | mAP | mINP |",
        "|:---------|------:|-----:|------:|------:|-------:|",
        "| a \\| b c | 50.00 | – | – | – | – |",
    ]


def test_deviations_over_seeds_are_below_their_mean() -> None:
    mean = ResultRow("mean of 3", {"r1": 0.697, "mean_ap": 0.6}, deviations={"r1": 0.0031, "mean_ap": 0.123})
    lines = [" ".join(line.split()) for line in on_terminal([mean, ZERO_SHOT]).splitlines()]
    place = lines.index("mean of 3 69.70 – – 60.00 – –")
    assert lines[place + 1] == "± (standard deviation) 0.31 – – 12.30 –"
    assert lines[place + 2].startswith("CLIP zero-shot 12.65")


def test_labels_are_never_read_as_markup() -> None:
    text = on_terminal([ResultRow("[red]run[/red]", {"r1": 0.5}, note="[bold]x")], title="[val]")
    assert "[red]run[/red]" in text
    assert "[val]" in text
    assert "[bold]x" in text


@pytest.mark.parametrize("value", [69.7, -0.1, float("nan")])
def test_percent_passed_for_a_fraction_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"row 'cskt': r1 is .*expected a fraction in \[0, 1\]"):
        ResultRow("cskt", {"r1": value})
