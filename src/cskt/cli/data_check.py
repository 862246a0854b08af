"""`cskt data check`: errors and warnings of a data set, before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cskt.cli.parsing import Parser, command_line, existing_folder
from cskt.data.check import CheckReport, check_dataset
from cskt.data.datasets import DATASETS, folders, present
from cskt.data.importing.people_folders import TABLE_SUFFIXES
from cskt.errors import CsktError, file_system_errors
from cskt.utils.console import console, counting_bar, literal
from cskt.utils.terminal import json_text, printable


def main(argv: Sequence[str]) -> int:
    """See `cskt data check --help`; exit code 1 where a data set has errors."""
    parser = Parser(prog="cskt data check", description="Counts, images and captions of every data set under a folder.")
    parser.add_argument("root", help="folder that holds CUHK-PEDES, ICFG-PEDES, RSTPReid, or a JSON-lines data set")
    parser.add_argument("--dataset", help="check this one only: " + ", ".join(DATASETS))
    no_decode = "do not open the images: check that they exist, and compare them by path, not by content"
    parser.add_argument("--no-decode", action="store_true", help=no_decode)
    parser.add_argument("--json", action="store_true", help="JSON on stdout instead of tables")
    flags = parser.parse(argv)
    root = existing_folder(flags.root)
    names = [flags.dataset] if flags.dataset else present(root)
    if not names:
        known = ", ".join(folders().values())
        raise CsktError(f"{root}: holds none of {known} and no train.jsonl, val.jsonl, test.jsonl; {import_hint(root)}")
    reports = []
    for name in names:
        with counting_bar(f"checking {name}") as on_progress:
            reports.append(check_dataset(name, root, decode=not flags.no_decode, on_progress=on_progress))
    if flags.json:
        print(json_text([dataclasses.asdict(report) for report in reports]))
    else:
        for report in reports:
            show(report)
    return 1 if any(report.errors for report in reports) else 0


def import_hint(root: Path) -> str:
    """Return how a folder without a data set becomes one: its table, if it has one, is imported."""
    with file_system_errors(root):
        tables = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    if not tables:
        return "see cskt data import --help"
    return f"to import a table: {command_line('data', 'import', tables[0], 'NEW_FOLDER')}"


def show(report: CheckReport) -> None:
    """Print a report as a table, its errors and its warnings."""
    terminal = console()
    table = Table(
        "split", "ids", "images", "captions", "missing", "corrupt", "tokens", "> 77",
        title=literal(f"{report.dataset} in {report.root} (in brackets: published; tokens: min, median, max)"),
        title_justify="left",
    )  # fmt: skip
    for split in report.splits:
        pairs = [
            f"{ours} ({split.published[place]})" if split.published else str(ours)
            for place, ours in enumerate(split.counts)
        ]
        lengths = split.caption_lengths
        spread = f"{lengths.shortest}, {lengths.median:.0f}, {lengths.longest}"
        missing, corrupt = len(split.missing_images), len(split.damaged_images)
        table.add_row(split.name, *pairs, str(missing), str(corrupt), spread, str(lengths.num_over_context))
    terminal.print(table)
    for kind, lines, colour in (("error", report.errors, "red"), ("warning", report.warnings, "yellow")):
        for line in lines:
            terminal.print(Text.assemble((f"{kind}:", colour), " ", printable(line)), soft_wrap=True)
