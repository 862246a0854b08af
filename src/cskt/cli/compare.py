"""`cskt compare`: methods on the same queries in one table, with intervals and corrected tests; and what other commands
with several runs share with it: settings that differ, zero-shot R1, distinct names, and the form of tables."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cskt.cli.parsing import Parser, command_line, existing_folder
from cskt.cli.run_results import check_up_to_date, is_run, seed_folders
from cskt.config import RECORDED, RunConfig, flat_values, to_dict
from cskt.embed.model_paths import run_config
from cskt.errors import CsktError
from cskt.evaluation.comparison import MethodResults, check_same_split, compare
from cskt.evaluation.results import EVALUATIONS, ZERO_SHOT, Result, find_results, load_result, split_flags
from cskt.report.comparison_tables import SettingDifference, comparison_text
from cskt.report.tables import FORMATS, SUFFIXES
from cskt.training.checkpoint import FREE_ON_RESUME
from cskt.training.events import read_events
from cskt.utils.console import write_rendered
from cskt.utils.files import write_atomically
from cskt.utils.paths import check_path

NOT_COMPARED = FREE_ON_RESUME - {"backbone.name", "loop.stop_after_epochs"} | {"seed"}
"""Config fields that do not define the method: places, speed and the seed."""
FOUND_IN_FILES = {f"backbone.{name}" for name in RECORDED}
"""Config fields that older runs left empty and newer ones fill from the backbone's files."""


def main(argv: Sequence[str]) -> int:
    """See `cskt compare --help`."""
    parser = Parser(
        prog="cskt compare",
        description="Compare methods on the same queries: figures with 95 % intervals, differences from a baseline with"
        " p-values corrected for their number, sizes and times.",
    )
    known = "run folder, folder of seed-1, seed-2, ..., folder of `cskt evaluate --output`, or one result file"
    parser.add_argument("runs", nargs="+", metavar="RUN", help=known)
    parser.add_argument("--split", default="test", help="train, val or test (default: %(default)s)")
    parser.add_argument("--dataset", help="which one, where the runs have results on several")
    parser.add_argument("--baseline", metavar="RUN", help="the one that others are measured against (default: first)")
    add_format_flags(parser)
    flags = parser.parse(argv)
    form = output_format(flags.format, flags.output)
    methods = distinct(on_one_split({run: methods_of(run, flags.split, flags.dataset) for run in flags.runs}))
    first = flags.baseline or flags.runs[0]
    baseline = next((number for number, (run, _) in enumerate(methods) if Path(run) == Path(first)), None)
    if baseline is None:
        known = ", ".join(dict.fromkeys(run for run, _ in methods))
        raise CsktError(f"--baseline {first} is none of the runs; give one of {known}")
    zero_shot = {
        method.label: r1
        for run, method in methods
        if not method.results[0].options and (r1 := zero_shot_r1(run_folders(run), method.results)) is not None
    }
    comparison = compare([method for _, method in methods], baseline, zero_shot)
    settings = differing_settings({method.label: configs_of(run_folders(run)) for run, method in methods})
    write_output(comparison_text(comparison, form, settings), form, flags.output)
    return 0


def methods_of(run: str, split: str, dataset: str | None = None) -> list[MethodResults]:
    """Return the results of a RUN argument on a split: one method for each data set and way of ranking."""
    path = Path(run)
    check_path(path)
    if path.is_file():
        result = load_result(path)
        return [MethodResults(_label(result), (result,))]
    folders = seed_folders(existing_folder(run))
    by_kind: dict[tuple[str, str], list[Result]] = {}
    for folder in folders:
        found = find_results(folder, split=split, dataset=dataset)
        check_up_to_date(folder, found)
        for result in found:
            by_kind.setdefault((result.split_sha256, result.options), []).append(result)
    for (_, options), results in by_kind.items():
        if len(results) < len(folders):
            place = f"{results[0].dataset} {split}" + (f" with {options}" if options else "")
            have = f"{len(results)} of {len(folders)} seeds have a result on {place}"
            make = command_line("evaluate", run, *split_flags(folders[0], split, results[0].dataset))
            raise CsktError(f"{run}: {have}; make the others: {make}")
    return [MethodResults(_label(results[0]), tuple(results)) for results in by_kind.values()]


def on_one_split(methods: dict[str, list[MethodResults]]) -> list[tuple[str, MethodResults]]:
    """Return the runs and methods on the one split that all runs share."""
    splits = [{one.results[0].split_sha256: one.results[0] for one in run_methods} for run_methods in methods.values()]
    shared = [digest for digest in splits[0] if all(digest in others for others in splits)]
    if not shared:
        for (run, here), (other_run, there) in itertools.combinations(zip(methods, splits, strict=True), 2):
            if here.keys().isdisjoint(there):
                check_same_split(run, next(iter(here.values())), other_run, next(iter(there.values())))
        raise CsktError(f"no split on which all of {', '.join(methods)} have results; evaluate all on the same one")
    if len(shared) > 1:
        names = sorted({splits[0][digest].dataset for digest in shared})
        remedy = f"--dataset {names[0]}" if len(names) > 1 else "name the result files: RUN/evaluations/....json"
        raise CsktError(f"the runs share results on {len(shared)} splits ({', '.join(names)}); choose one: {remedy}")
    every = [(run, method) for run, run_methods in methods.items() for method in run_methods]
    return [(run, method) for run, method in every if method.results[0].split_sha256 == shared[0]]


