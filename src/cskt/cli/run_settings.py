"""Facts that a comparison shows beside rankings: settings that differ, and their own zero-shot figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskt.cli.parsing import shown
from cskt.cli.run_facts import is_run
from cskt.cli.stored_results import seed_folders
from cskt.config import RECORDED, RunConfig, flat_fields, to_dict, value_of
from cskt.embed.model_paths import run_config
from cskt.evaluation.results import EVALUATIONS, Result
from cskt.training.checkpoint import FREE_ON_RESUME
from cskt.training.run_folder import read_events

NO_SETTING = FREE_ON_RESUME - {"backbone.name", "loop.stop_after_epochs"} | {"seed"}
"""Config keys that say where, how fast and with which seed a run trains, not how."""

FOUND_IN_FILES = {f"backbone.{name}" for name in RECORDED}
"""Config keys that older runs left open where newer ones hold what the backbone's files state."""


@dataclass(frozen=True)
class Difference:
    """One setting in which the compared runs differ."""

    key: str
    """Key of the config: `optim.lr`."""
    values: Mapping[str, list[Any]]
    """Label of a method -> its values as plain data: one, or several where its seeds differ."""

    def text_of(self, label: str) -> str:
        """The value of a method; empty where its settings are not known."""
        return " / ".join(_text(value) for value in self.values.get(label, []))


def run_folders(run: str) -> list[Path]:
    """The run folders behind a user's word for a run, one for each seed; none for results that lie elsewhere."""
    path = Path(run)
    if path.is_file():
        path = path.parent.parent if path.parent.name == EVALUATIONS else path.parent
    return [folder for folder in seed_folders(path) if is_run(folder)]


def differing_settings(folders: Mapping[str, Sequence[Path]]) -> list[Difference]:
    """Settings in which runs that train something differ, in the order of the config.

    Args:
        folders: label of a method -> its run folders, one for each seed; none where they are not known.
    """
    configs = {label: [run_config(folder) for folder in of_label] for label, of_label in folders.items()}
    return differences(
        {label: [config for config in of_label if config is not None] for label, of_label in configs.items()}
    )


def differences(configs: Mapping[str, Sequence[RunConfig]]) -> list[Difference]:
    """The same, of configs by label; a method that trains nothing has no settings to compare."""
    trained = {
        label: [config for config in of_label if config.trainable != "none"] for label, of_label in configs.items()
    }
    trained = {label: of_label for label, of_label in trained.items() if of_label}
    found = []
    for key, _ in flat_fields():
        if key in NO_SETTING:
            continue
        values = {label: _distinct([_value(config, key) for config in of_label]) for label, of_label in trained.items()}
        if key in FOUND_IN_FILES:
            values = {label: of_label for label, of_label in values.items() if None not in of_label}
        if len(_distinct([value for of_label in values.values() for value in of_label])) > 1:
            found.append(Difference(key, values))
    return found


def zero_shot_r1(folders: Sequence[Path], results: Sequence[Result]) -> float | None:
    """R1 of CLIP without what a run trained, as the run recorded it on the split of its results; the mean of the seeds.

    Args:
        folders: run folders, one for each seed.
        results: of the same runs, all on one split.

    Returns:
        A fraction; none where a run has recorded none, or only on another split.
    """
    found = []
    for folder in folders:
        for event in read_events(folder):
            if event["event"] == "evaluation" and event.get("stage") == "zero-shot":
                if not results or _split_of(event) != _split_of_result(results[0]):
                    return None
                found.append(float(event["t2i"]["r1"]))
    return sum(found) / len(found) if found and len(found) == len(folders) else None


def warnings_of(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Doubts that a run recorded about itself at its start and end; see `cskt.training.doubts`."""
    return [str(line) for event in events if event["event"] in ("start", "end") for line in event.get("warnings") or []]


def _split_of(event: Mapping[str, Any]) -> tuple[Any, ...]:
    t2i = event["t2i"]
    return event.get("dataset"), event.get("split"), t2i.get("num_queries"), t2i.get("num_gallery")


def _split_of_result(result: Result) -> tuple[Any, ...]:
    t2i = result.metrics["t2i"]
    return result.dataset, result.split, t2i["num_queries"], t2i["num_gallery"]


def _value(config: RunConfig, key: str) -> Any:
    """A value as plain data; of a backbone the name without its folder."""
    value = value_of(config, key)
    if key == "backbone.name":
        return Path(value).name or value
    return value if value is None or isinstance(value, int | float | str) else to_dict(value)


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for position, value in enumerate(values) if value not in values[:position]]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_text(part)}" for name, part in value.items())
    return f"{value:g}" if isinstance(value, float) else shown(value)
