"""Results of a model: computed with the facts that its files state, stored in its run folder, and read again."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from cskt.config import RunConfig
from cskt.config.file_names import BEST, CONFIG, DAMAGED, LAST, LAST_EPOCH, PREVIOUS, RELEASED_WEIGHTS
from cskt.data.records import Split
from cskt.embed import Encoder, load
from cskt.embed.hub import local_path
from cskt.embed.model_paths import run_config
from cskt.errors import CsktError, file_system_errors
from cskt.evaluation.evaluate import ModelDescription, result_of
from cskt.evaluation.rerank import RankingOptions
from cskt.evaluation.results import Result, ResultInfo, load_result, result_path, save_result, words_to_evaluate
from cskt.model.io.cache import sha256_of
from cskt.training.events import first_event, last_event, read_events
from cskt.training.run_folder import claimed
from cskt.training.series import train_or_resume
from cskt.utils.messages import command_text
from cskt.utils.paths import check_path

logger = logging.getLogger(__name__)

LAST_EPOCH_RESULTS = "last-epoch"
"""Folder in a run folder with the results of its last epoch."""
LAST_EPOCH_NOTE = "last epoch"
SEED_FOLDERS = "seed-*"
"""Runs of one method with several seeds, in one folder."""


def seed_folders(folder: Path) -> list[Path]:
    """Return the runs of several seeds in a folder, in the order of the seeds; or the folder itself."""
    check_path(folder / CONFIG)
    seeds = [path for path in folder.glob(SEED_FOLDERS) if path.is_dir()]
    return sorted(seeds, key=lambda path: (len(path.name), path.name)) or [folder]


def is_run(model: Path) -> bool:
    """Return whether a folder is one of our runs, which stores its results in itself."""
    return (model / CONFIG).is_file()


def selection_note(model: Path) -> str:
    """Return `selected on <split>` for a run whose best epoch was not selected on val; an empty text otherwise."""
    config = run_config(model)
    return "" if config is None or config.data.select_on == "val" else f"selected on {config.data.select_on}"


def evaluate_run(
    encoder: Encoder,
    split: Split,
    model: Path,
    *,
    label: str | None = None,
    options: RankingOptions | None = None,
    output: Path | None = None,
) -> Result:
    """Evaluate the encoder of a run, a weight file or another model, and store the result with what its files state.

    `label`, by default the name of the run or file, is that of the model in tables. See `store_result` for `output`.
    """
    result = result_of(encoder, split, describe_model(model, label), options)
    store_result(result, model, output)
    return result


def describe_model(model: Path, label: str | None = None) -> ModelDescription:
    """Return label (by default the name of the run or file), seed, note and facts of a model from its files.

    Plain CLIP weights train nothing and need no other file. Nothing is known of the training of a released folder or a
    weight file.
    """
    config, path = run_config(model), weights_file(model)
    if config is None:
        return ModelDescription(label or model.name, facts=ResultInfo(trainable_parameters=0, checkpoint_bytes=0))
    events = read_events(model) if is_run(model) else []
    start, end = first_event(events, "start"), last_event(events, "end")
    facts = ResultInfo(
        trainable_parameters=start.get("trainable_parameters"),
        total_parameters=start.get("total_parameters"),
        checkpoint_bytes=path.stat().st_size if path else None,
        weights_sha256=own_weights_sha256(model),
        trained_on=config.data.dataset if config.is_trainable else None,
        training_seconds=end.get("seconds") if config.is_trainable else None,
        training_peak_memory_bytes=end.get("peak_memory_bytes") if config.is_trainable else None,
    )
    seed = config.seed if is_run(model) else None
    return ModelDescription(label or config.name, seed, selection_note(model), facts)


def weights_file(model: Path) -> Path | None:
    """Return the file with a model's own weights; None for CLIP by name, and before a run has any."""
    model = local_path(model)
    candidates = [*(model / name for name in (BEST, *RELEASED_WEIGHTS)), model]
    return next((path for path in candidates if path.is_file()), None)


