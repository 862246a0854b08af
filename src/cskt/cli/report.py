"""`cskt report`: one page with the evidence behind the figures of one model or several, and its pictures beside it."""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from cskt import __version__
from cskt.cli.model_flags import OWN_PRECISION, PRECISION_HELP, PRECISIONS, add_weights_flag
from cskt.cli.next_steps import command_line
from cskt.cli.parsing import Parser
from cskt.cli.report_sections import (
    Examined,
    attribute_sections,
    attribute_values,
    comparison_sections,
    curves_section,
    examine,
    list_sections,
    ranking_sections,
)
from cskt.cli.run_report import run_summary, warning_sections
from cskt.cli.run_settings import warnings_of
from cskt.cli.stored_results import seed_folders
from cskt.config import to_dict
from cskt.data.records import Split
from cskt.embed import load
from cskt.embed.model_paths import check_exists, run_config
from cskt.errors import CsktError
from cskt.evaluation.evaluate import SplitFeatures, encode_split
from cskt.evaluation.model_data import split_of
from cskt.report.comparison import rate, size
from cskt.report.page import write_report
from cskt.report.pictures import answer_sheet
from cskt.report.sections import Section
from cskt.report.style import LINES, png
from cskt.report.tables import result_table
from cskt.utils.console import console
from cskt.utils.progress import bar

MOST_HITS = 10
"""Images of a ranked list unless the user asks for another number."""
MOST_NAMES = 4
"""Runs that a title names one by one."""


