"""`cskt export --format released`: a run as a folder for the released CSKT and IRRA programs."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from cskt.config import ClipArchitecture, RunConfig
from cskt.data.datasets import dataset_key, folders, read_dataset
from cskt.data.records import select_splits
from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.export.folder import placed_when_done
from cskt.model.io.released.writer import check_expressible, inexpressible_keys, write_released
from cskt.training.initial_weights import read_run_heads
from cskt.training.objective import Objective
from cskt.training.run_folder import HEADS, LAST

logger = logging.getLogger(__name__)


def export_released(
    run: Path, config: RunConfig, encoder: Encoder, *, epoch: int, target: Path, root: str | None
) -> None:
    """Write the folder, with the training heads of the best epoch.

    Args:
        run: the run folder.
        config: its config, without LoRA.
        encoder: its model, on the CPU, low-rank updates folded into the weights.
        epoch: of its weights.
        target: folder to write; must be empty or absent.
        root: where the data set is; as the config says if empty.
    """
    model, architecture = encoder.model, encoder.model.architecture
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CsktError(f"{target}: holds something already; name another folder with --output")
    dataset = dataset_key(config.data.dataset)
    if dataset not in folders():
        raise CsktError(
            f"data.dataset {config.data.dataset}: the released programs read {', '.join(folders().values())} only"
        )
    try:
        check_expressible(config, architecture)
    except CsktError as error:
        raise CsktError(f"{run}: {error}") from None
    place = Path(root or config.data.root).absolute()
    heads = _heads(run, config, architecture, place)
    if lost := inexpressible_keys(config, architecture):
        logger.warning(
            "configs.yaml has no word for %s: settings of the training, which test.py does not use", ", ".join(lost)
        )
    with placed_when_done(target) as fresh:
        write_released(
            fresh,
            config,
            architecture,
            {name: value.detach() for name, value in model.named_parameters()},
            heads,
            placed_at=target.absolute(),
            root_dir=_parent_of_dataset(place, folders()[dataset]),
            dataset_name=folders()[dataset],
            epoch=epoch,
        )


def _heads(run: Path, config: RunConfig, architecture: ClipArchitecture, root: Path) -> dict[str, Tensor]:
    """Return the heads of all losses, the classifier with a row for each identity that the released program counts."""
    wanted = [name for name in ("id", "mlm") if name in config.loss.weights]
    if not wanted:
        return {}
    found = read_run_heads(run)
    if found is None:
        raise CsktError(
            f"{run}: has neither {HEADS} nor {LAST}, so the heads of the losses {', '.join(wanted)} are lost; the"
            " released program needs them, use --merge"
        )
    if found.note:
        logger.warning("%s", found.note)
    rows = len(found.tensors.get("classifier.weight", ()))
    with torch.device("meta"):
        objective = Objective(config.loss, config.mlm, architecture, rows)
    for name, value in objective.named_parameters():
        if name not in found.tensors or found.tensors[name].shape != value.shape:
            raise CsktError(
                f"{run}: the training heads have no '{name}' of shape {list(value.shape)}; they are corrupt"
            )
    heads = {name: found.tensors[name] for name, _ in objective.named_parameters()}
    return heads if "id" not in config.loss.weights else heads | _whole_classifier(heads, config, root, run)


def _whole_classifier(heads: dict[str, Tensor], config: RunConfig, root: Path, run: Path) -> dict[str, Tensor]:
    """Return the classifier with a row of zeros for each identity of the split that the run did not train on.

    The released program counts all people of the training split. A run may have held some out (`holdout_fraction` of
    ICFG-PEDES, which has no val split) or left some out (`train_fraction`).
    """
    data, rows = config.data, len(heads["classifier.weight"])
    has_no_val = dataset_key(data.dataset) == "icfg-pedes"
    if data.train_fraction == 1 and not (has_no_val and data.select_on == "val"):
        return {}
    if not root.is_dir():
        raise CsktError(
            f"{run}: its classifier covers a part of the training identities, and {root} is not here to say which;"
            " name the data set's folder: --root DIR"
        )
    splits = read_dataset(data.dataset, root)
    trained, _ = select_splits(splits, data)
    people = sorted(set(splits["train"].image_pids))
    own = sorted(set(trained.image_pids))
    if len(own) != rows:
        raise CsktError(
            f"{root}: has {len(own)} identities to train on, and the classifier of {run} has {rows}; give the data set"
            " that the run was trained on: --root DIR"
        )
    logger.info("%d identities that the run did not train on get a classifier row of zeros", len(people) - rows)
    index = torch.tensor([people.index(pid) for pid in own])
    whole = {}
    for name in ("classifier.weight", "classifier.bias"):
        whole[name] = torch.zeros(len(people), *heads[name].shape[1:])
        whole[name][index] = heads[name]
    return whole


def _parent_of_dataset(root: Path, name: str) -> Path:
    """Return the folder that contains the data set's folder; the user may have named either."""
    return root.parent if root.name == name and not (root / name).is_dir() else root