def own_weights_sha256(model: Path) -> str | None:
    """Return the digest of a model's own weights; None for CLIP by name, and before a run has any."""
    path = weights_file(model)
    if path is None:
        return None
    file = path.stat()
    return _sha256_of(path.resolve(), file.st_size, file.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    """Digest of a file, read once while its size and time stay: a study asks for each run on every split."""
    return sha256_of(path)


def store_result(result: Result, model: Path, output: Path | None = None) -> None:
    """Write a result into `output`, or else into the folder of the run; another model stores none.

    A run folder that cannot be written only causes a warning.
    """
    if output is not None:
        logger.info("per-query results: %s", save_result(output, result))
    elif is_run(model):
        try:
            logger.info("per-query results: %s", save_result(model, result))
        except CsktError as error:
            logger.warning("no per-query results are stored: %s or store them elsewhere: --output FOLDER", error)
    elif result.seed is not None:  # of a run, whose folder is no longer one
        reason = "the run folder was deleted or moved; put it back and evaluate again"
        logger.warning("%s: no per-query results are stored, because %s", model, reason)


def stored_result(model: Path, split: Split, precision: str | None = None) -> Result | None:
    """Return the result that a run folder stores for a split; None if missing, or of other weights or precision."""
    path = result_path(model, split.dataset, split.name, split.sha256)
    if not is_run(model) or weights_file(model) is None or not path.is_file():
        return None
    result = load_result(path)
    return None if is_stale(result, model) or precision not in (None, result.facts.precision) else result


def check_up_to_date(folder: Path, results: Sequence[Result]) -> None:
    """Check that the results of a folder were computed with its present weights."""
    for result in results:
        if is_run(folder) and is_stale(result, folder):
            again = command_text(*words_to_evaluate(folder, result.split, result.dataset))
            raise CsktError(
                f"{folder}: its result on {result.dataset} {result.split} is of other weights than it holds now; make"
                f" it again: {again}"
            )


def is_stale(result: Result, model: Path) -> bool:
    weights = own_weights_sha256(model)
    return weights is not None and result.facts.weights_sha256 != weights


def results_on(
    model: Path,
    splits: Sequence[Split],
    load_encoder: Callable[[], Encoder],
    *,
    precision: str | None = None,
    output: Path | None = None,
) -> list[Result]:
    """Return the results of a model on splits: those that it stores, the others computed now and stored.

    Args:
        model, precision: see `stored_result`.
        splits: of any data sets.
        load_encoder: loads the model, once, if a result is missing.
        output: see `store_result`.
    """
    encoder, results = None, []
    for split in splits:
        result = stored_result(model, split, precision)
        if result is None:
            logger.info("%s on %s %s", model, split.dataset, split.name)
            encoder = encoder or load_encoder()
            result = evaluate_run(encoder, split, model, output=output)
        results.append(result)
    return results


def train_and_test(config: RunConfig, folder: Path, splits: Sequence[Split]) -> list[Result] | None:
    """Train what is missing of a run, test it on splits, and delete the checkpoints that only resuming needs.

    Of a run that keeps its last epoch, that is tested as well (`stored_last_epoch`). Returns None, and trains nothing,
    if another process works on the folder.
    """
    with claimed(folder) as is_mine:
        if not is_mine:
            logger.info("%s: another process works on it", folder)
            return None
        train_or_resume(config, folder)
        results = results_on(folder, splits, lambda: load(folder, device=config.device), output=folder)
        if config.keeps_last_epoch:
            evaluate_last_epoch(config, folder, splits)
        with file_system_errors(folder):
            for checkpoint in (LAST, PREVIOUS, DAMAGED):
                (folder / checkpoint).unlink(missing_ok=True)
    return results


def evaluate_last_epoch(config: RunConfig, folder: Path, splits: Sequence[Split]) -> None:
    """Test the last epoch of a run on the splits for which it stores no result."""
    missing = [split for split in splits if stored_last_epoch(folder, split) is None]
    if missing:
        encoder = load(folder / LAST_EPOCH, device=config.device)
        model = dataclasses.replace(describe_model(folder), note=LAST_EPOCH_NOTE)
        facts = dataclasses.replace(model.facts, weights_sha256=own_weights_sha256(folder / LAST_EPOCH))
        for split in missing:
            result = result_of(encoder, split, dataclasses.replace(model, facts=facts))
            logger.info("results of the last epoch: %s", save_result(folder / LAST_EPOCH_RESULTS, result))


def stored_last_epoch(folder: Path, split: Split) -> Result | None:
    """Return the result of the last epoch that a run stores for a split; None if missing, or of other weights."""
    path = result_path(folder / LAST_EPOCH_RESULTS, split.dataset, split.name, split.sha256)
    if not path.is_file() or not (folder / LAST_EPOCH).is_file():
        return None
    result = load_result(path)
    return result if result.facts.weights_sha256 == own_weights_sha256(folder / LAST_EPOCH) else None
