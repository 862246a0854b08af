"""`cskt evaluate`: retrieval metrics of any model on any split, and its per-query results in a file."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskt.cli.model_flags import add_model_flags, load_model
from cskt.cli.parsing import Parser, given
from cskt.cli.run_results import evaluate_run, seed_folders, selection_note
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.embed.model_paths import check_exists
from cskt.errors import CsktError, file_system_errors
from cskt.evaluation.comparison import MethodResults
from cskt.evaluation.evaluate import splits_of
from cskt.evaluation.rerank import RankingOptions
from cskt.evaluation.results import METRICS, Result
from cskt.evaluation.statistics import mean_and_deviation
from cskt.report.tables import ResultRow, result_table
from cskt.utils.console import console
from cskt.utils.terminal import json_text


def main(argv: Sequence[str]) -> int:
    """See `cskt evaluate --help`."""
    parser = Parser(
        prog="cskt evaluate",
        description="Retrieval metrics of a model on a split. A folder that holds seed-1, seed-2, ... is evaluated seed"
        " by seed, with mean and deviation. A run that was trained on several data sets is evaluated on each of them.",
    )
    add_model_flags(parser, several_roots=True)
    parser.add_argument("--json", action="store_true", help="fractions as JSON on stdout, instead of a table")
    output = "keep the per-query results here (default: in the run folder)"
    parser.add_argument("--output", type=Path, metavar="FOLDER", help=output)
    parser.add_argument("--label", help="what `cskt compare` calls the model (default: the run's name)")
    add_ranking_flags(parser)
    flags = parser.parse(argv)
    options = ranking_options(flags)
    if flags.output is not None:
        with file_system_errors(flags.output):
            flags.output.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is found before the work
    model = Path(flags.model)
    folders = seed_folders(model)
    for folder in folders:  # before the first is evaluated
        check_exists(str(folder))
    places = splits_of(str(folders[0]), flags.dataset, flags.root, flags.split or "test")
    if folders != [model]:
        evaluate_seeds(folders, places, flags, options)
        return 0
    encoder = load_model(flags)
    results = [
        evaluate_run(encoder, split, model, label=flags.label, options=options, output=flags.output)
        for _, split in places
    ]
    if len(results) == 1:
        print_metrics(results[0], encoder, model, as_json=flags.json)
    else:
        print_data_sets([root for root, _ in places], results, model, as_json=flags.json)
    return 0


def add_ranking_flags(parser: Parser) -> None:
    """Add test-time options, off by default."""
    defaults = RankingOptions()
    group = parser.add_argument_group("test-time options of text to image, recorded in every result")
    nearest = "average a caption with its K nearest captions"
    group.add_argument("--query-expansion", type=int, default=0, metavar="K", help=nearest)
    group.add_argument("--rerank", action="store_true", help="k-reciprocal re-ranking")
    constants = (("k1", int, "neighbours"), ("k2", int, "vectors averaged"), ("weight", float, "share of the cosine"))
    for name, kind, text in constants:
        value = getattr(defaults, f"rerank_{name}")
        group.add_argument(f"--rerank-{name}", type=kind, metavar="VALUE", help=f"{text} (with --rerank: {value})")


def ranking_options(flags: argparse.Namespace) -> RankingOptions:
    """Return the options that the flags of `add_ranking_flags` set."""
    constants = given(flags, ("rerank_k1", "rerank_k2", "rerank_weight"))
    if constants and not flags.rerank:
        raise CsktError(f"--{next(iter(constants)).replace('_', '-')} changes nothing without --rerank")
    return RankingOptions(query_expansion=flags.query_expansion, rerank=flags.rerank, **constants)


def print_metrics(result: Result, encoder: Encoder, model: Path, *, as_json: bool) -> None:
    """Print the means of a result, as a table for people or as JSON."""
    t2i, i2t = result.metrics["t2i"], result.metrics["i2t"]
    if as_json:
        print(json_text(record_of(model, result)))
        return
    total = encoder.model.num_parameters()
    rows = [
        ResultRow("text to image", t2i, total_parameters=total, note=result.note),
        ResultRow("image to text", i2t, total_parameters=total, note=encoder.note or selection_note(model)),
    ]
    sizes = f"{t2i['num_queries']} captions, {t2i['num_gallery']} images"
    console().print(result_table(rows, f"{model} on {result.dataset} {result.split} ({sizes})"))


def print_data_sets(roots: Sequence[str], results: Sequence[Result], model: Path, *, as_json: bool) -> None:
    """Print the means on several data sets: a row for each, or its record in a list."""
    if as_json:
        records = [record_of(model, result) | {"root": root} for root, result in zip(roots, results, strict=True)]
        print(json_text({"datasets": records}))
        return
    names = [Path(root).name for root in roots]
    places = names if len(set(names)) == len(names) else roots  # full paths are long
    rows = [
        ResultRow(f"{result.dataset} in {place}", result.metrics["t2i"], note=result.note)
        for place, result in zip(places, results, strict=True)
    ]
    console().print(result_table(rows, f"{model}, text to image on {len(rows)} data sets, {results[0].split}"))


def evaluate_seeds(
    folders: Sequence[Path], places: Sequence[tuple[str, Split]], flags: argparse.Namespace, options: RankingOptions
) -> None:
    """Evaluate every seed of a method on every data set, and print all with mean and deviation.

    Args:
        folders: runs of the seeds.
        places: root and split of each data set.
        flags: of the command.
        options: of the ranking.
    """
    results: list[list[Result]] = [[] for _ in places]
    for folder in folders:
        encoder = load_model(flags, str(folder))
        output = flags.output and flags.output / folder.name
        for (_, split), so_far in zip(places, results, strict=True):
            so_far.append(evaluate_run(encoder, split, folder, label=flags.label, options=options, output=output))
    records = []
    for (root, _), of_place in zip(places, results, strict=True):
        records.append(_print_seeds(folders, of_place, flags) | ({"root": root} if len(places) > 1 else {}))
    if flags.json:
        print(json_text(records[0] if len(records) == 1 else {"datasets": records}))


def _print_seeds(folders: Sequence[Path], results: Sequence[Result], flags: argparse.Namespace) -> dict[str, Any]:
    """Print the results of all seeds on one data set as a table, unless flags ask for JSON; return them as values."""
    method = MethodResults(results[0].label, tuple(results))  # refuses seeds that do not belong together
    directions = ("t2i", "i2t")
    mean: dict[str, dict[str, Any]] = {direction: {} for direction in directions}
    deviation: dict[str, dict[str, Any]] = {direction: {} for direction in directions}
    for direction, metric in itertools.product(directions, METRICS):
        over_seeds = mean_and_deviation([result.metrics[direction][metric] for result in results])
        mean[direction][metric], deviation[direction][metric] = over_seeds.mean, over_seeds.deviation
    if not flags.json:
        rows = [ResultRow(f"seed {one.seed}", one.metrics["t2i"], note=one.note) for one in results]
        deviations = deviation["t2i"] if len(results) > 1 else {}
        rows.append(ResultRow(f"mean of {len(results)}", mean["t2i"], deviations=deviations))
        title = f"{method.label}, text to image on {results[0].dataset} {results[0].split} ({flags.model})"
        console().print(result_table(rows, title))
    seeds = [record_of(folder, result) for folder, result in zip(folders, results, strict=True)]
    return {"seeds": seeds, "mean": mean, "deviation": deviation}


def record_of(model: Path, result: Result) -> dict[str, Any]:
    """Return the means of a result as plain values."""
    return {
        "model": str(model), "note": result.note, "dataset": result.dataset, "split": result.split,
        "t2i": result.metrics["t2i"], "i2t": result.metrics["i2t"],
    }  # fmt: skip
