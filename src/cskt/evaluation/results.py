"""Per-query results of one model on one split, stored as a JSON file for comparisons, studies and reports.

Whether two means differ by more than chance can only be tested query by query. The file is
`<folder>/evaluations/<dataset>_<split>_<first 8 digits of the split's digest>[_<options>].json`, so that a folder
contains one result for each split and way of ranking.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
from annotated_types import Ge, Le, Len, Lt
from numpy.typing import NDArray
from pydantic import GetPydanticSchema, with_config
from pydantic_core import core_schema

from cskt.config.file_names import CONFIG
from cskt.config.types import normalised
from cskt.embed.model_paths import run_config
from cskt.errors import CsktError
from cskt.utils.files import write_atomically
from cskt.utils.json_files import JSON, read_json
from cskt.utils.messages import command_text
from cskt.utils.paths import file_name, inside

FORMAT_VERSION = 1
EVALUATIONS = "evaluations"
"""Folder of the result files within a run."""
METRICS = ("r1", "r5", "r10", "mean_ap", "mean_inp")
"""Metrics of `Result.values`, by the names of `RetrievalMetrics`."""
CUTOFFS = {"r1": 1, "r5": 5, "r10": 10}
ZERO_SHOT, STEP_0, EPOCH = "zero-shot", "step-0", "epoch"
"""Stages of a training at which it evaluates: CLIP without the method, the model before its first step, an epoch."""
REFERENCE_MODELS = {ZERO_SHOT: "CLIP zero-shot", STEP_0: "the model before training"}
"""Stage before the first step -> the name of its model."""
ARRAYS = ("query_pids", "first_right_rank", "average_precision", "inverse_negative_penalty")

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Pids: TypeAlias = NDArray[np.int64] | NDArray[np.str_]
Fraction = Annotated[float, Ge(0), Le(1)]
NonNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(0), Le(10**15)]
Pid = Annotated[int, Ge(-(2**63)), Lt(2**63)]
Name = Annotated[str, Len(1, 4096)]
"""An identity that is a string; a path at the longest."""


@with_config(JSON)
@dataclass(frozen=True)
class Summary:
    """`RetrievalMetrics.summary()` in a file."""

    r1: Fraction
    r5: Fraction
    r10: Fraction
    mean_ap: Fraction
    mean_inp: Fraction
    num_queries: Count
    num_gallery: Count
    num_unmatched_queries: Count


@with_config(JSON)
@dataclass(frozen=True)
class _Directions:
    t2i: Summary
    i2t: Summary


@with_config(JSON)
@dataclass(frozen=True)
class ResultInfo:
    """Size, training and speed of a model; None if unknown."""

    trainable_parameters: Count | None = None
    total_parameters: Count | None = None
    checkpoint_bytes: Count | None = None
    """Size of the file that inference needs besides its backbone."""
    weights_sha256: str | None = None
    """Digest of that file; a result of other weights is out of date."""
    trained_on: str | None = None
    """Name of the training data set."""
    training_seconds: NonNegative | None = None
    training_peak_memory_bytes: Count | None = None
    images_per_second: NonNegative | None = None
    """Speed of this evaluation, decoding included."""
    captions_per_second: NonNegative | None = None
    """Speed of this evaluation, tokenising included."""
    device: str | None = None
    """Device of this evaluation."""
    precision: str | None = None
    """Precision of this evaluation."""


def _stored_as(form: Any, convert: Callable[[Any], Any]) -> GetPydanticSchema:
    """Return how a field is read from a file: as a value of `form`, which is then converted."""
    return GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(convert, handler(form)),
    )


@with_config(JSON)
@dataclass(frozen=True)
class Result:
    """Means of one model on one split in both directions, and each query of text to image."""

    dataset: str
    split: str
    split_sha256: str
    """`Split.sha256`; only results with the same one can be compared."""
    label: str
    """Name of the model in tables: that of its run."""
    metrics: Annotated[Mapping[str, Mapping[str, float]], _stored_as(_Directions, dataclasses.asdict)]
    """`t2i` and `i2t` -> `RetrievalMetrics.summary()`, fractions in [0, 1] and counts."""
    query_pids: Annotated[Pids, _stored_as(tuple[Pid | Name, ...], np.array)]
    """[Q] identity of each query, as the annotation file writes it: integers, or strings."""
    first_right_rank: Annotated[Integers, _stored_as(tuple[Count, ...], np.array)]
    """[Q] rank (from 1) of the first right image; 0 where the gallery has none."""
    average_precision: Annotated[Floats, _stored_as(tuple[Fraction, ...], np.array)]
    """[Q] in [0, 1]; 0 where the gallery has no right image."""
    inverse_negative_penalty: Annotated[Floats, _stored_as(tuple[Fraction, ...], np.array)]
    """[Q] in [0, 1]; 0 where the gallery has no right image."""
    seed: int | None = None
    """Seed of the training."""
    options: str = ""
    """Test-time options as part of a file name: `query-expansion-5`; empty for plain cosines."""
    note: str = ""
    """Conditions that a reader must know, joined by `; `: `selected on test`, `query expansion 5: ...`."""
    facts: ResultInfo = ResultInfo()

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ARRAYS}
        if len(set(lengths.values())) > 1 or not len(self.query_pids):
            raise CsktError(f"result '{self.label}': {lengths}; expected one value per query, and a query at least")
        for metric in METRICS:
            values, stated = self.values(metric), self.metrics["t2i"][metric]
            found = float(values.mean()) if len(values) else 0.0
            if not abs(found - stated) <= 1e-6:  # also if NaN
                raise CsktError(f"result '{self.label}': {metric} is {stated}, but its queries give {found}")

    @property
    def matched(self) -> NDArray[np.bool_]:
        """[Q] true for queries with a right image in the gallery."""
        return self.first_right_rank > 0

    @property
    def groups(self) -> Pids:
        """[Q'] identities of the matched queries, in the order of `values`."""
        return self.query_pids[self.matched]

    def values(self, metric: str) -> Floats:
        """Return the value of a metric for each matched query [Q'], in the order of the split."""
        if metric in CUTOFFS:
            return (self.first_right_rank[self.matched] <= CUTOFFS[metric]).astype(np.float64)
        if metric == "mean_ap":
            return self.average_precision[self.matched]
        if metric == "mean_inp":
            return self.inverse_negative_penalty[self.matched]
        raise CsktError(f"unknown metric '{metric}'; there are {', '.join(METRICS)}")


def result_path(folder: Path, dataset: str, split: str, split_sha256: str, options: str = "") -> Path:
    """Return the file of a folder's result on a split."""
    parts = [dataset, split, split_sha256[:8], *([options] if options else [])]
    return folder / EVALUATIONS / f"{file_name('_'.join(parts))}.json"


def save_result(folder: Path, result: Result) -> Path:
    """Write a result into a folder, over an older one of the same split and options; return the file."""
    content: dict[str, Any] = {"version": FORMAT_VERSION}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        content[field.name] = value.tolist() if field.name in ARRAYS else value
    content["metrics"] = {direction: dict(summary) for direction, summary in result.metrics.items()}
    content["facts"] = dataclasses.asdict(result.facts)
    path = result_path(folder, result.dataset, result.split, result.split_sha256, result.options)
    text = json.dumps(content)
    inside(folder, EVALUATIONS, path.name)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    return path


def load_result(path: Path) -> Result:
    """Read a file that `save_result` wrote."""
    remedy = command_text("evaluate", *_model_words(path.parent.parent))
    return read_json(path, Result, remedy=f"make it again: {remedy}", version=("version", FORMAT_VERSION))


def words_to_evaluate(folder: Path, split: str, dataset: str | None) -> list[str]:
    """Return the words of the command that stores a result in a folder, a run or one of `cskt evaluate --output`.

    `MODEL` stands for the model of a folder that is no run, `DIR` for data that the model was not trained on.
    """
    model, *output = _model_words(folder)
    return ["evaluate", model, *split_flags(folder, split, dataset), *output]


def split_flags(folder: Path, split: str, dataset: str | None) -> list[str]:
    """Return the flags of `cskt evaluate` that name a split; see `words_to_evaluate`."""
    flags = ["--split", split]
    if dataset is None:
        return flags
    own = run_config(folder) if folder.is_dir() else None
    is_own = own is not None and own.data.dataset == normalised(dataset)
    return [*flags, "--dataset", dataset, *(() if is_own else ("--root", "DIR"))]


def _model_words(folder: Path) -> list[str]:
    return [str(folder)] if (folder / CONFIG).is_file() else ["MODEL", "--output", str(folder)]


def find_results(folder: Path, *, split: str = "test", dataset: str | None = None) -> list[Result]:
    """Return the results of a run, or of a folder of `cskt evaluate --output`, on a split, in the order of files."""
    results = [load_result(path) for path in sorted((folder / EVALUATIONS).glob("*.json"))]
    if not results:
        remedy = command_text(*words_to_evaluate(folder, split, dataset))
        raise CsktError(f"{folder}: holds no per-query results; make them: {remedy}")
    named = None if dataset is None else normalised(dataset)
    found = [result for result in results if result.split == split and named in (None, result.dataset)]
    if not found:
        held = sorted({f"{result.dataset} {result.split}" for result in results})
        asked = f"{dataset or 'any data set'} {split}"
        remedy = command_text(*words_to_evaluate(folder, split, dataset))
        raise CsktError(f"{folder}: holds per-query results on {', '.join(held)}, none on {asked}; make them: {remedy}")
    return found
