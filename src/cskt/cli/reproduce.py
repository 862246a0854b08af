"""`cskt reproduce`: a published result, trained again from the licensed data, beside the published figure."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from cskt.cli.parsing import Parser, existing_folder, overrides_of, seeds_of
from cskt.cli.stored_results import evaluate_run, keep, stored_result
from cskt.config import RunConfig, load_config
from cskt.data.check import check_dataset
from cskt.data.datasets import DATASETS, dataset_key, folders
from cskt.data.overlaps import read_separate_splits
from cskt.data.records import find_split
from cskt.embed import load
from cskt.errors import CsktError
from cskt.evaluation.compare import Entry, figures_of
from cskt.evaluation.reproduce import PROTOCOLS, PUBLISHED, RECIPES, verdict
from cskt.evaluation.results import Result
from cskt.model.io.cache import locate, published_sha256, sha256_of
from cskt.report.tables import METRIC_NAMES, percent
from cskt.training.run_folder import DAMAGED, LAST, PREVIOUS, claimed
from cskt.training.series import seed_folder, train_or_resume
from cskt.utils.console import console, literal
from cskt.utils.progress import counting_bar
from cskt.utils.terminal import json_text

logger = logging.getLogger(__name__)

BACKBONE = "ViT-B/16"
"""What both papers start from."""
REHEARSAL = "rehearsal: not the published data and weights, so the published figures say nothing here"


def main(argv: Sequence[str]) -> int:
    """See `cskt reproduce --help`; exit code 1 while another process is at one of the runs."""
    flags = _parser().parse(argv)
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
    entries = reproduce(RECIPES[flags.method], keys, seeds, protocols, output)
    if entries:
        lines = lines_of(entries, PUBLISHED[flags.method][dataset], rehearsal=flags.rehearsal)
        print(json_text(lines, indent=1)) if flags.json else show(lines, f"{flags.method} on {dataset} test")
    return 0 if len(entries) == len(protocols) else 1


def _parser() -> Parser:
    parser = Parser(
        prog="cskt reproduce",
        description="Check the data against the published counts and the weights against their SHA-256, train the\n"
        "released recipe over several seeds, test it with the epoch picked on val and, labelled as such, on test as\n"
        "the papers do, and print both beside the published figures. Stop it at any time; the same command goes on.",
    )
    parser.add_argument("method", choices=list(RECIPES), help="whose result")
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
    parser.add_argument(
        "--rehearsal", action="store_true", help="go through with any data and weights, without a verdict"
    )
    parser.add_argument("--json", action="store_true", help="fractions as JSON on stdout instead of a table")
    return parser


def check_originals(dataset: str, root: Path, backbone: str, *, rehearsal: bool) -> None:
    """See that data and weights are the published ones; in a rehearsal only warn of what is not.

    Raises:
        CsktError: they are not, or the data is not sound at any size.
    """
    # The data first: finding the weights may mean fetching them.
    for look in (partial(count_problems, dataset, root), partial(weight_problems, backbone)):
        for problem in look():
            if not rehearsal:
                raise CsktError(f"{problem}; to go through the motions with other data or weights: --rehearsal")
            logger.warning("%s", problem)


def reproduce(
    recipe: str, keys: Mapping[str, Any], seeds: Sequence[int], protocols: Sequence[str], output: Path
) -> list[Entry]:
    """Train and test what is missing; one entry for each protocol of which all seeds are there.

    Args:
        recipe: name.
        keys: dotted config keys laid over it.
        seeds: of each protocol.
        protocols: of `PROTOCOLS`.
        output: runs lie in <output>/<protocol>/seed-<n>.
    """
    entries = []
    for protocol in protocols:
        config = load_config(recipe, {**keys, "data.select_on": "test" if protocol == "published" else "val"})
        results = [one for seed in seeds if (one := reproduced(config, seed, output / protocol)) is not None]
        if len(results) == len(seeds):
            entries.append(Entry(PROTOCOLS[protocol], tuple(results)))
    return entries


def count_problems(dataset: str, root: Path) -> list[str]:
    """Where the data under `root` is not as large as the published data set; empty if it is.

    Raises:
        CsktError: it cannot be trained on or tested on, at any size: an image is missing, identities overlap.
    """
    with counting_bar(f"checking {dataset}") as on_progress:
        report = check_dataset(dataset, root, decode=False, on_progress=on_progress)
    if report.errors:
        raise CsktError(f"{root}: {report.errors[0]}")
    found = {split.name: split.counts for split in report.splits}
    return [
        f"{root}: {dataset} {name} has {in_words(found.get(name, (0, 0, 0)))}, published are {in_words(published)}"
        for name, published in DATASETS[dataset].published_counts.items()
        if found.get(name) != published
    ]


def in_words(counts: tuple[int, int, int]) -> str:
    """The size of a split."""
    return "{:,} identities, {:,} images, {:,} captions".format(*counts)


def weight_problems(backbone: str) -> list[str]:
    """Why a weight file is not the one that the papers start from; empty if it is."""
    found, expected = sha256_of(locate(backbone)), published_sha256(BACKBONE)
    return [] if found == expected else [f"{backbone}: SHA-256 {found}, that of CLIP's {BACKBONE} is {expected}"]


def reproduced(config: RunConfig, seed: int, parent: Path) -> Result | None:
    """The test result of one seed: trained, gone on with, or as it lies there; none while another process is at it."""
    folder = seed_folder(parent, seed)
    with claimed(folder) as mine:
        if not mine:
            logger.info("%s: under way elsewhere", folder)
            return None
        train_or_resume(dataclasses.replace(config, seed=seed), folder)
        split = find_split(read_separate_splits(config.data.dataset, Path(config.data.root)), "test")
        result = stored_result(folder, split)
        if result is None:
            result = evaluate_run(load(folder, device=config.device, show_progress=True), split, folder)
            keep(result, folder)
        for checkpoint in (LAST, PREVIOUS, DAMAGED):
            (folder / checkpoint).unlink(missing_ok=True)
    return result


def lines_of(entries: Sequence[Entry], published: Mapping[str, float], *, rehearsal: bool) -> list[dict[str, Any]]:
    """One record for each protocol and published metric; fractions."""
    lines = []
    for entry in entries:
        figures = figures_of(entry)
        for metric, reported in published.items():
            ours = figures[metric]
            lines.append(
                {
                    "protocol": entry.label,
                    "seeds": list(entry.seeds),
                    "metric": metric,
                    "published": reported,
                    "ours": ours.mean,
                    "low": ours.interval.low,
                    "high": ours.interval.high,
                    "deviation": ours.deviation,
                    "verdict": REHEARSAL if rehearsal else verdict(reported, entry.seed_means(metric)),
                }
            )
    return lines


def show(lines: Sequence[dict[str, Any]], title: str) -> None:
    """Print the records as a table, verdicts below it."""
    table = Table(
        "protocol", "", "published", "ours", "95 % interval", "± seeds", title=literal(title), title_justify="left"
    )
    for line in lines:
        interval = f"{percent(line['low'])} to {percent(line['high'])}"
        spread = percent(line["deviation"])
        name = METRIC_NAMES[line["metric"]]
        table.add_row(line["protocol"], name, percent(line["published"]), percent(line["ours"]), interval, spread)
    console().print(table)
    for line in lines:
        print(f"{line['protocol']}, {METRIC_NAMES[line['metric']]}: {line['verdict']}")
