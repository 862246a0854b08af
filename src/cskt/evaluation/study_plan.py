"""Studies: recipes x data sets x seeds, read from a YAML file and expanded into runs.

    title: ...
    baseline: CSKT               the arm that the others are compared with
    seeds: [1, 2, 3]
    datasets:                    training data; roots are relative to the folder given on the command line
      - {name: dolls, dataset: cuhk-pedes, root: .}
    test_on: own                 own: the test split of the data set trained on | all: of every data set
    common: {...}                config keys of every arm, at either size
    small: {...}                 config keys of every arm at the small size
    last_epoch: false            true: tables of the last epoch too, beside those of the best one
    arms:
      - {label: CSKT, recipe: cskt}
      - {label: depth 1, recipe: cskt, set: {prompts.depth: 1}, small: {optim.lr: 1.0e-3}, size: both}

The size `small` is for a small backbone on two cores, `full` for the recipes as they are.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Len
from pydantic import model_validator

from cskt.config import RunConfig, load_config, read_yaml, validate
from cskt.config.types import STRICT, NonNegative
from cskt.errors import CsktError
from cskt.utils.checked import checked_dataclass
from cskt.utils.messages import nearest

STUDIES = Path(str(resources.files("cskt"))) / "studies"

Size = Literal["small", "full"]

FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w .@-]*")
OWN_KEYS = {"seed": "--seeds", "data.dataset": "--datasets", "data.root": "--root", "name": "arms their labels"}
"""Config keys that a study sets itself -> where they come from."""


@checked_dataclass(STRICT)
class StudyData:
    """One data set of a study."""

    name: str
    """Name in tables; part of the folders' names."""
    dataset: str
    """cuhk-pedes, icfg-pedes, rstpreid or jsonl."""
    root: str = "."
    """Folder that contains it, relative to the folder given on the command line."""


