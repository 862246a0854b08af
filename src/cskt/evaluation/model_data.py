"""Split that a model is evaluated on: named by the caller, or of the data set that its run was trained on."""

from __future__ import annotations

from pathlib import Path

from cskt.config import RunConfig
from cskt.data.datasets import dataset_key
from cskt.data.overlaps import read_separate_splits
from cskt.data.records import Split, find_split, select_splits
from cskt.embed.model_paths import check_exists, run_config
from cskt.errors import CsktError, file_system_errors


def split_of(model: str, dataset: str | None, root: str | None, split: str, *, refuse_overlaps: bool = True) -> Split:
    """Read a split; the data set and its root are those of the model's run where they are not given.

    If the run's own data set has no val split (ICFG-PEDES), `val` are the identities that the run held out to select
    its best epoch, and `train` the others. For `refuse_overlaps` see `read_separate_splits`.
    """
    check_exists(model)
    own = run_config(Path(model))
    if own and not root:
        with file_system_errors(own.data.root):
            has_moved = not Path(own.data.root).is_dir()
        if has_moved:
            missing = f"{own.data.root}: no such folder from here, though {model} had its data there"
            raise CsktError(f"{missing}; say where: --root DIR")
    name, place = dataset or (own.data.dataset if own else None), root or (own.data.root if own else None)
    if not name or not place:
        raise CsktError(f"{model} is no run that names its data; say which to use: --dataset rstpreid --root DIR")
    splits = read_separate_splits(name, Path(place), refuse=refuse_overlaps)
    if own and own.data.select_on == "val" and "val" not in splits and is_own_dataset(own, dataset):
        train, val = select_splits(splits, own.data)
        splits = splits | {"train": train, "val": val}
    return find_split(splits, split)


def is_own_dataset(own: RunConfig, dataset: str | None) -> bool:
    """Return whether a data set, named by the user or not, is the one of a run's training, wherever it is now."""
    # Two data sets named `jsonl` may be different ones.
    return dataset is None or dataset_key(dataset) == dataset_key(own.data.dataset) != "jsonl"
