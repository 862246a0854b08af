"""`cskt compare`: methods on the same queries in one table, with intervals and corrected tests."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from cskt.cli.compared_runs import (
    add_format_flags,
    configs_of,
    differing_settings,
    distinct_names,
    output_format,
    run_folders,
    write_output,
    zero_shot_r1,
)
from cskt.cli.parsing import Parser, existing_folder
from cskt.cli.run_results import check_up_to_date, seed_folders
from cskt.errors import CsktError
from cskt.evaluation.comparison import MethodResults, check_same_split, compare
from cskt.evaluation.results import Result, find_results, load_result
from cskt.report.comparison_tables import comparison_text
from cskt.utils.paths import check_path


def main(argv: Sequence[str]) -> int:
    """See `cskt compare --help`."""
    parser = Parser(
        prog="cskt compare",
        description="Compare methods on the same queries: figures with 95 % intervals, differences from a baseline with"
        " p-values corrected for their number, sizes and times.",
    )
    known = "run folder, folder of seed-1, seed-2, ..., folder of `cskt evaluate --output`, or one result file"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=known)
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    parser.add_argument("--dataset", help="which one, where the runs have results on several")
    parser.add_argument("--baseline", metavar="RUN", help="the one that others are measured against (default: first)")
    add_format_flags(parser)
    flags = parser.parse(argv)
    form = output_format(flags.format, flags.output)
    methods = distinct(on_one_split({run: methods_of(run, flags.split, flags.dataset) for run in flags.runs}))
    first = flags.baseline or flags.runs[0]
    baseline = next((number for number, (run, _) in enumerate(methods) if Path(run) == Path(first)), None)
    if baseline is None:
        known = ", ".join(dict.fromkeys(run for run, _ in methods))
        raise CsktError(f"--baseline {first} is none of the runs; give one of {known}")
    zero_shot = {
        method.label: r1
        for run, method in methods
        if not method.results[0].options and (r1 := zero_shot_r1(run_folders(run), method.results)) is not None
    }
    comparison = compare([method for _, method in methods], baseline, zero_shot)
    settings = differing_settings({method.label: configs_of(run_folders(run)) for run, method in methods})
    write_output(comparison_text(comparison, form, settings), form, flags.output)
    return 0


def methods_of(run: str, split: str, dataset: str | None = None) -> list[MethodResults]:
    """Return the results of a RUN argument on a split: one method for each data set and way of ranking."""
    path = Path(run)
    check_path(path)
    if path.is_file():
        result = load_result(path)
        return [MethodResults(_label(result), (result,))]
    folders = seed_folders(existing_folder(run))
    by_kind: dict[tuple[str, str], list[Result]] = {}
    for folder in folders:
        found = find_results(folder, split=split, dataset=dataset)
        check_up_to_date(folder, found)
        for result in found:
            by_kind.setdefault((result.split_sha256, result.options), []).append(result)
    for (_, options), results in by_kind.items():
        if len(results) < len(folders):
            place = f"{results[0].dataset} {split}" + (f" with {options}" if options else "")
            have = f"{len(results)} of {len(folders)} seeds have a result on {place}"
            raise CsktError(f"{run}: {have}; make the others: cskt evaluate")
    return [MethodResults(_label(results[0]), tuple(results)) for results in by_kind.values()]


def on_one_split(methods: dict[str, list[MethodResults]]) -> list[tuple[str, MethodResults]]:
    """Return the runs and methods on the one split that all runs share."""
    splits = [{method.results[0].split_sha256: method.results[0] for method in of_run} for of_run in methods.values()]
    shared = [digest for digest in splits[0] if all(digest in others for others in splits)]
    if not shared:
        for (run, here), (other_run, there) in itertools.combinations(zip(methods, splits, strict=True), 2):
            if here.keys().isdisjoint(there):
                check_same_split(run, next(iter(here.values())), other_run, next(iter(there.values())))
        raise CsktError(f"no split on which all of {', '.join(methods)} have results; evaluate all on the same one")
    if len(shared) > 1:
        names = sorted({splits[0][digest].dataset for digest in shared})
        remedy = f"--dataset {names[0]}" if len(names) > 1 else "name the result files: RUN/evaluations/....json"
        raise CsktError(f"the runs share results on {len(shared)} splits ({', '.join(names)}); choose one: {remedy}")
    every = [(run, method) for run, of_run in methods.items() for method in of_run]
    return [(run, method) for run, method in every if method.results[0].split_sha256 == shared[0]]


def distinct(methods: Sequence[tuple[str, MethodResults]]) -> list[tuple[str, MethodResults]]:
    """Add the name of the run's folder, or its whole path, to labels that are not unique."""
    runs = list(dict.fromkeys(run for run, _ in methods))
    names = dict(zip(runs, distinct_names([Path(run).name for run in runs], runs), strict=True))
    labels = [method.label for _, method in methods]
    longer = [f"{method.label} ({names[run]})" for run, method in methods]
    return [
        (run, dataclasses.replace(method, label=label))
        for (run, method), label in zip(methods, distinct_names(labels, longer), strict=True)
    ]


def _label(result: Result) -> str:
    """Return `cskt`, `cskt + query expansion 5`."""
    return result.label + (f" + {result.options.replace('-', ' ')}" if result.options else "")
