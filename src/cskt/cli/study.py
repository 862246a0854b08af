"""`cskt study`: recipes x data sets x seeds; what is missing is run, and the table written."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from cskt.cli.next_steps import command_line
from cskt.cli.output import SUFFIXES, comparison_text, matrix_row, matrix_text, write_output
from cskt.cli.parsing import Parser, existing_folder, overrides_of, seeds_of
from cskt.cli.run_settings import Difference, differences
from cskt.cli.stored_results import evaluate_run, keep, stored_result
from cskt.config import RunConfig
from cskt.data.datasets import DATASETS
from cskt.data.overlaps import read_separate_splits
from cskt.data.records import Split, find_split
from cskt.embed import load
from cskt.errors import CsktError
from cskt.evaluation.compare import Comparison, Entry, compare
from cskt.evaluation.results import Result
from cskt.evaluation.study import PlannedRun, Size, Study, StudyData, load_study, plan, select, study_names
from cskt.report.cross_domain import MatrixRow
from cskt.training.run_folder import DAMAGED, LAST, PREVIOUS, claimed
from cskt.training.series import check_same_config, finished, train_or_resume

logger = logging.getLogger(__name__)

SPLIT = "test"


def main(argv: Sequence[str]) -> int:
    """See `cskt study --help`; exit code 1 while runs are still missing."""
    parser = Parser(
        prog="cskt study",
        description="Train and test every method of a study that is not there yet, then compare them. Stop it at any"
        " time: the same command goes on. Started twice, the two share the work.",
    )
    parser.add_argument("study", help=f"{', '.join(study_names())}, or a YAML file of your own")
    parser.add_argument("--root", default="data", help="folder of the data sets (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the runs and tables (studies/<name>)")
    parser.add_argument(
        "--size",
        choices=get_args(Size),
        default="small",
        help="small: a small backbone on two cores | full (%(default)s)",
    )
    parser.add_argument("--seeds", help="instead of the study's own: 1,2,3")
    parser.add_argument(
        "--datasets", nargs="+", metavar="NAME", help=f"instead of the study's own: {', '.join(DATASETS)}"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="config keys for every run")
    parser.add_argument("--plan", action="store_true", help="only list the runs and what is left of them")
    parser.add_argument("--table", action="store_true", help="only write the tables of what is there")
    flags = parser.parse(argv)
    study = select(
        load_study(flags.study),
        seeds=seeds_of(flags.seeds) if flags.seeds else (),
        datasets=[StudyData(name=name, dataset=name) for name in flags.datasets or ()],
    )
    output = flags.output or Path("studies") / Path(flags.study).stem
    root = existing_folder(flags.root)
    runs = plan(study, output, root, size=flags.size, overrides=overrides_of(flags.set))
    for run in runs:  # all of them, before anything is trained or any table mixes configs
        check_same_config(run.config, run.folder)
    splits = TestSplits(study, root)
    if flags.plan:
        for run in runs:
            print(f"{'done   ' if outcome_of(run, splits).is_done else 'missing'} {run.folder}")
        return 0
    if not flags.table:
        work_off(runs, splits)
    outcomes = [outcome_of(run, splits) for run in runs]
    write_tables(study, outcomes, output)
    if missing := [outcome for outcome in outcomes if not outcome.is_done]:
        print(f"{len(missing)} of {len(runs)} runs are missing or under way elsewhere; the same command goes on:")
        print("  " + command_line("study", *argv))
    return 1 if missing else 0


class TestSplits:
    """The test splits of a study's data sets, read once."""

    def __init__(self, study: Study, root: Path) -> None:
        self._study = study
        self._splits = {
            data.name: find_split(read_separate_splits(data.dataset, root / data.root), SPLIT)
            for data in study.datasets
        }

    def of(self, run: PlannedRun) -> dict[str, Split]:
        """Name of the data set -> test split, for every one that a run is tested on."""
        return {name: self._splits[name] for name in self._study.tested_on(run.data)}


@dataclass(frozen=True)
class Outcome:
    """What there is of a run."""

    run: PlannedRun
    results: dict[str, Result]
    """Name of the data set -> result on its test split; none until the run is trained."""
    is_done: bool
    """Whether it is trained, and tested wherever the study asks for it."""


def outcome_of(run: PlannedRun, splits: TestSplits) -> Outcome:
    """Look into a run's folder."""
    if finished(run.folder) is None:
        return Outcome(run, {}, is_done=False)
    stored = {name: stored_result(run.folder, split) for name, split in splits.of(run).items()}
    results = {name: result for name, result in stored.items() if result is not None}
    return Outcome(run, results, is_done=len(results) == len(stored))


