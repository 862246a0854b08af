"""Results in run folders: made, kept, found again, and told from those of older weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cskt.cli.run_facts import facts_of, is_run, selection_note, weights_file, weights_sha256
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.embed.model_paths import run_config
from cskt.errors import CsktError
from cskt.evaluation.evaluate import Evaluation, RankingOptions, as_result, result_of
from cskt.evaluation.results import Result, load_result, result_path, save_result

logger = logging.getLogger(__name__)

SEED_FOLDERS = "seed-*"
"""Runs of one method with several seeds, in one folder."""


def seed_folders(folder: Path) -> list[Path]:
    """The runs of several seeds in a folder, in the order of the seeds; or the folder itself."""
    seeds = [path for path in folder.glob(SEED_FOLDERS) if path.is_dir()]
    return sorted(seeds, key=lambda path: (len(path.name), path.name)) or [folder]


def evaluate_run(
    encoder: Encoder,
    split: Split,
    model: Path,
    *,
    label: str | None = None,
    options: RankingOptions | None = None,
) -> Result:
    """Evaluate a loaded model, with what its own files say of it.

    Args:
        encoder: what `load(model)` gave.
        split: of any data set.
        model: run folder, released folder, weight file or name of the model.
        label: what to call it; the run's name, or that of its file, if empty.
        options: how captions rank images.
    """
    return result_of(encoder, split, **_own_words(model, label), options=options)


def result_at_hand(evaluation: Evaluation, encoder: Encoder, split: Split, model: Path, label: str) -> Result:
    """What a model's evaluation came to, with what its own files say of it; nothing was timed.

    Args:
        evaluation: of `encoder` on `split`, by plain cosines.
        encoder, split, model, label: see `evaluate_run`.
    """
    return as_result(evaluation, encoder, split, **_own_words(model, label), options=RankingOptions())


def _own_words(model: Path, label: str | None) -> dict[str, Any]:
    """Name, seed, conditions and facts of a model, as arguments of `evaluate.result_of`."""
    config = run_config(model)
    return {
        "label": label or (config.name if config else model.name),
        "seed": config.seed if config and is_run(model) else None,  # a released folder does not tell its seed
        "note": selection_note(model),
        "facts": facts_of(model),
    }


def keep(result: Result, model: Path, output: Path | None = None) -> None:
    """Write a result into `output`, or else into the run folder it is of; another model keeps none of its own.

    Raises:
        CsktError: `output` cannot be written. A run folder that cannot is met with a warning, for the means are known.
    """
    if output is not None:
        logger.info("per-query results: %s", save_result(output, result))
    elif is_run(model):
        try:
            logger.info("per-query results: %s", save_result(model, result))
        except CsktError as error:
            logger.warning("no per-query results are kept: %s or keep them elsewhere: --output FOLDER", error)
    elif result.seed is not None:  # of a run, whose folder is no longer one
        logger.warning(
            "%s: no per-query results are kept, for the run folder was deleted or moved meanwhile; put it back and"
            " evaluate again",
            model,
        )


def stored_result(model: Path, split: Split, precision: str | None = None) -> Result | None:
    """What a run folder holds on a split; none if that is missing, of older weights, or of another precision.

    Raises:
        CsktError: the file is damaged.
    """
    path = result_path(model, split.dataset, split.name, split.sha256)
    if not is_run(model) or weights_file(model) is None or not path.is_file():
        return None
    result = load_result(path)
    return None if is_stale(result, model) or precision not in (None, result.facts.precision) else result


def check_up_to_date(folder: Path, results: list[Result]) -> None:
    """See that the results of a folder are those of the weights that lie there.

    Raises:
        CsktError: a run has trained on since.
    """
    for result in results:
        if is_run(folder) and is_stale(result, folder):
            raise CsktError(
                f"{folder}: its result on {result.dataset} {result.split} is of other weights than it holds now; make"
                f" it again: cskt evaluate {folder} --dataset {result.dataset} --split {result.split}"
            )


def is_stale(result: Result, model: Path) -> bool:
    """Whether a model's weights have changed since a result was made; where there are none, nothing has."""
    weights = weights_sha256(model)
    return weights is not None and result.facts.weights_sha256 != weights
