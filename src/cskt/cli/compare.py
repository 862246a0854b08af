"""`cskt compare`: methods on the same queries in one table, with intervals and corrected tests."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from cskt.cli.output import add_format_flags, comparison_text, output_format, write_output
from cskt.cli.parsing import Parser, existing_folder
from cskt.cli.run_settings import differing_settings, run_folders, zero_shot_r1
from cskt.cli.stored_results import check_up_to_date, seed_folders
from cskt.errors import CsktError
from cskt.evaluation.compare import Entry, check_same_split, compare
from cskt.evaluation.results import Result, find_results, load_result


def main(argv: Sequence[str]) -> int:
    """See `cskt compare --help`."""
    parser = Parser(
        prog="cskt compare",
        description="Compare methods on the same queries: figures with 95 % intervals, differences from a baseline with"
        " p-values corrected for their number, sizes and times.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, folder of seed-1, seed-2, ..., folder of `cskt evaluate --output`, or one result file",
    )
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    parser.add_argument("--dataset", help="which one, where the runs have results on several")
    parser.add_argument("--baseline", metavar="RUN", help="the one that others are measured against (default: first)")
    add_format_flags(parser)
    flags = parser.parse(argv)
    form = output_format(flags.format, flags.output)
    entries = [entries_of(run, flags.split, flags.dataset) for run in flags.runs]
    chosen = on_one_split(dict(zip(flags.runs, entries, strict=True)))
    labelled = distinct(chosen)
    first = flags.baseline or flags.runs[0]
    reference = next((of_run[0] for run, of_run in labelled.items() if Path(run) == Path(first)), None)
    if reference is None:
        raise CsktError(f"--baseline {first} is none of the runs; give one of {', '.join(chosen)}")
    flat = [entry for of_run in labelled.values() for entry in of_run]
    folders = {run: run_folders(run) for run in labelled}
    zero_shot = {
        entry.label: r1
        for run, of_run in labelled.items()
        for entry in of_run
        if not entry.results[0].options and (r1 := zero_shot_r1(folders[run], entry.results)) is not None
    }
    comparison = compare(flat, flat.index(reference), zero_shot)
    settings = differing_settings({entry.label: folders[run] for run, of_run in labelled.items() for entry in of_run})
    write_output(comparison_text(comparison, form, settings), form, flags.output)
    return 0


def entries_of(run: str, split: str, dataset: str | None = None) -> list[Entry]:
    """What a user's word for a run holds on a split: an entry for each data set and way of ranking.

    Raises:
        CsktError: no such folder, no per-query results in it, results of older weights, or of some seeds only.
    """
    path = Path(run)
    if path.is_file():
        result = load_result(path)
        return [Entry(_name(result), (result,))]
    folder = existing_folder(run)
    folders = seed_folders(folder)
    by_kind: dict[tuple[str, str], list[Result]] = {}
    for one in folders:
        found = find_results(one, split=split, dataset=dataset)
        check_up_to_date(one, found)
        for result in found:
            by_kind.setdefault((result.split_sha256, result.options), []).append(result)
    for (_, options), results in by_kind.items():
        if len(results) < len(folders):
            what = f"{results[0].dataset} {split}" + (f" with {options}" if options else "")
            raise CsktError(
                f"{run}: {len(results)} of {len(folders)} seeds have a result on {what}; make the others: cskt evaluate"
            )
    return [Entry(_name(results[0]), tuple(results)) for results in by_kind.values()]


def on_one_split(entries: dict[str, list[Entry]]) -> dict[str, list[Entry]]:
    """Of the entries of each run those on the one split that all runs share.

    Raises:
        CsktError: they share none, or several.
    """
    splits = [{entry.results[0].split_sha256: entry.results[0] for entry in of_run} for of_run in entries.values()]
    shared = [digest for digest in splits[0] if all(digest in others for others in splits)]
    if not shared:
        for (run, here), (other_run, there) in itertools.combinations(zip(entries, splits, strict=True), 2):
            if here.keys().isdisjoint(there):
                check_same_split(run, next(iter(here.values())), other_run, next(iter(there.values())))
        raise CsktError(f"no split on which all of {', '.join(entries)} have results; evaluate all on the same one")
    if len(shared) > 1:
        names = sorted({splits[0][digest].dataset for digest in shared})
        remedy = f"--dataset {names[0]}" if len(names) > 1 else "name the result files: RUN/evaluations/....json"
        raise CsktError(f"the runs share results on {len(shared)} splits ({', '.join(names)}); choose one: {remedy}")
    return {
        run: [entry for entry in of_run if entry.results[0].split_sha256 == shared[0]]
        for run, of_run in entries.items()
    }


def distinct(entries: dict[str, list[Entry]]) -> dict[str, list[Entry]]:
    """The entries with the runs' own words added to labels that two of them share."""
    labels = [entry.label for of_run in entries.values() for entry in of_run]
    names = [Path(run).name for run in entries]

    def renamed(entry: Entry, run: str) -> Entry:
        if labels.count(entry.label) == 1:
            return entry
        short = Path(run).name
        return dataclasses.replace(entry, label=f"{entry.label} ({short if names.count(short) == 1 else run})")

    return {run: [renamed(entry, run) for entry in of_run] for run, of_run in entries.items()}


def _name(result: Result) -> str:
    """`cskt`, `cskt + query expansion 5`."""
    return result.label + (f" + {result.options.replace('-', ' ')}" if result.options else "")
