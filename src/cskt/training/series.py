"""Runs of a series: each is started, resumed or left as it is, depending on the contents of its folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from cskt.config import DataConfig, RunConfig, completed_like
from cskt.config.file_names import BEST, CONFIG
from cskt.data.mixing import read_training_data
from cskt.errors import CsktError
from cskt.model.io.cache import locate, sha256_of, weights_sha256
from cskt.training.checkpoint import config_differences
from cskt.training.context import data_digest, with_defaults
from cskt.training.data_size import read_fitted_data
from cskt.training.events import first_event, last_event, read_events
from cskt.training.initial_weights import initial_file
from cskt.training.loop import Resume, TrainResult, train
from cskt.training.run_folder import RunFolder


def seed_folder(parent: Path, seed: int) -> Path:
    """Return the folder of the run of a seed."""
    return parent / f"seed-{seed}"


def train_or_resume(config: RunConfig, folder: Path) -> TrainResult:
    """Train what is missing in a folder: everything, the rest of an interrupted run, or nothing."""
    if not (folder / CONFIG).is_file():
        return train(config, folder)
    check_same_config(config, folder)
    if (result := finished(folder)) is not None:
        return result
    return train(config, folder, resume=Resume.IF_POSSIBLE)


def check_same_config(config: RunConfig, folder: Path) -> None:
    """Raise CsktError if a folder holds a run of another config, or over another backbone or other data."""
    if not (folder / CONFIG).is_file():
        return
    saved = RunFolder(folder).config
    if config.adaptable:
        config, _ = read_fitted_data(config, refuse_overlaps=False)
    different = config_differences(saved, completed_like(with_defaults(config), saved))
    before, now = saved.loop.stop_after_epochs, config.loop.stop_after_epochs
    if before != now:  # free when a run is resumed, but here it would be another result
        different.append(f"loop.stop_after_epochs: {before} -> {now}")
    if different:
        raise CsktError(f"{folder}: holds a run with another config ({'; '.join(different)}); name another folder")
    start, name, root = first_event(read_events(folder), "start"), config.backbone.name, config.data.root
    if start.get("backbone_sha256") and start["backbone_sha256"] != _backbone_digest(name):
        raise CsktError(f"{folder}: holds a run over another backbone than {name}; name another folder")
    if "data_sha256" in start and start["data_sha256"] != _digest_of_data(config):
        raise CsktError(f"{folder}: holds a run on other training data than that in {root}; name another folder")
    if config.init_from is not None and "init_from_sha256" in start:
        path = initial_file(config.init_from)
        if path is not None and start["init_from_sha256"] != sha256_of(path):
            raise CsktError(
                f"{folder}: holds a run that started from other weights than those in {config.init_from}; name another"
                " folder"
            )


def finished(folder: Path) -> TrainResult | None:
    """Return the result of a run; None if it has not ended."""
    events = read_events(folder)
    end = last_event(events, "end")
    if not end or not (folder / BEST).is_file():
        return None
    return TrainResult(
        folder,
        end["best_r1"],
        end["best_epoch"],
        end["seconds"],
        num_epochs_done=last_event(events, "step").get("epoch", 0),
        stopped=end.get("stopped") or "",
        already_finished=True,
    )


@cache
def _backbone_digest(name: str) -> str:
    return weights_sha256(locate(name))


def _digest_of_data(config: RunConfig) -> str:
    return _training_digest(config.data, config.seed if config.data.noise_rate else 0)


@cache
def _training_digest(data: DataConfig, seed: int) -> str:
    return data_digest(read_training_data(data, seed, refuse_overlaps=False).train)
