"""One training step: augment a batch, compute its losses and gradients, update the weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.config import AugmentConfig
from cskt.data.images import augment
from cskt.data.masking import MaskedCaptions, augment_captions, mask_tokens
from cskt.data.rewording import is_reworded, reworded
from cskt.device import arithmetic, to_device
from cskt.errors import CsktError, compiler_errors
from cskt.losses import weighted_total
from cskt.model.dropout import AttentionDropout, draw_seeds
from cskt.training.buffers import constant_buffers
from cskt.training.context import TrainingContext
from cskt.training.distributed import Rows
from cskt.training.objective import ModelInputs, ModelOutputs, encode
from cskt.types import Batch

CAPTION_BUCKET = 16
"""Compiled blocks receive captions whose length is a multiple of this: few lengths, each compiled once."""


def forward_backward(
    context: TrainingContext, batch: Batch, step: int, generator: torch.Generator, num_steps: int | None = None
) -> dict[str, Tensor]:
    """Compute the losses of a batch and add their gradients to `grad` of the parameters.

    `batch.images` are this process's share, on the training device. With `loop.micro_batch_size` the batch passes the
    model in pieces; the gradients are those of the whole batch. `step` counts from 0 within an epoch of `num_steps` (by
    default `steps_per_epoch` of the loader).

    Returns:
        The weighted total as `loss`, then the unweighted losses by name: scalars of the whole batch, on the device.
    """
    config, device, state = context.config, context.device, context.state
    rows = Rows.of(batch, context.processes)
    pids, image_ids = to_device(batch.pids, device), to_device(image_ids_per_pair(batch), device)
    window = _accumulation_window(context, step, num_steps)

    def backward(outputs: ModelOutputs) -> dict[str, Tensor]:
        with arithmetic(device, config.precision):
            losses = state.objective(
                outputs,
                pids,
                image_ids,
                rows,
                state.model.heads,
                pair_ids=batch.pair_ids,
                step=state.progress.total_steps,
                steps_per_epoch=context.loader.steps_per_epoch,
            )
        total = weighted_total(losses, config.loss.weights)
        if not total.requires_grad:
            raise CsktError(
                f"the losses ({', '.join(losses)}) depend on no trained parameter; do not detach the inputs"
            )
        torch.autograd.backward(state.scaler.scale(total / len(window)))
        whole = {name: loss.detach() for name, loss in losses.items()}
        for name, loss in whole.items():
            if state.objective.losses[name].by_row:
                whole[name] = context.processes.all_reduce(loss)
        return {"loss": weighted_total(whole, config.loss.weights)} | whole

    pieces = pieces_of(context, batch, rows, generator)
    state.model.train()
    with constant_buffers(state.model), compiler_errors():
        if len(pieces) == 1:
            return backward(encode_piece(context, pieces[0]))
        return backward_in_pieces(pieces, partial(encode_piece, context), backward)


def generator_of(*position: object) -> torch.Generator:
    """Return a generator that is a function of the seed and of a position, so that resuming needs no state."""
    digest = hashlib.sha256("/".join(map(str, position)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def pieces_of(context: TrainingContext, batch: Batch, rows: Rows, generator: torch.Generator) -> list[ModelInputs]:
    """Return the pieces in which this process's share of a batch passes the model, augmented."""
    num_pairs = context.config.loop.micro_batch_size or len(batch.pids)
    whole = augmented(context, batch, rows, generator)
    pieces = whole.split(num_pairs, cut=not context.state.model.needs_tokens)
    if context.config.loop.compile:
        pieces = [_in_bucket(piece, context.tokenizer.context_length) for piece in pieces]
    return pieces


def encode_piece(context: TrainingContext, piece: ModelInputs) -> ModelOutputs:
    """Compute the outputs of the model for a piece of a batch, in the precision of the run."""
    with arithmetic(context.device, context.config.precision):
        return encode(context.state.model, piece, masked_for_all=context.config.mlm.masked_for_all)


def augmented(context: TrainingContext, batch: Batch, rows: Rows, generator: torch.Generator) -> ModelInputs:
    """Augment this process's share of a batch, make the further views of its images, and mask words if a loss needs it.

    All random numbers are drawn for the whole batch, so they do not depend on the number of processes.
    """
    config, architecture, objective = context.config, context.state.model.architecture, context.state.objective
    probability, vocab_size = config.mlm.mask_probability, architecture.vocab_size

    def view(augmentation: AugmentConfig) -> Tensor:
        return augment(
            batch.images, augmentation, generator, mean=architecture.image_mean, std=architecture.image_std,
            batch_size=rows.num_images, first_row=batch.first_image,
        )  # fmt: skip

    images = view(config.augment)
    caption_ids = batch.caption_ids
    if is_reworded(config.augment) and batch.pair_ids is not None:
        split, pairs = context.train_split, batch.pair_ids.tolist()
        captions, translations = (
            [texts[pair] for pair in pairs] for texts in (split.captions, split.back_translations)
        )
        caption_ids = reworded(captions, translations, config.augment, context.tokenizer, generator)
    caption_ids = augment_captions(caption_ids, config.augment, generator, vocab_size)
    masked = None
    if context.state.model.needs_tokens:
        # Statistics over tokens then depend on the caption alone, not on the longest of its batch or process.
        caption_ids = _whole_context(context, caption_ids)
    if objective.interaction is not None:
        # The interaction encoder has no mask: in the released code, too, it sees the padding of the whole context.
        of_all = mask_tokens(_whole_context(context, caption_ids), probability, generator, vocab_size)
        masked = MaskedCaptions(*(part[rows.own] for part in of_all))
    elif config.mlm.without_loss:
        caption_ids = mask_tokens(caption_ids, probability, generator, vocab_size).ids
    views = {name: view(config.augment.view(name)) for name in objective.views}
    dropout = targets_dropout = None
    if rate := config.augment.text_attention_dropout:
        dropout = AttentionDropout(rate, draw_seeds(len(caption_ids), generator)[rows.own])
        if objective.needs_targets:
            targets_dropout = AttentionDropout(rate, draw_seeds(len(caption_ids), generator)[rows.own])
    return ModelInputs(images, caption_ids[rows.own], masked, views, dropout, targets_dropout)


