"""`cskt study`: recipes x data sets x seeds; missing runs are trained and tested, then compared in tables."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure

from cskt.cli.compare import differing_settings, write_output
from cskt.cli.parsing import Parser, command_line, existing_folder, overrides_of, seeds_of
from cskt.cli.run_results import stored_last_epoch, stored_result, train_and_test
from cskt.config import RunConfig
from cskt.data.datasets import DATASETS
from cskt.data.overlaps import read_separate_splits
from cskt.data.records import Split, find_split
from cskt.errors import CsktError
from cskt.evaluation.comparison import MethodComparison, MethodResults, compare
from cskt.evaluation.results import Result
from cskt.evaluation.study_plan import PlannedRun, Size, Study, StudyData, load_study, plan, select, study_names
from cskt.report.comparison_tables import SettingDifference, comparison_text
from cskt.report.cross_domain import CrossDomainRow, cross_domain_row, cross_domain_text
from cskt.report.study_plots import curve_of, parameters_plot, training_curves
from cskt.report.style import png
from cskt.report.tables import SUFFIXES
from cskt.training.events import read_events
from cskt.training.series import check_same_config, finished
from cskt.utils.files import write_atomically
from cskt.utils.paths import check_path

logger = logging.getLogger(__name__)

SPLIT = "test"


def main(argv: Sequence[str]) -> int:
    """See `cskt study --help`; exit code 1 while runs are missing."""
    parser = Parser(
        prog="cskt study",
        description="Train and test every missing method of a study, then compare them. Stop it at any time: the same"
        " command continues. Several processes with the same command share the work.",
    )
    parser.add_argument("study", help=f"{', '.join(study_names())}, or a YAML file of your own")
    parser.add_argument("--root", default="data", help="folder of the data sets (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the runs and tables (studies/<name>)")
    sizes = "small: a small backbone, for two cores; full: the backbone of the recipes (default: %(default)s)"
    parser.add_argument("--size", choices=get_args(Size), default="small", help=sizes)
    parser.add_argument("--seeds", help="instead of the study's own: 1,2,3")
    datasets = f"instead of the study's own: {', '.join(DATASETS)}"
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help=datasets)
    parser.add_argument(
        "--arms", nargs="+", metavar="LABEL", help="only the baseline and the arms whose labels begin so"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="config keys for every run")
    parser.add_argument("--plan", action="store_true", help="only list the runs and their state")
    parser.add_argument("--table", action="store_true", help="only write the tables of the results so far")
    flags = parser.parse(argv)
    study = select(
        load_study(flags.study),
        seeds=seeds_of(flags.seeds) if flags.seeds else (),
        datasets=[StudyData(name=name, dataset=name) for name in flags.datasets or ()],
        arms=flags.arms or (),
    )
    output = flags.output or Path("studies") / Path(flags.study).stem
    root = existing_folder(flags.root)
    check_path(output)
    runs = plan(study, output, root, size=flags.size, overrides=overrides_of(flags.set))
    for run in runs:  # all of them, before anything is trained or any table mixes configs
        check_same_config(run.config, run.folder)
    read = {data.name: read_separate_splits(data.dataset, root / data.root) for data in study.datasets}
    splits = {name: find_split(dataset, SPLIT) for name, dataset in read.items()}
    if flags.plan:
        for run in runs:
            print(f"{'done   ' if outcome_of(run, splits).is_done else 'missing'} {run.folder}")
        return 0
    if not flags.table:
        train_missing(runs, splits)
    outcomes = [outcome_of(run, splits) for run in runs]
    write_tables(study, outcomes, output)
    num_missing = sum(not outcome.is_done for outcome in outcomes)
    if num_missing:
        print(f"{num_missing} of {len(runs)} runs are missing or in progress elsewhere; the same command continues:")
        print("  " + command_line("study", *argv))
    return 1 if num_missing else 0


@dataclass(frozen=True)
class Outcome:
    """Results of a run so far."""

    run: PlannedRun
    results: Mapping[str, Result]
    """Name of the data set -> result on its test split; empty until the run is trained."""
    last_epoch: Mapping[str, Result] = field(default_factory=dict)
    """The same of the last epoch, for a run that keeps it."""

    @property
    def is_done(self) -> bool:
        """True if the run is trained, and tested on all of its data sets."""
        wanted = len(self.run.tested_on)
        return len(self.results) == wanted and (len(self.last_epoch) == wanted or not self.run.config.keeps_last_epoch)

    @property
    def of_last_epoch(self) -> Outcome:
        """The outcome with the results of the last epoch; a run without training keeps its only ones."""
        return replace(self, results=self.last_epoch if self.run.config.keeps_last_epoch else self.results)


def outcome_of(run: PlannedRun, splits: Mapping[str, Split]) -> Outcome:
    """Read the results of a run's folder."""
    if finished(run.folder) is None:
        return Outcome(run, {})
    best, last = (
        {name: result for name in run.tested_on if (result := stored(run.folder, splits[name])) is not None}
        for stored in (stored_result, stored_last_epoch)
    )
    return Outcome(run, best, last)