@checked_dataclass(STRICT)
class Arm:
    """One method of a study."""

    label: str
    recipe: str
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Dotted config keys laid over the recipe."""
    small: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The same, at the small size only."""
    size: Literal["small", "full", "both"] = "both"
    """Size at which the arm makes sense: twelve blocks of prompts need towers of twelve blocks."""

    @property
    def slug(self) -> str:
        """The label as part of a folder's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")


@checked_dataclass(STRICT)
class Study:
    """A study; the module's docstring describes its file."""

    title: str
    baseline: str
    arms: Annotated[tuple[Arm, ...], Len(min_length=1)]
    datasets: Annotated[tuple[StudyData, ...], Len(min_length=1)]
    seeds: Annotated[tuple[NonNegative, ...], Len(min_length=1)] = (1, 2, 3)
    test_on: Literal["own", "all"] = "own"
    common: dict[str, Any] = dataclasses.field(default_factory=dict)
    small: dict[str, Any] = dataclasses.field(default_factory=dict)
    last_epoch: bool = False

    def tested_on(self, data: StudyData) -> list[str]:
        """Return the names of the data sets that a run trained on `data` is tested on."""
        return [one.name for one in self.datasets] if self.test_on == "all" else [data.name]

    @model_validator(mode="after")
    def _check(self) -> Study:
        names = {"datasets": [data.name for data in self.datasets], "seeds": [str(seed) for seed in self.seeds]}
        for size in get_args(Size):
            names[f"arms at the size {size}"] = [arm.slug for arm in self.arms if arm.size in (size, "both")]
        for kind, found in names.items():
            for name, times in Counter(found).items():
                if not FOLDER_NAME.fullmatch(name):  # also the empty slug of a label without letters
                    raise CsktError(f"{kind}: '{name}' is no name for a folder; use letters and digits")
                if times > 1:
                    raise CsktError(f"{kind}: '{name}' is given twice")
        if self.baseline not in [arm.label for arm in self.arms]:
            raise CsktError(f"baseline: no arm is called '{self.baseline}'")
        return self


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training of a study."""

    arm: Arm
    data: StudyData
    seed: int
    config: RunConfig
    folder: Path
    tested_on: Sequence[str]
    """Names of data sets."""


def study_names() -> list[str]:
    """Return the names of the studies that ship with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load_study(name_or_path: str) -> Study:
    """Load a study that ships with the package, by name, or a YAML file."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in study_names():
            raise CsktError(f"unknown study '{name_or_path}': {nearest(name_or_path, study_names())}")
        path = STUDIES / f"{name_or_path}.yaml"
    content = read_yaml(path)
    for key, part in (("arms", Arm), ("datasets", StudyData)):  # one by one, for errors that name the item
        items = content.get(key)
        if isinstance(items, list):
            content[key] = [_part(part, item, f"{path}: {key}[{n}]") for n, item in enumerate(items, start=1)]
    return validate(Study, content, str(path))


def _part(part: type, item: Any, origin: str) -> Any:
    if not isinstance(item, Mapping):
        raise CsktError(f"{origin}: expected 'key: value' pairs, found {item!r}")
    return validate(part, item, origin)


def plan(
    study: Study,
    output: Path,
    root: Path,
    *,
    size: Size = "small",
    overrides: Mapping[str, Any] | None = None,
) -> list[PlannedRun]:
    """Return every run of a study, seed by seed, so that an early table contains all arms.

    An arm that trains nothing has one run, with the first seed: the others would be the same. The runs are in
    <output>/<data set>/<arm>/seed-<n>, their data in folders relative to `root`. `overrides` are config keys laid over
    everything (device, precision, ...); a setting of a part or hook, such as parts.lora.rank, is for the arms that have
    the part or hook, unless none has.
    """
    if own := OWN_KEYS.keys() & (overrides or {}).keys():
        raise CsktError(f"{min(own)} is for the study to set; give {OWN_KEYS[min(own)]}")
    runs = []
    arms = [arm for arm in study.arms if arm.size in (size, "both")]
    changes = _overrides_by_arm({arm.label: _config(study, arm, size) for arm in arms}, overrides) if overrides else {}
    for round_number, seed in enumerate(study.seeds):
        for data in study.datasets:
            for arm in arms:
                own_keys = {"data.dataset": data.dataset, "data.root": str(root / data.root), "seed": seed}
                config = _config(study, arm, size, changes.get(arm.label, {}) | own_keys)
                if not config.is_trainable and round_number > 0:
                    continue
                folder = output / data.name / arm.slug / f"seed-{seed}"
                runs.append(PlannedRun(arm, data, seed, config, folder, study.tested_on(data)))
    return runs


def _config(study: Study, arm: Arm, size: Size, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Return the config of an arm: arms differ in what the study says alone, so nothing is fitted to the data."""
    keys = {"loop.keep_last_epoch": True} if study.last_epoch else {}
    keys |= study.common | (study.small | arm.set | arm.small if size == "small" else arm.set)
    try:
        return load_config(arm.recipe, {**keys, "name": arm.label, **(changes or {})}, fit=False)
    except CsktError as error:
        raise CsktError(f"study '{study.title}', arm '{arm.label}': {error}") from None


def _overrides_by_arm(configs: Mapping[str, RunConfig], overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the overrides of each arm: a setting of a part or hook would add it to the arms that have none."""

    def is_for(config: RunConfig, key: str) -> bool:
        section, _, rest = key.partition(".")
        if section not in ("parts", "hooks"):
            return True
        name = rest.partition(".")[0]
        return name in getattr(config, section) or not any(name in getattr(one, section) for one in configs.values())

    return {
        label: {key: value for key, value in overrides.items() if is_for(config, key)}
        for label, config in configs.items()
    }


def select(
    study: Study, *, seeds: Sequence[int] = (), datasets: Sequence[StudyData] = (), arms: Sequence[str] = ()
) -> Study:
    """Return the study over other seeds or data sets, or with some of its arms, where they are given.

    Args:
        arms: beginnings of labels, in any case. The baseline is always among the arms.

    Raises:
        CsktError: no label begins with one of `arms`.
    """
    labels = [arm.label for arm in study.arms]
    for start in arms:
        if not any(label.lower().startswith(start.lower()) for label in labels):
            raise CsktError(f"no arm of the study begins with '{start}'; it has {', '.join(labels)}")
    starts = tuple(start.lower() for start in arms or [""])
    chosen = [arm for arm in study.arms if arm.label == study.baseline or arm.label.lower().startswith(starts)]
    return dataclasses.replace(
        study, arms=tuple(chosen), seeds=tuple(seeds) or study.seeds, datasets=tuple(datasets) or study.datasets
    )
