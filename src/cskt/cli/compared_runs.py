"""Parts that commands with several runs share: settings that differ, zero-shot R1, names, and the form of tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cskt.cli.parsing import Parser
from cskt.cli.run_results import is_run, seed_folders
from cskt.config import RECORDED, RunConfig, flat_fields, to_dict, value_of
from cskt.embed.model_paths import run_config
from cskt.errors import CsktError
from cskt.evaluation.results import EVALUATIONS, Result
from cskt.report.comparison_tables import SettingDifference
from cskt.report.tables import FORMATS, SUFFIXES
from cskt.training.checkpoint import FREE_ON_RESUME
from cskt.training.events import read_events
from cskt.utils.console import write_rendered
from cskt.utils.files import write_atomically

NOT_COMPARED = FREE_ON_RESUME - {"backbone.name", "loop.stop_after_epochs"} | {"seed"}
"""Config fields that change where, how fast and with which seed a run trains, not how."""
FOUND_IN_FILES = {f"backbone.{name}" for name in RECORDED}
"""Config fields that older runs left empty and newer ones fill from the backbone's files."""


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
    trained = {label: [one for one in of_label if one.trainable != "none"] for label, of_label in configs.items()}
    trained = {label: of_label for label, of_label in trained.items() if of_label}
    found = []
    for key, _ in flat_fields():
        if key in NOT_COMPARED:
            continue
        values = {label: _distinct([_value(config, key) for config in of_label]) for label, of_label in trained.items()}
        if key in FOUND_IN_FILES:
            values = {label: of_label for label, of_label in values.items() if None not in of_label}
        if len(_distinct([value for of_label in values.values() for value in of_label])) > 1:
            found.append(SettingDifference(key, values))
    return found


def zero_shot_r1(folders: Sequence[Path], results: Sequence[Result]) -> float | None:
    """Return R1 of zero-shot CLIP as runs, one for each seed, recorded it on the split of their results: the mean.

    None if a run recorded none, or only on another split.
    """
    found = []
    for folder in folders:
        for event in read_events(folder):
            if event["event"] == "evaluation" and event.get("stage") == "zero-shot":
                if not results or not _is_on_split_of(event, results[0]):
                    return None
                found.append(float(event["t2i"]["r1"]))
    return sum(found) / len(found) if found and len(found) == len(folders) else None


def warnings_of(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the warnings that a run recorded about itself at its start and end; see `cskt.training.checks`."""
    return [str(line) for event in events if event["event"] in ("start", "end") for line in event.get("warnings") or []]


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


def _value(config: RunConfig, key: str) -> Any:
    """Value of a field as plain data; of a backbone the name without its folder."""
    value = value_of(config, key)
    if key == "backbone.name":
        return Path(value).name or value
    return value if value is None or isinstance(value, int | float | str) else to_dict(value)


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for position, value in enumerate(values) if value not in values[:position]]