def train_missing(runs: Sequence[PlannedRun], splits: Mapping[str, Split]) -> None:
    """Train and test every run that is not done and that no other process works on."""
    for number, run in enumerate(runs, start=1):
        if outcome_of(run, splits).is_done:
            continue
        logger.info("run %d of %d: %s", number, len(runs), run.folder)
        try:
            train_and_test(run.config, run.folder, [splits[name] for name in run.tested_on])
        except CsktError as error:
            raise CsktError(f"arm '{run.arm.label}', seed {run.seed} on {run.data.name}: {error}") from None


def comparisons(
    study: Study, outcomes: Sequence[Outcome]
) -> dict[str, tuple[MethodComparison, list[SettingDifference]]]:
    """Compare the arms that have results, and list the settings in which they differ.

    Returns:
        By `<trained on>` or `<trained on>-on-<tested on>`.
    """
    found = {}
    labels = list(dict.fromkeys(outcome.run.arm.label for outcome in outcomes))
    for data in study.datasets:
        trained = [outcome for outcome in outcomes if outcome.run.data == data and outcome.results]
        configs: dict[str, list[RunConfig]] = {}
        for outcome in trained:
            configs.setdefault(outcome.run.arm.label, []).append(outcome.run.config)
        for tested in study.tested_on(data):
            results: dict[str, list[Result]] = {label: [] for label in labels}
            for outcome in trained:
                if tested in outcome.results:
                    results[outcome.run.arm.label].append(outcome.results[tested])
            methods = [MethodResults(label, tuple(seeds)) for label, seeds in results.items() if seeds]
            if len(methods) > 1:
                present = [method.label for method in methods]
                baseline = present.index(study.baseline) if study.baseline in present else 0
                name = data.name if tested == data.name else f"{data.name}-on-{tested}"
                found[name] = compare(methods, baseline), differing_settings(configs)
    return found


def cross_domain_rows(study: Study, outcomes: Sequence[Outcome]) -> list[CrossDomainRow]:
    """Return a row for every arm and data set that it was trained on, a column for every data set.

    An arm that trains nothing has one row.
    """
    rows = []
    for label in dict.fromkeys(outcome.run.arm.label for outcome in outcomes):
        for data in study.datasets:
            done = [one for one in outcomes if one.is_done and (one.run.arm.label, one.run.data) == (label, data)]
            if done:
                results = [[outcome.results[tested.name] for tested in study.datasets] for outcome in done]
                is_trainable = done[0].run.config.is_trainable
                in_domain = [is_trainable and tested == data for tested in study.datasets]
                rows.append(cross_domain_row(results, data.name if is_trainable else "", in_domain))
                if not is_trainable:
                    break
    return rows


def write_tables(study: Study, outcomes: Sequence[Outcome], output: Path) -> None:
    """Print the tables of the results so far, write them in every format, and plots beside them."""
    compared = comparisons(study, outcomes)
    texts = {
        name: partial(comparison_text, comparison, settings=settings)
        for name, (comparison, settings) in compared.items()
    }
    if study.last_epoch:
        of_last = comparisons(study, [outcome.of_last_epoch for outcome in outcomes])
        texts |= {
            f"{name}-last-epoch": partial(comparison_text, comparison, settings=settings)
            for name, (comparison, settings) in of_last.items()
        }
    if study.test_on == "all" and (rows := cross_domain_rows(study, outcomes)):
        columns = [data.name for data in study.datasets]
        texts = {"matrix": partial(cross_domain_text, rows, columns, SPLIT)} | texts
    for name, render in texts.items():
        write_output(render("terminal") + "\n", "terminal", None)
        for suffix, form in SUFFIXES.items():
            write_output(render(form), form, output / f"{name}{suffix}")
        print(f"written: {output / name} ({', '.join(SUFFIXES)})\n")
    figures = curve_figures(study, outcomes) | {
        f"{name}-parameters": parameters_plot(comparison.methods) for name, (comparison, _) in compared.items()
    }
    for name, figure in figures.items():
        picture = png(figure)
        write_atomically(output / f"{name}.png", methodcaller("write_bytes", picture))
        print(f"written: {output / name}.png")


def curve_figures(study: Study, outcomes: Sequence[Outcome]) -> dict[str, Figure]:
    """Draw R1 during training of all arms, one figure for each data set that was trained on: `<data set>-curves`."""
    figures = {}
    for data in study.datasets:
        folders: dict[str, list[Path]] = {}
        for outcome in outcomes:
            if outcome.run.data == data and outcome.results and outcome.run.config.is_trainable:
                folders.setdefault(outcome.run.arm.label, []).append(outcome.run.folder)
        curves = [curve_of(label, [read_events(folder) for folder in seeds]) for label, seeds in folders.items()]
        if any(curve.epochs for curve in curves):
            figures[f"{data.name}-curves"] = training_curves(curves)
    return figures