def work_off(runs: Sequence[PlannedRun], splits: TestSplits) -> None:
    """Do every run that is not done and that no other process is at."""
    for number, run in enumerate(runs, start=1):
        if outcome_of(run, splits).is_done:
            continue
        with claimed(run.folder) as mine:
            if not mine:
                logger.info("run %d of %d, %s: under way elsewhere", number, len(runs), run.folder)
            elif not outcome_of(run, splits).is_done:  # another process may have finished it meanwhile
                logger.info("run %d of %d: %s", number, len(runs), run.folder)
                try:
                    do_run(run, splits)
                except CsktError as error:
                    raise CsktError(f"arm '{run.arm.label}', seed {run.seed} on {run.data.name}: {error}") from None


def do_run(run: PlannedRun, splits: TestSplits) -> None:
    """Train what is missing of a run, test it, and drop what only resuming needs."""
    train_or_resume(run.config, run.folder)
    encoder = load(run.folder, device=run.config.device)
    for split in splits.of(run).values():
        if stored_result(run.folder, split) is None:
            keep(evaluate_run(encoder, split, run.folder), run.folder, run.folder)
    for checkpoint in (LAST, PREVIOUS, DAMAGED):
        (run.folder / checkpoint).unlink(missing_ok=True)


def comparisons(study: Study, outcomes: Sequence[Outcome]) -> dict[str, tuple[Comparison, list[Difference]]]:
    """The finished arms side by side, with the settings in which they differ.

    Returns:
        By `<trained on>` or `<trained on>-on-<tested on>`.
    """
    found = {}
    for data in study.datasets:
        configs: dict[str, list[RunConfig]] = {}
        for outcome in outcomes:
            if outcome.run.data == data and outcome.results:
                configs.setdefault(outcome.run.arm.label, []).append(outcome.run.config)
        for tested in study.tested_on(data):
            arms = arms_on(outcomes, data, tested)
            entries = [Entry(label, tuple(results)) for label, results in arms.items() if results]
            if len(entries) > 1:
                labels = [entry.label for entry in entries]
                baseline = labels.index(study.baseline) if study.baseline in labels else 0
                name = data.name if tested == data.name else f"{data.name}-on-{tested}"
                found[name] = compare(entries, baseline), differences(configs)
    return found


def arms_on(outcomes: Sequence[Outcome], data: StudyData, tested: str) -> dict[str, list[Result]]:
    """Per arm the results of its seeds, trained on one data set and tested on one."""
    # every arm, in the study's order, whatever is there
    results: dict[str, list[Result]] = {outcome.run.arm.label: [] for outcome in outcomes}
    for outcome in outcomes:
        if outcome.run.data == data and tested in outcome.results:
            results[outcome.run.arm.label].append(outcome.results[tested])
    return results


def domain_rows(study: Study, outcomes: Sequence[Outcome]) -> list[MatrixRow]:
    """Every arm and data set that it was trained on as a line, every data set that it was tested on as a column.

    An arm that trains nothing is one line, for it is the same on every data set.
    """
    rows = []
    for arm in dict.fromkeys(outcome.run.arm.label for outcome in outcomes):
        for data in study.datasets:
            done = [one for one in outcomes if one.is_done and (one.run.arm.label, one.run.data) == (arm, data)]
            if done:
                results = [[outcome.results[tested.name] for tested in study.datasets] for outcome in done]
                trains = done[0].run.config.trainable != "none"
                in_domain = [trains and tested == data for tested in study.datasets]
                rows.append(matrix_row(results, data.name if trains else "", in_domain))
                if not trains:
                    break
    return rows


def write_tables(study: Study, outcomes: Sequence[Outcome], output: Path) -> None:
    """Print what is known so far, and write it in every format."""
    texts = {
        name: partial(comparison_text, comparison, settings=settings)
        for name, (comparison, settings) in comparisons(study, outcomes).items()
    }
    if study.test_on == "all" and (rows := domain_rows(study, outcomes)):
        columns = [data.name for data in study.datasets]
        texts = {"matrix": partial(matrix_text, rows, columns, SPLIT)} | texts
    for name, text_in in texts.items():
        write_output(text_in("terminal") + "\n", "terminal", None)
        for suffix, form in SUFFIXES.items():
            write_output(text_in(form), form, output / f"{name}{suffix}")
        print(f"written: {output / name} ({', '.join(SUFFIXES)})\n")
