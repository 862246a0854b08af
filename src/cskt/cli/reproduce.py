"""`cskt reproduce`: a published result, trained again from the licensed data, beside the published figure."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cskt.cli.parsing import Parser, existing_folder, overrides_of, seeds_of
from cskt.cli.run_results import train_and_test
from cskt.config import load_config
from cskt.data.check import check_dataset
from cskt.data.datasets import DATASETS, dataset_key, folders
from cskt.data.overlaps import read_separate_splits
from cskt.data.records import find_split
from cskt.errors import CsktError
from cskt.evaluation.comparison import MethodResults
from cskt.evaluation.published_results import PROTOCOLS, PUBLISHED, RECIPES, verdict
from cskt.model.io.cache import locate, published_sha256, sha256_of
from cskt.report.numbers import METRIC_NAMES, percent
from cskt.training.series import seed_folder
from cskt.utils.console import console, counting_bar, literal
from cskt.utils.terminal import json_text

logger = logging.getLogger(__name__)

BACKBONE = "ViT-B/16"
"""Initial weights of all papers."""
REHEARSAL = "rehearsal: not the published data and weights, so the published figures say nothing here"


def main(argv: Sequence[str]) -> int:
    """See `cskt reproduce --help`; exit code 1 while another process works on one of the runs."""
    parser = Parser(
        prog="cskt reproduce",
        description="Check the data against the published counts and the weights against their SHA-256, train the\n"
        "released recipe over several seeds, test it with the epoch picked on val and, labelled as such, on test as\n"
        "the papers do, and print both beside the published figures. Stop it at any time; the same command continues.",
    )
    parser.add_argument("method", choices=list(RECIPES), help="method whose result is reproduced")
    parser.add_argument("--dataset", required=True, help=", ".join(folders()))
    parser.add_argument("--root", required=True, help="folder that holds the data set's folder")
    parser.add_argument("--seeds", default="1,2,3", help="one training each (%(default)s)")
    parser.add_argument(
        "--protocol", choices=["both", *PROTOCOLS], default="both", help="each is a training of its own (%(default)s)"
    )
    parser.add_argument("--backbone", default=BACKBONE, help="the file of CLIP's ViT-B/16 (default: fetched or cached)")
    parser.add_argument("--output", type=Path, help="folder of the runs (reproduce/<method>-<dataset>, rehearsal/...)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32", help="%(default)s")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="with --rehearsal: config keys")
    parser.add_argument("--rehearsal", action="store_true", help="run with any data and weights, without a verdict")
    parser.add_argument("--json", action="store_true", help="fractions as JSON on stdout instead of a table")
    flags = parser.parse(argv)
    dataset, root = dataset_key(flags.dataset), existing_folder(flags.root)
    if dataset not in PUBLISHED[flags.method]:
        raise CsktError(f"--dataset {flags.dataset}: nothing is published on it; give one of {', '.join(folders())}")
    if flags.set and not flags.rehearsal:
        raise CsktError("--set changes the recipe, which is then no reproduction; give it with --rehearsal")
    seeds, changes = seeds_of(flags.seeds), overrides_of(flags.set)
    check_originals(dataset, root, flags.backbone, rehearsal=flags.rehearsal)
    keys = changes | {
        "data.dataset": dataset, "data.root": str(root), "backbone.name": flags.backbone, "device": flags.device,
        "precision": flags.precision, "name": flags.method,
    }  # fmt: skip
    protocols = list(PROTOCOLS) if flags.protocol == "both" else [flags.protocol]
    output = flags.output or Path("rehearsal" if flags.rehearsal else "reproduce") / f"{flags.method}-{dataset}"
    methods = reproduce(RECIPES[flags.method], keys, seeds, protocols, output)
    if methods:
        lines = lines_of(methods, PUBLISHED[flags.method][dataset], rehearsal=flags.rehearsal)
        print(json_text(lines, indent=1)) if flags.json else show(lines, f"{flags.method} on {dataset} test")
    return 0 if len(methods) == len(protocols) else 1


def check_originals(dataset: str, root: Path, backbone: str, *, rehearsal: bool) -> None:
    """Check that data and weights are the published ones; a rehearsal only logs warnings."""
    # The data first: the weights may have to be downloaded.
    for problem in itertools.chain(count_problems(dataset, root), weight_problems(backbone)):
        if not rehearsal:
            raise CsktError(f"{problem}; to go through the motions with other data or weights: --rehearsal")
        logger.warning("%s", problem)


def count_problems(dataset: str, root: Path) -> list[str]:
    """Return the splits whose size is not that of the published data set, one line each."""
    with counting_bar(f"checking {dataset}") as on_progress:
        report = check_dataset(dataset, root, decode=False, on_progress=on_progress)
    if report.errors:
        raise CsktError(f"{root}: {report.errors[0]}")
    found = {split.name: split.counts for split in report.splits}
    size = "{:,} identities, {:,} images, {:,} captions".format
    return [
        f"{root}: {dataset} {name} has {size(*found.get(name, (0, 0, 0)))}, published are {size(*published)}"
        for name, published in DATASETS[dataset].published_counts.items()
        if found.get(name) != published
    ]


def weight_problems(backbone: str) -> Iterator[str]:
    """Yield a line if a weight file is not the one that the papers start from."""
    found, expected = sha256_of(locate(backbone)), published_sha256(BACKBONE)
    if found != expected:
        yield f"{backbone}: SHA-256 {found}, that of CLIP's {BACKBONE} is {expected}"


def reproduce(
    recipe: str, keys: Mapping[str, Any], seeds: Sequence[int], protocols: Sequence[str], output: Path
) -> list[MethodResults]:
    """Train and test the missing runs, and return each protocol of which all seeds have a result.

    The config keys are laid over the recipe; the runs are in <output>/<protocol>/seed-<n>.
    """
    methods = []
    for protocol in protocols:
        config = load_config(
            recipe, {**keys, "data.select_on": "test" if protocol == "published" else "val"}, fit=False
        )
        test = find_split(read_separate_splits(config.data.dataset, Path(config.data.root)), "test")
        results = []
        for seed in seeds:
            of_seed = dataclasses.replace(config, seed=seed)
            results += train_and_test(of_seed, seed_folder(output / protocol, seed), [test]) or []
        if len(results) == len(seeds):
            methods.append(MethodResults(PROTOCOLS[protocol], tuple(results)))
    return methods


def lines_of(
    methods: Sequence[MethodResults], published: Mapping[str, float], *, rehearsal: bool
) -> list[dict[str, Any]]:
    """Return one record for each protocol and published metric; fractions."""
    lines = []
    for method in methods:
        estimates = method.estimates()
        for metric, reported in published.items():
            ours = estimates[metric]
            lines.append({
                "protocol": method.label, "seeds": list(method.seeds), "metric": metric, "published": reported,
                "ours": ours.mean, "low": ours.interval.low, "high": ours.interval.high, "deviation": ours.deviation,
                "verdict": REHEARSAL if rehearsal else verdict(reported, method.seed_means(metric)),
            })  # fmt: skip
    return lines


def show(lines: Sequence[dict[str, Any]], title: str) -> None:
    """Print the records as a table, verdicts below it."""
    headings = ("protocol", "", "published", "ours", "95 % interval", "± seeds")
    table = Table(*headings, title=literal(title), title_justify="left")
    for line in lines:
        interval = f"{percent(line['low'])} to {percent(line['high'])}"
        cells = [percent(line["published"]), percent(line["ours"]), interval, percent(line["deviation"])]
        table.add_row(line["protocol"], METRIC_NAMES[line["metric"]], *cells)
    console().print(table)
    for line in lines:
        print(f"{line['protocol']}, {METRIC_NAMES[line['metric']]}: {line['verdict']}")
