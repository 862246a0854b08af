"""Studies: recipes x data sets x seeds, read from a YAML file and laid out as single runs.

    title: ...
    baseline: CSKT               the arm that the others are measured against
    seeds: [1, 2, 3]
    datasets:                    what to train on; roots are relative to the folder given on the command line
      - {name: dolls, dataset: cuhk-pedes, root: .}
    test_on: own                 own: the test split of the data set trained on | all: of every data set
    common: {...}                config keys of every arm, at either size
    small: {...}                 config keys of every arm at the small size
    arms:
      - {label: CSKT, recipe: cskt}
      - {label: depth 1, recipe: cskt, set: {prompts.depth: 1}, small: {optim.lr: 1.0e-3}, size: both}

The size `small` is made for a small backbone on two cores, the size `full` for the recipes as they are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Len
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from cskt.config import RunConfig, load_config, read_yaml, validate
from cskt.config.types import STRICT, NonNegative
from cskt.errors import CsktError
from cskt.utils.messages import nearest

STUDIES = Path(str(resources.files("cskt"))) / "studies"

Size = Literal["small", "full"]

FOLDER_NAME = re.compile(r"[A-Za-z0-9][\w .@-]*")
OWN_KEYS = {"seed": "--seeds", "data.dataset": "--datasets", "data.root": "--root", "name": "arms their labels"}
"""Config keys that a study sets itself -> where they come from."""


@dataclass(config=STRICT, frozen=True)
class StudyData:
    """One data set of a study."""

    name: str
    """What tables call it; part of the folders' names."""
    dataset: str
    """cuhk-pedes, icfg-pedes, rstpreid or jsonl."""
    root: str = "."
    """Folder that holds it, from the folder given on the command line."""


@dataclass(config=STRICT, frozen=True)
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
        """The label in the words of a folder's name."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")


@dataclass(config=STRICT, frozen=True)
class Study:
    """A whole study; see the module for its file."""

    title: str
    baseline: str
    arms: Annotated[tuple[Arm, ...], Len(min_length=1)]
    datasets: Annotated[tuple[StudyData, ...], Len(min_length=1)]
    seeds: Annotated[tuple[NonNegative, ...], Len(min_length=1)] = (1, 2, 3)
    test_on: Literal["own", "all"] = "own"
    common: dict[str, Any] = dataclasses.field(default_factory=dict)
    small: dict[str, Any] = dataclasses.field(default_factory=dict)

    def tested_on(self, data: StudyData) -> list[str]:
        """Names of the data sets that a run trained on `data` is tested on."""
        return [one.name for one in self.datasets] if self.test_on == "all" else [data.name]

    @model_validator(mode="after")
    def _check(self) -> Study:
        names = {
            "datasets": [data.name for data in self.datasets],
            "seeds": [str(seed) for seed in self.seeds],
            **{
                f"arms at the size {size}": [arm.slug for arm in self.arms if arm.size in (size, "both")]
                for size in get_args(Size)
            },
        }
        for kind, found in names.items():
            nameless = next((name for name in found if not FOLDER_NAME.fullmatch(name)), None)
            if nameless is not None:  # a label of signs alone leaves an empty name
                raise CsktError(f"{kind}: '{nameless}' is no name for a folder; use letters and digits")
            if doubled := next((name for name in found if found.count(name) > 1), None):
                raise CsktError(f"{kind}: '{doubled}' stands there twice")
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


def study_names() -> list[str]:
    """Names of the studies that ship with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def load_study(name_or_path: str) -> Study:
    """A study that ships with the package, by name, or a YAML file.

    Raises:
        CsktError: unknown name or key (with the nearest), or a wrong value; one line.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in study_names():
            raise CsktError(f"unknown study '{name_or_path}': {nearest(name_or_path, study_names())}")
        path = STUDIES / f"{name_or_path}.yaml"
    content = read_yaml(path)
    for key, part in (("arms", Arm), ("datasets", StudyData)):
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
    """Every run of a study, seed by seed, so that an early look at the table shows all arms.

    An arm that trains nothing is run with the first seed only: the others would give the same.

    Args:
        output: folder of the study; runs lie in <output>/<data set>/<arm>/seed-<n>.
        root: where the roots of the data sets start.
        size: which arms, and which of their config keys.
        overrides: dotted config keys laid over everything (device, precision, ...).

    Raises:
        CsktError: an arm's recipe or config keys are wrong (names the arm), or an override of what the study sets.
    """
    if own := OWN_KEYS.keys() & (overrides or {}).keys():
        raise CsktError(f"{min(own)} is for the study to set; give {OWN_KEYS[min(own)]}")
    runs = []
    for round_number, seed in enumerate(study.seeds):
        for data in study.datasets:
            for arm in study.arms:
                if arm.size not in (size, "both"):
                    continue
                place = {"data.dataset": data.dataset, "data.root": str(root / data.root), "seed": seed}
                config = _config(study, arm, _keys(study, arm, size) | dict(overrides or {}) | place)
                if config.trainable == "none" and round_number > 0:
                    continue
                runs.append(PlannedRun(arm, data, seed, config, output / data.name / arm.slug / f"seed-{seed}"))
    return runs


def _keys(study: Study, arm: Arm, size: Size) -> dict[str, Any]:
    """Config keys of an arm; the later count more: `common`, study's `small`, arm's `set`, arm's `small`."""
    of_size = study.small | arm.set | arm.small if size == "small" else arm.set
    return study.common | of_size | {"name": arm.label}


def _config(study: Study, arm: Arm, keys: Mapping[str, Any]) -> RunConfig:
    try:
        return load_config(arm.recipe, keys)
    except ValueError as error:
        raise CsktError(f"study '{study.title}', arm '{arm.label}': {error}") from None


def select(study: Study, *, seeds: Sequence[int] = (), datasets: Sequence[StudyData] = ()) -> Study:
    """The study over other seeds or other data sets, where they are given."""
    return dataclasses.replace(study, seeds=tuple(seeds) or study.seeds, datasets=tuple(datasets) or study.datasets)
