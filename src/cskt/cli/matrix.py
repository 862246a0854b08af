"""`cskt matrix`: runs trained on one data set, tested on others."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cskt.cli.compare import add_format_flags, distinct_names, output_format, write_output
from cskt.cli.model_flags import add_encoder_flags, load_model
from cskt.cli.parsing import Parser
from cskt.cli.run_results import results_on, seed_folders
from cskt.config import RunConfig
from cskt.data.datasets import dataset_key
from cskt.embed.model_paths import check_exists, run_config
from cskt.errors import CsktError
from cskt.evaluation.comparison import check_same_split
from cskt.evaluation.evaluate import is_own_dataset, split_of
from cskt.evaluation.results import Result
from cskt.report.cross_domain import CrossDomainRow, cross_domain_row, cross_domain_text


class DataPlace(NamedTuple):
    """A data set to test on, and the folder that contains it; the run's own if None."""

    dataset: str
    root: str | None

    @property
    def name(self) -> str:
        """`rstpreid`, `jsonl (my-data)`."""
        return dataset_name(self.dataset, self.root)


def main(argv: Sequence[str]) -> int:
    """See `cskt matrix --help`."""
    parser = Parser(
        prog="cskt matrix",
        usage="cskt matrix RUN ... --datasets NAME[@ROOT] ... [--root DIR] [--format FORMAT] [--output FILE]",
        description="R1 of runs on data sets other than their own. Results that a run stores are used again; missing\n"
        "ones, and those of older weights, are computed and stored in the run folder.",
    )
    known = "run folder, folder of seed-1, seed-2, ..., weights, or clip-tiny"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=known)
    examples = "cuhk-pedes, rstpreid, jsonl@my-data, ..."
    parser.add_argument("--datasets", nargs="+", required=True, metavar="NAME[@ROOT]", help=examples)
    parser.add_argument("--root", help="folder that holds the data sets' folders, where @ROOT is left out")
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    add_encoder_flags(parser, caches=True)
    add_format_flags(parser)
    flags = parser.parse(argv)
    form = output_format(flags.format, flags.output)  # before the work
    words = [word.partition("@") for word in flags.datasets]
    places = [DataPlace(dataset_key(name), root or flags.root) for name, _, root in words]
    columns = column_names(places)
    folders = {run: seed_folders(Path(run)) for run in flags.runs}
    for folder in (folder for seeds in folders.values() for folder in seeds):
        check_exists(str(folder))
    models = [str(folder) for seeds in folders.values() for folder in seeds]
    results = {run: [results_of(folder, places, flags, models) for folder in seeds] for run, seeds in folders.items()}
    check_columns(results)
    rows = [row_of(folders[run][0], seeds, places) for run, seeds in results.items()]
    alike = Counter((row.label, row.trained_on) for row in rows)
    rows = [
        row if alike[row.label, row.trained_on] == 1 else dataclasses.replace(row, label=f"{row.label} ({run})")
        for run, row in zip(results, rows, strict=True)
    ]
    write_output(cross_domain_text(rows, columns, flags.split, form), form, flags.output)
    return 0


def results_of(
    model: Path, places: Sequence[DataPlace], flags: argparse.Namespace, models: Sequence[str]
) -> list[Result]:
    """Return the results of one of the models on each data set: stored ones, or computed now and stored."""
    splits = [split_of(str(model), place.dataset, place.root, flags.split) for place in places]
    return results_on(model, splits, lambda: load_model(flags, str(model), among=models), precision=flags.precision)


def check_columns(results: dict[str, list[list[Result]]]) -> None:
    """Check that each column is one split; held-out identities, for example, differ from run to run."""
    (first_run, first), *others = [(run, seed_results) for run, seeds in results.items() for seed_results in seeds]
    for run, seed_results in others:
        for one, other in zip(first, seed_results, strict=True):
            check_same_split(first_run, one, run, other)


def row_of(model: Path, results: Sequence[Sequence[Result]], places: Sequence[DataPlace]) -> CrossDomainRow:
    """Return the row of a run, or of several seeds of it, whose results are by seed and data set."""
    config = run_config(model)
    if config is None or not config.is_trainable:
        return cross_domain_row(results, "", [False] * len(places))
    trained_on = dataset_name(config.data.dataset, config.data.root)
    return cross_domain_row(results, trained_on, [is_in_domain(config, place) for place in places])


def is_in_domain(config: RunConfig, place: DataPlace) -> bool:
    """Return whether a data set is the one that a run was trained on: of its name, in its folder.

    If the folder of the training does not exist here, the name of a published data set decides.
    """
    own = Path(config.data.root)
    if place.root is not None and not own.is_dir():
        return is_own_dataset(config, place.dataset)
    same_name = dataset_key(config.data.dataset) == place.dataset
    return same_name and Path(place.root or own).resolve() == own.resolve()


def dataset_name(dataset: str, root: str | None) -> str:
    """Return the name of a data set in tables: `rstpreid`, `jsonl (my-data)`."""
    key = dataset_key(dataset)
    return f"{key} ({Path(root).resolve().name})" if key == "jsonl" and root else key


def column_names(places: Sequence[DataPlace]) -> list[str]:
    """Return distinct names of the data sets: with the name of the folder, or its whole path, where they need it."""
    if repeated := next((place for place, times in Counter(places).items() if times > 1), None):
        raise CsktError(f"--datasets: {repeated.dataset} is named {places.count(repeated)} times; once is enough")

    def with_folder(folder: str, place: DataPlace) -> str:
        return f"{place.dataset} ({folder})" if folder else place.name

    return distinct_names(
        [place.name for place in places],
        [with_folder(Path(place.root).resolve().name if place.root else "", place) for place in places],
        [with_folder(place.root or "", place) for place in places],
    )
