"""Losses of single training pairs, by which a hook can separate clean pairs from wrong ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from cskt.data.prefetcher import Prefetcher
from cskt.device import arithmetic, to_device
from cskt.errors import CsktError
from cskt.losses import Loss
from cskt.training.context import TrainingContext
from cskt.training.distributed import SINGLE_PROCESS, Rows
from cskt.training.step import concatenated, encode_piece, generator_of, image_ids_per_pair, pieces_of
from cskt.utils.arguments import listed
from cskt.utils.messages import described, nearest

STREAM = 1
"""Keeps the order of pairs here apart from that of the epoch, which is drawn from the seed and the epoch alone."""


@torch.no_grad()
def pair_losses(context: TrainingContext, names: str | Sequence[str]) -> dict[str, Tensor]:
    """Compute losses of every training pair with the current weights, in evaluation mode and without gradients.

    A loss depends on the other pairs of the batch. As in the released code of RDE (Qin et al., CVPR 2024), batches of
    `data.batch_size` are drawn anew in each epoch and augmented as in training; all are functions of the seed and the
    epoch. Every pair occurs once, whatever the sampler and the weights of a mix. Weights of pairs have no effect.

    Args:
        context: of the training; this process computes all pairs.
        names: of losses in `loss.weights`, or one of them.

    Returns:
        [num_pairs] float32 on the host for each name, in the order of `train_split.captions`.

    Raises:
        CsktError: a loss is not in `loss.weights`, or it has no value for each pair.
    """
    config, device, objective = context.config, context.device, context.state.objective
    chosen = listed(names, str, "names")
    if unknown := next((name for name in chosen if name not in objective.losses), None):
        hint = nearest(unknown, list(objective.losses))
        raise CsktError(f"pair_losses: '{unknown}' is not in loss.weights ({hint}); a weight of 0 there suffices")
    alone = dataclasses.replace(context, processes=SINGLE_PROCESS)
    epoch, num_pairs = context.state.progress.epoch, context.loader.num_pairs
    found = {name: torch.empty(num_pairs, device=device) for name in chosen}  # read once: the host would wait
    with (
        evaluation_mode(context.state.model, objective),
        Prefetcher(context.loader.every_pair(epoch, STREAM), device) as batches,
    ):
        for step, batch in enumerate(batches):
            rows = Rows.of(batch, SINGLE_PROCESS)
            assert batch.pair_ids is not None, "batches are of the loader"
            pids, image_ids, pair_ids = (
                to_device(ids, device) for ids in (batch.pids, image_ids_per_pair(batch), batch.pair_ids)
            )
            pieces = pieces_of(alone, batch, rows, generator_of(config.seed, "pair losses", epoch, step))
            pieces = [dataclasses.replace(piece, dropout=None, targets_dropout=None) for piece in pieces]
            if not config.mlm.masked_for_all:  # masked words have no loss for each pair
                pieces = [dataclasses.replace(piece, masked=None) for piece in pieces]
            outputs = concatenated([encode_piece(alone, piece) for piece in pieces])
            with arithmetic(device, config.precision):
                inputs = objective.inputs(
                    outputs, pids, image_ids, rows, context.state.model.heads,
                    step=context.state.progress.total_steps, steps_per_epoch=context.loader.steps_per_epoch,
                )  # fmt: skip
                for name in chosen:
                    losses = cast(Loss, objective.losses[name]).per_pair(inputs)
                    if not isinstance(losses, Tensor) or losses.shape != pids.shape:
                        raise CsktError(
                            f"loss '{name}': per_pair returned {described(losses)}; expected shape [{len(pids)}]"
                        )
                    found[name][pair_ids] = losses.float()
    return {name: losses.cpu() for name, losses in found.items()}


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Return a context in which modules are in evaluation mode; afterwards each has the mode that it had."""
    training = [module for one in modules for module in one.modules() if module.training]
    try:
        for one in modules:
            one.eval()
        yield
    finally:
        for module in training:
            module.training = True
