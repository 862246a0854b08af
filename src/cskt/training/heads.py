"""Training heads of a run (identity classifier, interaction encoder): kept beside the best weights, and read back.

`best.heads.safetensors` belongs to one `best.safetensors` and carries its SHA-256. It is written after it: if a run is
killed between the two, the older heads no longer fit and are noticed, and `last.pt` holds the heads of that very epoch.
With a moving average the weights are the averaged ones; the heads are those that trained beside them, not averaged.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cskt.errors import CsktError
from cskt.model.io.cache import sha256_of
from cskt.model.io.files import read_heads, save_heads
from cskt.training.checkpoint import read_last
from cskt.training.run_folder import BEST, HEADS, LAST, PREVIOUS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunHeads:
    """The training heads of a run."""

    tensors: dict[str, Tensor]
    """Names of `Objective`."""
    data_sha256: str
    """Digest of the training pairs, whose identities are the rows of the classifier."""
    note: str
    """Origin of the heads, where that is not the best epoch; empty otherwise."""


def save_best_heads(folder: Path, heads: dict[str, Tensor], *, data_sha256: str, epoch: int) -> None:
    """Write the heads of the epoch whose weights the folder's best.safetensors holds; nothing if there are none.

    Raises:
        CsktError: the file cannot be written.
    """
    if heads:
        weights_sha256 = sha256_of(folder / BEST)
        facts = {"epoch": str(epoch)}
        save_heads(folder / HEADS, heads, weights_sha256=weights_sha256, data_sha256=data_sha256, facts=facts)


def read_run_heads(folder: Path) -> RunHeads | None:
    """The heads of a run's best epoch, or where these were not kept, of its last checkpoint; None if it has none.

    Raises:
        CsktError: a file is damaged.
    """
    path = folder / HEADS
    reason = f"it has no {HEADS} (made by an earlier version)"
    if path.is_file():
        try:
            kept = read_heads(path)
        except ValueError as error:
            raise CsktError(f"{error}; delete the file to use the last epoch's heads instead") from None
        if kept.weights_sha256 == sha256_of(folder / BEST):
            return RunHeads(kept.tensors, kept.data_sha256, "")
        reason = f"{HEADS} belongs to another {BEST}"
    if not any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        return None
    content, source = read_last(folder / LAST)
    if not content["objective"]:
        return None
    note = f"{folder}: {reason}, so the training heads are the last epoch's, from {source.name}"
    return RunHeads(content["objective"], content["data_sha256"], note)
