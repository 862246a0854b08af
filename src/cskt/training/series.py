"""Several runs in one go: each is started, gone on with or left alone, as its folder calls for."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from cskt.config import DataConfig, RunConfig, completed_like, to_dict
from cskt.data.datasets import read_dataset
from cskt.data.records import select_splits
from cskt.errors import CsktError
from cskt.model.io.cache import locate, sha256_of, weights_sha256
from cskt.training.checkpoint import config_differences
from cskt.training.init_from import initial_file
from cskt.training.loop import TrainResult, train
from cskt.training.run_folder import BEST, CONFIG, RunFolder, first_event, last_event, read_events
from cskt.training.setup import digest

logger = logging.getLogger(__name__)


def seed_folder(parent: Path, seed: int) -> Path:
    """Where a series keeps the run of a seed."""
    return parent / f"seed-{seed}"


def train_or_resume(config: RunConfig, folder: Path) -> TrainResult:
    """Train in a folder what is missing there: everything, the rest of an interrupted run, or nothing.

    Raises:
        CsktError: the folder holds a run of another config; see also `engine.train`.
    """
    if not (folder / CONFIG).is_file():
        return train(config, folder)
    check_same_config(config, folder)
    if (done := finished(folder)) is not None:
        return done
    return train(config, folder, resume=None)


def check_same_config(config: RunConfig, folder: Path) -> None:
    """See that a folder holds a run of this config over this backbone and this data, or none.

    Raises:
        CsktError: it holds another; one line that says in what it differs.
    """
    if not (folder / CONFIG).is_file():
        return
    saved = RunFolder(folder).config
    different = config_differences(to_dict(saved), to_dict(completed_like(config, saved)))
    before, now = saved.loop.stop_after_epochs, config.loop.stop_after_epochs
    if before != now:  # free where a run is resumed, but its end is not the one that is asked for here
        different.append(f"loop.stop_after_epochs: {before} -> {now}")
    if different:
        raise CsktError(f"{folder}: holds a run with another config ({'; '.join(different)}); name another folder")
    start, name, root = first_event(read_events(folder), "start"), config.backbone.name, config.data.root
    if start.get("backbone_sha256") and start["backbone_sha256"] != backbone_digest(name):
        raise CsktError(f"{folder}: holds a run over another backbone than {name}; name another folder")
    if "data_sha256" in start and start["data_sha256"] != training_digest(config.data):
        raise CsktError(f"{folder}: holds a run on other training data than that in {root}; name another folder")
    if config.init_from is not None and "init_from_sha256" in start:
        path = initial_file(config.init_from)
        if path is not None and start["init_from_sha256"] != sha256_of(path):
            raise CsktError(
                f"{folder}: holds a run that started from other weights than those in {config.init_from}; name another"
                " folder"
            )


@cache
def backbone_digest(name: str) -> str:
    """SHA-256 of a backbone's weight file, looked at once per process."""
    return weights_sha256(locate(name))


@cache
def training_digest(data: DataConfig) -> str:
    """Digest of the training pairs that a config asks for, read once per process."""
    train_split, _ = select_splits(read_dataset(data.dataset, Path(data.root)), data)
    return digest(train_split)


def finished(folder: Path) -> TrainResult | None:
    """What a run has come to; none if it has not come to its end."""
    end = last_event(read_events(folder), "end")
    if not end or not (folder / BEST).is_file():
        return None
    return TrainResult(folder, end["best_r1"], end["best_epoch"], end["seconds"])