def distinct(methods: Sequence[tuple[str, MethodResults]]) -> list[tuple[str, MethodResults]]:
    """Add the name of the run's folder, or its whole path, to labels that are not unique."""
    runs = list(dict.fromkeys(run for run, _ in methods))
    names = dict(zip(runs, distinct_names([Path(run).name for run in runs], runs), strict=True))
    labels = [method.label for _, method in methods]
    longer = [f"{method.label} ({names[run]})" for run, method in methods]
    return [
        (run, dataclasses.replace(method, label=label))
        for (run, method), label in zip(methods, distinct_names(labels, longer), strict=True)
    ]


def _label(result: Result) -> str:
    """Return `cskt`, `cskt + query expansion 5`."""
    return result.label + (f" + {result.options.replace('-', ' ')}" if result.options else "")


def run_folders(run: str) -> list[Path]:
    """Return the run folders of a RUN argument, one for each seed; empty for results outside a run folder."""
    path = Path(run)
    if path.is_file():
        path = path.parent.parent if path.parent.name == EVALUATIONS else path.parent
    return [folder for folder in seed_folders(path) if is_run(folder)]


def configs_of(folders: Sequence[Path]) -> list[RunConfig]:
    """Return the configs of run folders."""
    return [config for folder in folders if (config := run_config(folder)) is not None]


def differing_settings(configs: Mapping[str, Sequence[RunConfig]]) -> list[SettingDifference]:
    """Return the settings in which runs that train something differ, in the order of the config.

    Args:
        configs: label of a method -> its configs, one for each seed; empty if unknown.
    """
    trained = {
        label: [_settings(config) for config in seeds if config.is_trainable] for label, seeds in configs.items()
    }
    trained = {label: seeds for label, seeds in trained.items() if seeds}
    found = []
    for key in dict.fromkeys(key for seeds in trained.values() for settings in seeds for key in settings):
        if key in NOT_COMPARED:
            continue
        values = {
            label: _distinct([_value(settings, key) for settings in seeds])
            for label, seeds in trained.items()
            if not all(_is_unused(settings, key) for settings in seeds)
        }
        if key in FOUND_IN_FILES:
            values = {label: known for label, known in values.items() if None not in known}
        if len(_distinct([value for known in values.values() for value in known])) > 1:
            found.append(SettingDifference(key, values))
    return found


def zero_shot_r1(folders: Sequence[Path], results: Sequence[Result]) -> float | None:
    """Return R1 of zero-shot CLIP as runs, one for each seed, recorded it on the split of their results: the mean.

    None if a run recorded none, or only on another split.
    """
    found = []
    for folder in folders:
        for event in read_events(folder):
            if event["event"] == "evaluation" and event.get("stage") == ZERO_SHOT:
                if not results or not _is_on_split_of(event, results[0]):
                    return None
                found.append(float(event["t2i"]["r1"]))
    return sum(found) / len(found) if found and len(found) == len(folders) else None


def distinct_names(names: Sequence[str], *longer: Sequence[str]) -> list[str]:
    """Replace names that are not unique by longer ones of the same things, list by list, until all are unique."""
    distinct = list(names)
    for others in longer:
        times = Counter(distinct)
        distinct = [name if times[name] == 1 else other for name, other in zip(distinct, others, strict=True)]
    return distinct


def add_format_flags(parser: Parser) -> None:
    """Add `--format` and `--output` of a table."""
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --output, else terminal")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write here instead of to the terminal")


def output_format(asked: str | None, path: Path | None) -> str:
    """Return the format of a table: the one that was asked for, else by the suffix of its file."""
    if asked or path is None:
        return asked or "terminal"
    if path.suffix.lower() not in SUFFIXES:
        raise CsktError(f"--output {path}: end it in {', '.join(SUFFIXES)}, or say the --format")
    return SUFFIXES[path.suffix.lower()]


def write_output(text: str, form: str, path: Path | None) -> None:
    """Write a table in one of `FORMATS` to a file, whole or not at all, or to stdout."""
    if path is not None:
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    elif form == "terminal":
        write_rendered(text)
    else:
        print(text, end="")


def _is_on_split_of(event: Mapping[str, Any], result: Result) -> bool:
    here, there = event["t2i"], result.metrics["t2i"]
    return (event.get("dataset"), event.get("split")) == (result.dataset, result.split) and all(
        here.get(name) == there[name] for name in ("num_queries", "num_gallery")
    )


def _value(values: Mapping[str, Any], key: str) -> Any:
    """Value of a key as plain data; of a backbone the name without its folder."""
    value = values.get(key)
    if key == "backbone.name":
        return Path(str(value)).name or value
    return value if value is None or isinstance(value, int | float | str) else to_dict(value)


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the values of all keys, and `parts.<name>: used`, as `hooks.<name>` is among them."""
    return flat_values(config) | {f"parts.{name}": "used" for name in config.parts}


def _is_unused(values: Mapping[str, Any], key: str) -> bool:
    """Return whether a key is a setting of a part, a loss or a hook that a config lacks or switches off."""
    section, _, rest = key.partition(".")
    if "." in rest:  # parts.tse.ratio
        return key not in values
    switches = {values.get(f"{section}.directions"), values.get(f"{section}.sides")}
    return "none" in switches and values.get(key) != "none"


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for position, value in enumerate(values) if value not in values[:position]]
