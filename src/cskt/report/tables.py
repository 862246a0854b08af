"""Results as a table: its cells as text, and the table that a terminal shows.

Here, and only here, fractions become percent. `table_grid` is the one place that decides which columns a table has;
the terminal and the HTML page draw the same grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table
from rich.text import Text

from cskt.errors import CsktError
from cskt.utils.console import literal
from cskt.utils.terminal import printable

METRIC_NAMES = {"r1": "R1", "r5": "R5", "r10": "R10", "mean_ap": "mAP", "mean_inp": "mINP"}
"""Key in `RetrievalMetrics.summary()` -> the field's name for it, in the order in which papers print them."""

TEXT_COLUMNS = ("Method", "Trained on", "Note")
"""Headings of columns that line up on the left; all others hold figures."""
UNKNOWN = "–"
"""What a cell says when the figure is not known."""


@dataclass(frozen=True)
class ResultRow:
    """One line of a table of results.

    Raises:
        CsktError: a metric lies outside [0, 1], which is what percent passed for a fraction looks like.
    """

    label: str
    """What was evaluated: `CLIP zero-shot`, `cskt (best epoch)`."""
    metrics: Mapping[str, float]
    """`RetrievalMetrics.summary()`, fractions in [0, 1]; figures that are not known may be left out."""
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    note: str = ""
    """A condition that the reader must know, such as `selected on test`."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Key of a metric -> lower and upper end of its 95 % interval, as fractions, where it is known."""
    deviations: Mapping[str, float] = field(default_factory=dict)
    """Key of a metric -> its standard deviation over seeds, as a fraction, where the row is the mean of several.
    A terminal shows them in a line below."""

    def __post_init__(self) -> None:
        for key in METRIC_NAMES.keys() & self.metrics.keys():
            if not 0 <= self.metrics[key] <= 1:
                raise CsktError(f"row '{self.label}': {key} is {self.metrics[key]}; expected a fraction in [0, 1]")


def percent(fraction: float | None) -> str:
    """A fraction as percent with two decimals and without the sign: 0.697 -> `69.70`."""
    return UNKNOWN if fraction is None else f"{100 * fraction:.2f}"


def parameter_text(trainable: int | None, total: int | None) -> str:
    """How much trains: `12,117,888 (7.49 %)`, or only the count where the total is not known."""
    if trainable is None:
        return UNKNOWN
    share = f" ({100 * trainable / total:.2f} %)" if total else ""
    return f"{trainable:,}{share}"


def note_text(row: ResultRow) -> str:
    """The row's note, and how many queries had no relevant image and so are left out of the means."""
    unmatched = int(row.metrics.get("num_unmatched_queries", 0))
    parts = [row.note] if row.note else []
    if unmatched:
        parts.append(f"{unmatched:,} of {int(row.metrics['num_queries']):,} queries have no match")
    return "; ".join(parts)


def table_grid(rows: Sequence[ResultRow], *, with_notes: bool = True) -> list[list[str]]:
    """The cells of a table of results as text, headings first; columns that hold nothing in any row are left out."""
    columns = [["Method", *(row.label for row in rows)]]
    columns += [[name, *(percent(row.metrics.get(key)) for row in rows)] for key, name in METRIC_NAMES.items()]
    optional = [
        ["Trained", *(parameter_text(row.trainable_parameters, row.total_parameters) for row in rows)],
        ["Note", *(note_text(row) for row in rows)],
    ]
    columns += [column for column in optional[: 1 + with_notes] if set(column[1:]) - {"", UNKNOWN}]
    return [list(line) for line in zip(*columns, strict=True)]


def is_number_column(heading: str) -> bool:
    """Whether a column of a table holds figures, which line up on the right."""
    return heading not in TEXT_COLUMNS


def bare_table(title: str, caption: Text) -> Table:
    """A table for the terminal without columns yet: the title above, shown literally, and the caption below."""
    return Table(
        title=Text(printable(title), style="bold"), title_justify="left", caption=caption, caption_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title_style="", caption_style="",
    )  # fmt: skip


def result_table(rows: Sequence[ResultRow], title: str) -> Table:
    """A table of results in percent for the terminal, with the notes below it, where 80 columns have room for them.

    Title, labels and notes are shown literally, never as rich markup.
    """
    headings, *body = table_grid(rows, with_notes=False)
    caption = Text("percent, higher is better", style="dim")
    for row in rows:
        if note := note_text(row):
            caption.append("\n" + printable(f"{row.label}: {note}"), style="not dim yellow")
    table = bare_table(title, caption)
    for heading in headings:
        numeric = is_number_column(heading)
        # a narrow terminal folds labels, never a figure
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row, cells in zip(rows, body, strict=True):
        table.add_row(*map(literal, cells))
        if row.deviations:
            table.add_row("± (standard deviation)", *(percent(row.deviations.get(key)) for key in METRIC_NAMES))
    return table
