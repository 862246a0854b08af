"""`cskt report`: one page with the evidence behind the metrics of one or several models, and its pictures as PNG."""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from cskt import __version__
from cskt.cli import report_sections
from cskt.cli.compare import distinct_names
from cskt.cli.model_flags import add_dataset_flags, add_encoder_flags, load_model, num_hits
from cskt.cli.parsing import Parser, check_suffix, command_line
from cskt.cli.run_report import run_summary, warning_sections, warnings_of
from cskt.cli.run_results import seed_folders
from cskt.config import to_dict
from cskt.config.file_names import CONFIG, REPORT
from cskt.data.records import Split
from cskt.embed.model_paths import check_exists, run_config
from cskt.errors import CsktError, file_system_errors
from cskt.evaluation.evaluate import encode_split, split_of
from cskt.report.numbers import rate, size
from cskt.report.pages import Section, write_report
from cskt.report.pictured_results import answer_sheet
from cskt.report.style import LINES, png
from cskt.report.tables import result_table
from cskt.utils.console import bar, console

DEFAULT_HITS = 10
"""Default number of images of a ranked list."""
MAX_NAMES = 4
"""Maximum number of runs that a title names."""


def main(argv: Sequence[str]) -> int:
    """See `cskt report --help`."""
    parser = Parser(
        prog="cskt report",
        description="Write one HTML page on how runs rank a split, and its pictures as PNG into a folder beside it. "
        "Pictures, hardest queries and attributes are those of the run named first.",
    )
    known = "run folder (of seed-1, seed-2, ... the first), released folder, CLIP weights or clip-tiny"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=known)
    parser.add_argument("--output", type=Path, default=Path(REPORT), help="the page (default: %(default)s)")
    add_dataset_flags(parser)
    parser.add_argument("-k", type=int, help=f"images of a ranked list (default: {DEFAULT_HITS}, or the whole gallery)")
    parser.add_argument("--lists", type=int, default=3, help="best and worst lists, each (default: %(default)s)")
    add_encoder_flags(parser)
    flags = parser.parse(argv)
    check_flags(flags)

    labels, runs = named_runs(flags.runs)
    split = common_split(runs, flags.dataset, flags.root, flags.split or "test")
    k = num_hits(flags.k, DEFAULT_HITS, split)
    models: list[report_sections.ReportedModel] = []
    lists: list[Section] = []
    for label, run in zip(labels, runs, strict=True):  # one model is in memory at a time
        encoder = load_model(flags, run, among=runs)
        features = encode_split(encoder, split)
        models.append(report_sections.reported_model(label, Path(run), encoder, split, features))
        if len(models) == 1:
            lists = report_sections.list_sections(models[0], split, features, k, flags.lists)
    comparison = report_sections.compared(models)
    sections = [
        *warning_sections({model.label: warnings_of(model.events) for model in models}),
        *report_sections.comparison_sections(models, comparison),
        *report_sections.ranking_sections(models, split),
        *lists,
        *report_sections.attribute_sections(models[0], split),
        *report_sections.curves_section(models),
    ]
    names = ", ".join(labels) if len(labels) <= MAX_NAMES else f"{len(labels)} runs"
    title, rows = f"{names} on {split.dataset} {split.name}", report_sections.result_rows(models, comparison)
    write_report(
        flags.output,
        title=title,
        rows=rows,
        headline=rows[0] if len(rows) == 1 else None,
        sections=sections,
        facts=facts_of_page(models, split),
        configs={f"{model.label}: {CONFIG}": to_dict(model.config) for model in models if model.config},
        next_commands=[command_line("query", runs[0], split.captions[0], "--split", split.name)],
    )
    pictures = write_pictures(flags.output, sections)
    console().print(result_table(rows, title))
    print(f"report:   {flags.output}  (open it in a browser)\npictures: {pictures}")
    return 0


def check_flags(flags: argparse.Namespace) -> None:
    """Check what can be checked before anything is encoded."""
    if len(flags.runs) > len(LINES):
        raise CsktError(f"{len(flags.runs)} runs; a page shows up to {len(LINES)}, for more lines look alike")
    run, times = Counter(flags.runs).most_common(1)[0]
    if times > 1:
        raise CsktError(f"{run} is named {times} times; once is enough")
    if flags.lists < 0:
        raise CsktError(f"--lists {flags.lists}: give 0 or more")
    check_suffix("--output", flags.output, [".html", ".htm"])
    if flags.output.is_dir():
        raise CsktError(f"--output {flags.output}: name a file that ends in .html")


def named_runs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return distinct labels and the runs that they belong to; a folder of several seeds stands for its first.

    A label is the name in the run's config, that of its folder if this is not unique, else its whole path.
    """
    runs = [str(seed_folders(Path(word))[0]) for word in words]
    configs = [run_config(Path(run)) for run in runs]
    own = [config.name if config else word for word, config in zip(words, configs, strict=True)]
    labels = distinct_names(own, [Path(word).name for word in words], words)
    return [
        label if Path(run) == Path(word) else f"{label} ({Path(run).name})"
        for label, word, run in zip(labels, words, runs, strict=True)
    ], runs


def common_split(runs: Sequence[str], dataset: str | None, root: str | None, name: str) -> Split:
    """Return the split that all runs are shown on; plain CLIP, which has no data of its own, takes that of others."""
    for run in runs:
        check_exists(run)
    first, *others = [run for run in runs if run_config(Path(run))] or runs[:1]
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


def facts_of_page(models: Sequence[report_sections.ReportedModel], split: Split) -> dict[str, str]:
    """Return the data, the training of each run, the versions, and for a single model its size and speed."""
    counts = split.counts
    data = f"{split.dataset} {split.name}: {counts.num_ids:,} people, {counts.num_images:,} images"
    facts = {"data": f"{data}, {counts.num_captions:,} captions"}
    facts |= {model.label: run_summary(model.config, model.events) for model in models}
    ignored = "ignored lines of metrics.jsonl, "
    facts |= {ignored + model.label: model.ignored_lines for model in models if model.ignored_lines}
    if len(models) == 1:
        known = models[0].result.facts
        facts["size"] = f"{known.total_parameters:,} parameters, checkpoint {size(known.checkpoint_bytes)}"
        if known.images_per_second is not None:
            rates = f"{rate(known.images_per_second)} images/s, {rate(known.captions_per_second)} captions/s"
            facts["encodes"] = f"{rates} on {known.device} in {known.precision}"
    versions = f"cskt {__version__}, torch {torch.__version__}, {platform.system()} {platform.machine()}"
    return facts | {"report made with": versions}


def write_pictures(page: Path, sections: Sequence[Section]) -> Path:
    """Write every chart and every ranked list as PNG into a folder beside the page; return the folder."""
    folder = page.with_name(f"{page.stem}_files")
    num_pictures = sum(len(section.charts) + len(section.answers) for section in sections)
    with file_system_errors(folder), bar("pictures", num_pictures) as advance:
        folder.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for chart in section.charts:
                (folder / f"{chart.name}.png").write_bytes(png(chart.figure))
                advance()
            for number, answer in enumerate(section.answers, start=1):
                answer_sheet(answer).save(folder / f"{section.heading.split()[0].lower()}-{number}.png")
                advance()
    return folder
