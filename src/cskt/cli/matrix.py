"""`cskt matrix`: runs trained on one data set, tested on others."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cskt.cli.model_flags import add_cache_flag, add_encoder_flags
from cskt.cli.output import add_format_flags, matrix_row, matrix_text, output_format, write_output
from cskt.cli.parsing import Parser
from cskt.cli.stored_results import evaluate_run, keep, seed_folders, stored_result
from cskt.config import RunConfig
from cskt.data.datasets import dataset_key
from cskt.embed import load
from cskt.embed.model_paths import check_exists, run_config
from cskt.errors import CsktError
from cskt.evaluation.compare import check_same_split
from cskt.evaluation.model_data import is_own_dataset, split_of
from cskt.evaluation.results import Result
from cskt.report.cross_domain import MatrixRow

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """A data set to test on."""

    dataset: str
    root: str | None
    """Folder that holds it; the run's own if empty."""


def main(argv: Sequence[str]) -> int:
    """See `cskt matrix --help`."""
    parser = Parser(
        prog="cskt matrix",
        usage="cskt matrix RUN ... --datasets NAME[@ROOT] ... [--root DIR] [--format FORMAT] [--output FILE]",
        description="R1 of runs on data sets other than their own. Results that a run holds are used again; what is\n"
        "missing, or of older weights, is evaluated and kept in the run folder.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, folder of seed-1, seed-2, ..., weights, or clip-tiny"
    )
    parser.add_argument(
        "--datasets", nargs="+", required=True, metavar="NAME[@ROOT]", help="cuhk-pedes, rstpreid, jsonl@my-data, ..."
    )
    parser.add_argument("--root", help="folder that holds the data sets' folders, where @ROOT is left out")
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    add_encoder_flags(parser)
    add_cache_flag(parser)
    add_format_flags(parser)
    flags = parser.parse(argv)
    form = output_format(flags.format, flags.output)  # a file that cannot be is told before the work
    places = [read_place(word, flags.root) for word in flags.datasets]
    columns = column_names(places)
    models = {run: [str(folder) for folder in seed_folders(Path(run))] for run in flags.runs}
    for model in (model for of_run in models.values() for model in of_run):
        check_exists(model)
    results = {run: [results_on(model, places, flags) for model in of_run] for run, of_run in models.items()}
    check_columns(results)
    rows = distinct_rows({run: row_of(Path(models[run][0]), of_run, places) for run, of_run in results.items()})
    write_output(matrix_text(rows, columns, flags.split, form), form, flags.output)
    return 0


def read_place(word: str, root: str | None) -> Place:
    """`NAME@ROOT`, or `NAME` in the root that all share.

    Raises:
        CsktError: no such data set.
    """
    name, _, own_root = word.partition("@")
    return Place(dataset_key(name), own_root or root)


def results_on(model: str, places: Sequence[Place], flags: argparse.Namespace) -> list[Result]:
    """A model on each data set: as its folder holds it, or evaluated now and kept there.

    Raises:
        CsktError: a data set or the model cannot be read.
    """
    encoder, results = None, []
    for place in places:
        split = split_of(model, place.dataset, place.root, flags.split)
        result = stored_result(Path(model), split, flags.precision)
        if result is None:
            logger.info("%s on %s %s", model, dataset_name(place.dataset, place.root), split.name)
            encoder = encoder or load(
                model,
                flags.backbone,
                flags.device,
                precision=flags.precision,
                weights=flags.weights or "model",
                batch_size=flags.batch_size,
                num_workers=flags.num_workers,
                cache_dir=flags.cache_dir,
                compile=flags.compile,
                show_progress=True,
            )
            result = evaluate_run(encoder, split, Path(model))
            keep(result, Path(model))
        results.append(result)
    return results


def check_columns(results: dict[str, list[list[Result]]]) -> None:
    """See that a column holds one split; held-out people, for one, differ from run to run.

    Raises:
        CsktError: it does not.
    """
    flat = [(run, of_model) for run, of_run in results.items() for of_model in of_run]
    (first_run, first), *others = flat
    for run, of_model in others:
        for one, other in zip(first, of_model, strict=True):
            check_same_split(first_run, one, run, other)


def row_of(model: Path, results: Sequence[Sequence[Result]], places: Sequence[Place]) -> MatrixRow:
    """The line of a run.

    Args:
        model: the run, or its first seed.
        results: per seed one per data set.
        places: the data sets.
    """
    config = run_config(model)
    if config is None or config.trainable == "none":
        return matrix_row(results, "", [False] * len(places))
    trained_on = dataset_name(config.data.dataset, config.data.root)
    return matrix_row(results, trained_on, [is_in_domain(config, place) for place in places])


def is_in_domain(config: RunConfig, place: Place) -> bool:
    """Whether a data set is the one that a run was trained on: of its name, in its folder.

    The folder of a run that was trained elsewhere is not there. Then a public name tells alone; `jsonl` does not.
    """
    own = Path(config.data.root)
    if place.root is not None and not own.is_dir():
        return is_own_dataset(config, place.dataset)
    same_name = dataset_key(config.data.dataset) == place.dataset
    return same_name and Path(place.root or own).resolve() == own.resolve()


def dataset_name(dataset: str, root: str | None) -> str:
    """A data set's name for a reader: `rstpreid`, `jsonl (my-data)`."""
    key = dataset_key(dataset)
    return f"{key} ({Path(root).resolve().name})" if key == "jsonl" and root else key


def column_names(places: Sequence[Place]) -> list[str]:
    """The data sets' names for a reader; those that are named alike with their folder's name, else its whole path.

    Raises:
        CsktError: one data set is given twice.
    """
    if doubled := next((place for place, times in Counter(places).items() if times > 1), None):
        raise CsktError(f"--datasets: {doubled.dataset} is named {places.count(doubled)} times; once is enough")
    names = [dataset_name(place.dataset, place.root) for place in places]
    folders = [Path(place.root).resolve().name if place.root else "" for place in places]
    for longer in (folders, [place.root or "" for place in places]):
        times = Counter(names)
        names = [
            f"{place.dataset} ({words})" if times[name] > 1 and words else name
            for name, place, words in zip(names, places, longer, strict=True)
        ]
    return names


def distinct_rows(rows: dict[str, MatrixRow]) -> list[MatrixRow]:
    """The lines in order, with the runs' own words added to those that look alike."""
    alike = Counter((row.label, row.trained_on) for row in rows.values())
    return [
        row if alike[row.label, row.trained_on] == 1 else replace(row, label=f"{row.label} ({run})")
        for run, row in rows.items()
    ]
