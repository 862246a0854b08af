"""`cskt evaluate`: retrieval metrics of any model on any split, and its per-query results in a file."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskt.cli.model_flags import add_model_flags, load_model_and_split
from cskt.cli.parsing import Parser, given
from cskt.cli.run_results import evaluate_run, seed_folders, selection_note
from cskt.embed import Encoder
from cskt.embed.model_paths import check_exists
from cskt.errors import CsktError, file_system_errors
from cskt.evaluation.comparison import MethodResults
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
        " by seed, with mean and deviation.",
    )
    add_model_flags(parser)
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
    if (folders := seed_folders(model)) != [model]:
        evaluate_seeds(folders, flags, options)
        return 0
    encoder, split = load_model_and_split(flags)
    result = evaluate_run(encoder, split, model, label=flags.label, options=options, output=flags.output)
    print_metrics(result, encoder, model, as_json=flags.json)
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
        ResultRow("image to text", i2t, total_parameters=total, note=selection_note(model)),
    ]
    sizes = f"{t2i['num_queries']} captions, {t2i['num_gallery']} images"
    console().print(result_table(rows, f"{model} on {result.dataset} {result.split} ({sizes})"))


def evaluate_seeds(folders: Sequence[Path], flags: argparse.Namespace, options: RankingOptions) -> None:
    """Evaluate every seed of a method, keep the per-query results of each, and print all with mean and deviation."""
    for folder in folders:  # before the first is evaluated
        check_exists(str(folder))
    results = []
    for folder in folders:
        encoder, split = load_model_and_split(argparse.Namespace(**vars(flags) | {"model": str(folder)}))
        output = flags.output and flags.output / folder.name
        results.append(evaluate_run(encoder, split, folder, label=flags.label, options=options, output=output))
    method = MethodResults(results[0].label, tuple(results))  # refuses seeds that do not belong together
    directions = ("t2i", "i2t")
    mean: dict[str, dict[str, Any]] = {direction: {} for direction in directions}
    deviation: dict[str, dict[str, Any]] = {direction: {} for direction in directions}
    for direction, metric in itertools.product(directions, METRICS):
        over_seeds = mean_and_deviation([result.metrics[direction][metric] for result in results])
        mean[direction][metric], deviation[direction][metric] = over_seeds.mean, over_seeds.deviation
    if flags.json:
        seeds = [record_of(folder, result) for folder, result in zip(folders, results, strict=True)]
        print(json_text({"seeds": seeds, "mean": mean, "deviation": deviation}))
        return
    rows = [ResultRow(f"seed {one.seed}", one.metrics["t2i"], note=one.note) for one in results]
    deviations = deviation["t2i"] if len(results) > 1 else {}
    rows.append(ResultRow(f"mean of {len(results)}", mean["t2i"], deviations=deviations))
    title = f"{method.label}, text to image on {results[0].dataset} {results[0].split} ({flags.model})"
    console().print(result_table(rows, title))


def record_of(model: Path, result: Result) -> dict[str, Any]:
    """Return the means of a result as plain values."""
    return {
        "model": str(model), "note": result.note, "dataset": result.dataset, "split": result.split,
        "t2i": result.metrics["t2i"], "i2t": result.metrics["i2t"],
    }  # fmt: skip