def main(argv: Sequence[str]) -> int:
    """See `cskt report --help`."""
    parser = Parser(
        prog="cskt report",
        description="Write one HTML page on how runs rank a split, and its pictures as PNG into a folder beside it. "
        "Pictures, hardest queries and attributes are those of the run named first.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder (of seed-1, seed-2, ... the first), released folder, CLIP weights or clip-tiny",
    )
    parser.add_argument("--output", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    parser.add_argument("--dataset", help="cuhk-pedes, icfg-pedes, rstpreid or jsonl (default: the runs' own)")
    parser.add_argument("--root", help="folder that holds the data set's folder (default: the runs' own)")
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    parser.add_argument("-k", type=int, help=f"images of a ranked list (default: {MOST_HITS}, or the whole gallery)")
    parser.add_argument("--lists", type=int, default=3, help="best and worst lists, each (default: %(default)s)")
    parser.add_argument("--backbone", help="CLIP weights of adapter-only runs, if not where their configs say")
    add_weights_flag(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--precision", choices=PRECISIONS, help=PRECISION_HELP.format(OWN_PRECISION))
    parser.add_argument("--batch-size", type=int, default=128, help="images or captions at once (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=4, help="threads that decode images (default: %(default)s)")
    flags = parser.parse(argv)
    check_flags(flags)
    return report_runs(flags)


def report_runs(flags: argparse.Namespace) -> int:
    """Examine the runs, write the page and its pictures, and say where they are."""
    runs = named_runs(flags.runs)
    split = common_split(list(runs.values()), flags.dataset, flags.root, flags.split)
    models, lists = examine_runs(runs, flags, split, list_length(flags.k, len(split.records)))
    sections = [
        *warning_sections({shown.label: warnings_of(shown.events) for shown in models}),
        *comparison_sections(models),
        *ranking_sections(models, split),
        *lists,
        *attribute_sections(models[0], split, attribute_values(split)),
        *curves_section(models),
    ]
    title, rows = title_of(models, split), [shown.row for shown in models]
    write_report(
        flags.output,
        title=title,
        rows=rows,
        headline=rows[0] if len(rows) == 1 else None,
        sections=sections,
        facts=facts_of_page(models, split),
        configs={f"{shown.label}: config.yaml": to_dict(shown.config) for shown in models if shown.config},
        next_commands=[command_line("query", models[0].model, split.captions[0], "--split", split.name)],
    )
    pictures = write_pictures(flags.output, sections)
    console().print(result_table(rows, title))
    print(f"report:   {flags.output}  (open it in a browser)\npictures: {pictures}")
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """See that the page can be written before anything is encoded.

    Raises:
        CsktError: too many runs, one run twice, a negative number of lists, or an output that is no HTML file.
    """
    if len(flags.runs) > len(LINES):
        raise CsktError(f"{len(flags.runs)} runs; a page shows up to {len(LINES)}, for more lines look alike")
    for run, times in Counter(flags.runs).items():
        if times > 1:
            raise CsktError(f"{run} is named {times} times; once is enough")
    if flags.lists < 0:
        raise CsktError(f"--lists {flags.lists}: give 0 or more")
    if flags.output.suffix.lower() not in (".html", ".htm") or flags.output.is_dir():
        raise CsktError(f"--output {flags.output}: name a file that ends in .html")


def common_split(runs: Sequence[str], dataset: str | None, root: str | None, name: str) -> Split:
    """The split that all runs are shown on; plain CLIP, which has no data of its own, takes that of the others.

    Raises:
        CsktError: no such model or split, no run says which data to use, or the runs have different splits.
    """
    for run in runs:
        check_exists(run)
    owners = [run for run in runs if run_config(Path(run))]
    first, *others = owners or runs[:1]
    split = split_of(first, dataset, root, name)
    for other in others:
        found = split_of(other, dataset, root, name)
        if found.sha256 != split.sha256:
            places = " | ".join(
                f"{run}: {one.dataset} {one.name}, {len(one.records)} images, {len(one.captions)} captions"
                for run, one in ((first, split), (other, found))
            )
            raise CsktError(f"different splits ({places}); name one data set for all runs: --dataset NAME --root DIR")
    return split


def named_runs(words: Sequence[str]) -> dict[str, str]:
    """A distinct name for each run -> the run; of a folder of several seeds it is the first, and the name says so.

    The name is that of its config, of its folder where that is not enough, else its whole path.
    """
    runs = [str(seed_folders(Path(word))[0]) for word in words]
    configs = [run_config(Path(run)) for run in runs]
    names = [config.name if config else word for word, config in zip(words, configs, strict=True)]
    for longer in ([Path(word).name for word in words], words):
        times = Counter(names)
        names = [name if times[name] == 1 else other for name, other in zip(names, longer, strict=True)]
    return {
        name if Path(run) == Path(word) else f"{name} ({Path(run).name})": run
        for name, word, run in zip(names, words, runs, strict=True)
    }


def list_length(asked: int | None, num_images: int) -> int:
    """Images of a ranked list: as many as are asked for, else `MOST_HITS`, or all where there are fewer.

    Raises:
        CsktError: more are asked for than there are, or none.
    """
    length = min(MOST_HITS, num_images) if asked is None else asked
    if not 1 <= length <= num_images:
        raise CsktError(f"-k {length}: the split has {num_images} images; give 1 to {num_images}")
    return length


def title_of(models: Sequence[Examined], split: Split) -> str:
    """Who is shown on what."""
    names = ", ".join(shown.label for shown in models) if len(models) <= MOST_NAMES else f"{len(models)} runs"
    return f"{names} on {split.dataset} {split.name}"


def examine_runs(
    runs: Mapping[str, str], flags: argparse.Namespace, split: Split, k: int
) -> tuple[list[Examined], list[Section]]:
    """What the page tells of each run, and the ranked lists of the first; one model is in memory at a time."""
    models: list[Examined] = []
    lists: list[Section] = []
    for label, run in runs.items():
        shown, features = encode_and_examine(label, run, split, flags)
        models.append(shown)
        if len(models) == 1:
            lists = list_sections(shown, split, features, k, flags.lists)
    return models, lists


def encode_and_examine(label: str, run: str, split: Split, flags: argparse.Namespace) -> tuple[Examined, SplitFeatures]:
    """Load a run, encode the split, and look at its ranking."""
    encoder = load(
        run,
        flags.backbone if run_config(Path(run)) else None,
        flags.device,
        precision=flags.precision,
        weights=flags.weights or "model",
        batch_size=flags.batch_size,
        num_workers=flags.num_workers,
        show_progress=True,
    )
    features = encode_split(encoder, split)
    return examine(label, Path(run), encoder, split, features), features


def facts_of_page(models: Sequence[Examined], split: Split) -> dict[str, str]:
    """The data, the programs, and how each run was trained; the size and the rates of one that stands alone."""
    counts = split.counts
    data = f"{split.dataset} {split.name}: {counts.num_ids:,} people, {counts.num_images:,} images, "
    return {
        "data": data + f"{counts.num_captions:,} captions",
        **{shown.label: run_summary(shown.config, shown.events) for shown in models},
        **{
            f"ignored lines of metrics.jsonl, {shown.label}": lines
            for shown in models
            if (lines := shown.ignored_lines)
        },
        **(cost_facts(models[0]) if len(models) == 1 else {}),
        "report made with": f"cskt {__version__}, torch {torch.__version__}, {platform.system()} {platform.machine()}",
    }


def cost_facts(shown: Examined) -> dict[str, str]:
    """What a model weighs and how fast it encodes, which several are compared by in a table."""
    facts = shown.result.facts
    weight = f"{facts.total_parameters:,} parameters, checkpoint {size(facts.checkpoint_bytes)}"
    if facts.images_per_second is None:
        return {"size": weight}
    rates = f"{rate(facts.images_per_second)} images/s, {rate(facts.captions_per_second)} captions/s"
    return {"size": weight, "encodes": f"{rates} on {facts.device} in {facts.precision}"}


def write_pictures(page: Path, sections: Sequence[Section]) -> Path:
    """Every chart and every ranked list as PNG, in a folder beside the page; returns the folder."""
    folder = page.with_name(f"{page.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    charts = [chart for section in sections for chart in section.charts]
    lists = [
        (f"{section.heading.split()[0].lower()}-{number}", answer)
        for section in sections
        for number, answer in enumerate(section.answers, start=1)
    ]
    with bar("pictures", len(charts) + len(lists)) as advance:
        for chart in charts:
            (folder / f"{chart.name}.png").write_bytes(png(chart.figure))
            advance()
        for name, answer in lists:
            answer_sheet(answer).save(folder / f"{name}.png")
            advance()
    return folder