def _whole_context(context: TrainingContext, caption_ids: Tensor) -> Tensor:
    return F.pad(caption_ids, (0, context.tokenizer.context_length - caption_ids.shape[1]))


def image_ids_per_pair(batch: Batch) -> Tensor:
    """Return the image of each pair, [B]."""
    return batch.image_ids.repeat_interleave(len(batch.pids) // len(batch.image_ids))


def _in_bucket(inputs: ModelInputs, context_length: int) -> ModelInputs:
    """Pad captions to a multiple of `CAPTION_BUCKET`, which changes no feature."""
    length = inputs.caption_ids.shape[1]
    bucket = min(-(-length // CAPTION_BUCKET) * CAPTION_BUCKET, context_length)
    return dataclasses.replace(inputs, caption_ids=F.pad(inputs.caption_ids, (0, bucket - length)))


def backward_in_pieces(
    pieces: Sequence[ModelInputs],
    encode_piece: Callable[[ModelInputs], ModelOutputs],
    backward: Callable[[ModelOutputs], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Add the gradients of a loss over a whole batch that does not fit into memory.

    A contrastive loss compares every pair with every other, so gradients summed over pieces would belong to another
    loss. The features of all pieces are computed first, without a graph; then the loss of the whole batch and its
    gradient with respect to the features; then each piece is computed again and receives its part of that gradient
    (Gao, Zhang, Han and Callan 2021, arXiv 2101.06983). So `encode_piece` must not be random. `backward` takes the
    outputs of the whole batch and calls backward on their loss; its result is returned. Soft targets, which have no
    gradient, are computed once.
    """
    with torch.no_grad():
        whole = concatenated([encode_piece(piece) for piece in pieces])
    leaves = {name: value.requires_grad_() for name, value in _with_gradient(whole).items()}
    result = backward(whole)
    first = 0
    for piece in pieces:
        outputs = encode_piece(dataclasses.replace(piece, targets_dropout=None))
        rows = slice(first, first + len(piece.caption_ids))
        found = _with_gradient(outputs)
        reached = [
            (found[name], leaf.grad[rows])
            for name, leaf in leaves.items()
            if leaf.grad is not None and found[name].requires_grad  # not of a frozen tower
        ]
        torch.autograd.backward([tensor for tensor, _ in reached], [gradient for _, gradient in reached])
        first = rows.stop
    return result


def _with_gradient(outputs: ModelOutputs) -> dict[str, Tensor]:
    """Return the tensors of the outputs through which gradients may reach the model, by field, or by
    `<field>.<name>`."""
    fields = vars(outputs)
    tables = {
        f"{table}.{name}": value for table in ("of_towers", "extra", "views") for name, value in fields[table].items()
    }
    single = {
        name: value for name, value in fields.items() if isinstance(value, Tensor) and name != "target_text_features"
    }
    return {name: value for name, value in (single | tables).items() if value.is_floating_point()}


def concatenated(pieces: Sequence[ModelOutputs]) -> ModelOutputs:
    """Concatenate the outputs of the pieces of a batch."""
    whole: dict[str, Any] = {}
    for name, first in vars(pieces[0]).items():
        values = [getattr(piece, name) for piece in pieces]
        if isinstance(first, Mapping):
            whole[name] = {key: torch.cat([value[key] for value in values]) for key in first}
        elif any(value is not None for value in values):
            whole[name] = torch.cat([value for value in values if value is not None])
    positions, num_tokens = [], 0
    for piece in pieces:  # positions count the tokens of earlier pieces too
        if piece.text_tokens is not None and piece.mlm_positions is not None:
            positions.append(piece.mlm_positions + num_tokens)
            num_tokens += piece.text_tokens.shape[:2].numel()
    if positions:
        whole["mlm_positions"] = torch.cat(positions)
    return ModelOutputs(**whole)


def optimizer_step(context: TrainingContext, step: int, num_steps: int | None = None) -> Tensor | None:
    """Step the optimizer after the last batch of an accumulation window; arguments as of `forward_backward`.

    Returns:
        The largest absolute gradient, a scalar on the device (with fp16, of the scaled gradients). If it is not finite,
        `GradScaler` has skipped the step; without a scaler the weights are now NaN or infinite, and `StepMonitor.read`
        raises before they are saved. None within a window.
    """
    state, clip_norm = context.state, context.config.optim.clip_grad_norm
    if step != _accumulation_window(context, step, num_steps)[-1]:
        return None
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    context.processes.all_reduce_gradients(parameters, uneven=bool(state.model.parts))
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    largest = torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf)
    if clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update()
    return largest


def _accumulation_window(context: TrainingContext, step: int, num_steps: int | None) -> range:
    """Return the steps whose gradients are summed with those of `step`; the last window of an epoch may be shorter."""
    length = context.config.loop.accumulate_steps
    start = step - step % length
    return range(start, min(start + length, num_steps or context.loader.steps_per_epoch))
