"""One training step: a batch through model and losses, gradients back, the optimiser on."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt.data.images import augment, to_device
from cskt.data.masking import MaskedCaptions, augment_captions, mask_tokens
from cskt.device import arithmetic, exact_convolutions
from cskt.losses import weighted_total
from cskt.training.micro import backward_in_pieces
from cskt.training.objective import Outputs, Views, encode
from cskt.training.setup import Session
from cskt.training.shares import Rows
from cskt.types import Batch

CAPTION_BUCKET = 16
"""Compiled blocks see captions whose length is a multiple of this: few lengths, each compiled once."""


def add_gradients(
    session: Session, batch: Batch, step: int, generator: torch.Generator, num_steps: int | None = None
) -> dict[str, Tensor]:
    """Add the gradients of a batch to the parameters.

    With `loop.micro_batch_size` the batch passes the model in pieces; the gradients are those of the whole batch.

    Args:
        session: what is trained, and how.
        batch: the images of this process's share on the training device.
        step: of the epoch, from 0.
        generator: decides the augmentation.
        num_steps: of the epoch, where it is not `steps_per_epoch` of the loader.

    Returns:
        The weighted total as `loss`, then the unweighted losses by name: scalars of the whole batch, on the device.
    """
    config, device, trainee = session.config, session.device, session.trainee
    pids, image_ids = to_device(batch.pids, device), to_device(per_pair(batch), device)
    rows = Rows.of(batch, session.processes)
    _, group_size = _group(session, step, num_steps)

    def outputs_of(piece: Views) -> Outputs:
        with arithmetic(device, config.precision):
            return encode(session.built.model, piece, masked_for_all=config.mlm.masked_for_all)

    def backward(outputs: Outputs) -> dict[str, Tensor]:
        with arithmetic(device, config.precision):
            parts = trainee.objective(outputs, pids, image_ids, rows)
        loss = weighted_total(parts, config.loss.weights)
        with exact_convolutions(device):
            torch.autograd.backward(trainee.scaler.scale(loss / group_size))
        known = {
            name: session.processes.sum(part.detach()) if trainee.objective.losses[name].by_row else part.detach()
            for name, part in parts.items()
        }
        return {"loss": weighted_total(known, config.loss.weights)} | known

    views = views_of(session, batch, generator)
    pieces = views.split(config.loop.micro_batch_size or len(batch.pids))
    if config.loop.compile:
        pieces = [in_bucket(piece, session.built.tokenizer.context_length) for piece in pieces]
    if len(pieces) == 1:
        return backward(outputs_of(pieces[0]))
    return backward_in_pieces(pieces, outputs_of, backward)


def views_of(session: Session, batch: Batch, generator: torch.Generator) -> Views:
    """This process's share of a batch augmented, and with words masked where a loss asks for it.

    Everything is drawn for the whole batch, so that it does not depend on how many processes share it.
    """
    config, context_length = session.config, session.built.tokenizer.context_length
    own, num_images = Rows.of(batch, session.processes).own, len(batch.image_ids)
    architecture = session.built.model.architecture
    images = augment(
        batch.images, config.augment, generator, mean=architecture.image_mean, std=architecture.image_std,
        of=num_images, first=batch.first_image,
    )  # fmt: skip
    caption_ids = augment_captions(batch.caption_ids, config.augment, generator)
    masked = None
    if "mlm" in config.loss.weights:
        # The interaction encoder has no mask: in the released code, too, it sees the padding of the whole context.
        whole = F.pad(caption_ids, (0, context_length - caption_ids.shape[1]))
        masked = MaskedCaptions(*(part[own] for part in mask_tokens(whole, config.mlm.mask_probability, generator)))
    elif config.mlm.without_loss:
        caption_ids = mask_tokens(caption_ids, config.mlm.mask_probability, generator).ids
    return Views(images, caption_ids[own], masked)


def in_bucket(views: Views, context_length: int) -> Views:
    """The same with captions padded to a multiple of `CAPTION_BUCKET`, which changes nothing but their length."""
    length = views.caption_ids.shape[1]
    bucket = min(-(-length // CAPTION_BUCKET) * CAPTION_BUCKET, context_length)
    return dataclasses.replace(views, caption_ids=F.pad(views.caption_ids, (0, bucket - length)))


def per_pair(batch: Batch) -> Tensor:
    """[B] the image of each pair."""
    return batch.image_ids.repeat_interleave(len(batch.pids) // len(batch.image_ids))


def update(session: Session, step: int, num_steps: int | None = None) -> Tensor | None:
    """Step the optimizer at the end of a group of batches.

    Args:
        session: what is trained.
        step: of the epoch, from 0.
        num_steps: of the epoch, where it is not `steps_per_epoch` of the loader.

    Returns:
        The largest absolute gradient, a scalar on the device, of which fp16 has the scaled one: if it is not finite,
        `GradScaler` skips the step, and without a scaler the step damages the weights. None within a group.
    """
    trainee, clip_norm = session.trainee, session.config.optim.clip_grad_norm
    start, size = _group(session, step, num_steps)
    if step + 1 < start + size:
        return None
    parameters = [p for group in trainee.optimizer.param_groups for p in group["params"]]
    session.processes.add_up(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    largest = torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf)
    if clip_norm is not None:
        trainee.scaler.unscale_(trainee.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    trainee.scaler.step(trainee.optimizer)
    trainee.scaler.update()
    trainee.optimizer.zero_grad(set_to_none=True)
    if trainee.average is not None:
        trainee.average.update()
    return largest


def _group(session: Session, step: int, num_steps: int | None) -> tuple[int, int]:
    """(first step, size) of the group of `accumulate_steps` batches that a step belongs to.

    The last group of an epoch may be smaller; its gradients are averaged all the same.
    """
    accumulate = session.config.loop.accumulate_steps
    start = step - step % accumulate
    return start, min(accumulate, (num_steps or session.loader.steps_per_epoch) - start)
