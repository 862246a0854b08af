"""Training, top to bottom: set up, evaluate before, loop over epochs and steps, evaluate, keep the best."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cskt import losses
from cskt.config import RunConfig, to_dict
from cskt.data.images import augment
from cskt.data.masking import augment_captions, mask_tokens
from cskt.device import arithmetic, peak_memory_bytes, pick_device, reset_peak_memory
from cskt.evaluate import Evaluation, evaluate
from cskt.model.files import save_method
from cskt.progress import Advance, bar
from cskt.train.checkpoint import Progress, load_last, save_last, trainable_state
from cskt.train.objective import encode
from cskt.train.optim import learning_rate, set_learning_rate
from cskt.train.run_folder import RunFolder
from cskt.train.setup import Session, prepare
from cskt.train.watch import CollapseWatch
from cskt.types import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a finished training leaves behind."""

    folder: Path
    best_r1: float
    """Selection score, t2i R1 as a fraction, on the split named by `data.select_on`."""
    best_epoch: int
    """From 1; 0 where nothing trains."""
    seconds: float
    """Training and its evaluations, over all sessions."""


def train(config: RunConfig, folder: Path | None = None, *, resume: bool = False) -> TrainResult:
    """Train a recipe and keep the epoch that does best on the selection split.

    Args:
        config: the recipe.
        folder: the run's folder; `<output_dir>/<dataset>/<time>_<name>` if empty.
        resume: continue the run in `folder` from its last.pt; on a CPU bit-exactly.

    Returns:
        The run folder, holding best.safetensors, last.pt, config.yaml, metrics.jsonl and TensorBoard's files.

    Raises:
        ValueError: bad data or config, a loss that is no longer finite (the last good checkpoint is intact), or a
            folder that cannot be written. One line, with the remedy.
    """
    reset_peak_memory(pick_device(config.device))
    session = prepare(config)
    config, trainee = session.config, session.trainee
    if resume:
        assert folder is not None, "a resumed run has a folder"
        run = RunFolder(folder)
        progress = load_last(run.last, trainee, config)
        run.forget_after(progress.total_steps, progress.epoch)
        logger.info("resuming %s after epoch %d, step %d", folder, progress.epoch, progress.step)
    else:
        run, progress = RunFolder.create(config, folder), Progress()
        logger.info("run folder: %s (if interrupted: cskt train --resume %s)", run.path, run.path)
        run.record("start", **session.facts())
        if config.loop.evaluate_before and session.trains:
            _evaluate(session, run, progress, "zero-shot")
            _evaluate(session, run, progress, "step-0")
        save_last(run.last, trainee, config, progress)

    watch = CollapseWatch(config.loss.sdm_other_image)
    last_epoch = session.last_epoch
    num_steps = last_epoch * session.loader.steps_per_epoch
    with closing(run), bar("training", num_steps, done=progress.total_steps) as advance:
        for epoch in range(progress.epoch, last_epoch):
            _train_epoch(session, run, progress, watch, advance)
            progress.epoch, progress.step = epoch + 1, 0
            if progress.epoch % config.loop.eval_period_epochs == 0 or progress.epoch == last_epoch:
                _evaluate_and_keep(session, run, progress)
            save_last(run.last, trainee, config, progress)
        if not session.trains and progress.best_r1 < 0:  # what was loaded is the result
            _evaluate_and_keep(session, run, progress)
            save_last(run.last, trainee, config, progress)
        run.record(
            "end",
            step=progress.total_steps,
            best_r1=progress.best_r1,
            best_epoch=progress.best_epoch,
            seconds=progress.seconds,
            peak_memory_bytes=peak_memory_bytes(session.device),
        )
    return TrainResult(run.path, progress.best_r1, progress.best_epoch, progress.seconds)


def _train_epoch(session: Session, run: RunFolder, progress: Progress, watch: CollapseWatch, advance: Advance) -> None:
    """The steps that are left of the epoch under way; moves `progress` along."""
    config, epoch, num_steps = session.config, progress.epoch, session.loader.steps_per_epoch
    log_period, save_period = config.loop.log_period_steps, config.loop.save_period_steps
    rate = learning_rate(epoch, config.optim, config.loop.num_epochs)
    set_learning_rate(session.trainee.optimizer, rate)
    logged_at, logged_pairs, saved_at = time.perf_counter(), 0, progress.total_steps
    for step, batch in enumerate(session.loader.epoch(epoch, progress.step), start=progress.step):
        parts, loss = _forward(session, batch, _generator(config.seed, epoch, step))
        # One transfer, before the backward pass: waiting after it would leave an accelerator idle until the next step.
        loss_value, *values = torch.stack([loss.detach(), *(part.detach() for part in parts.values())]).tolist()
        part_values = dict(zip(parts, values, strict=True))
        if not math.isfinite(loss_value):
            raise ValueError(
                f"loss is {loss_value} at epoch {epoch + 1}, step {step + 1}; {run.path} keeps the last good"
                " checkpoint. Lower optim.lr, set optim.clip_grad_norm, or use --precision fp32"
            )
        updated = _backward(session, loss, step)

        progress.step, progress.total_steps = step + 1, progress.total_steps + 1
        logged_pairs += len(batch.pids)
        watch.look(part_values.get("sdm"), batch.pids, _per_pair(batch))
        advance(note=f"epoch {epoch + 1}/{config.loop.num_epochs}, loss {loss_value:.3f}")
        if progress.total_steps % log_period == 0 or step + 1 == num_steps:
            seconds = time.perf_counter() - logged_at
            progress.seconds += seconds
            run.record(
                "step",
                epoch=epoch + 1,
                step=progress.total_steps,
                loss=loss_value,
                losses=part_values,
                lr=rate,
                pairs_per_second=logged_pairs / seconds,
                seconds=progress.seconds,
            )
            logged_at, logged_pairs = time.perf_counter(), 0
        if updated and save_period and progress.total_steps - saved_at >= save_period:
            save_last(run.last, session.trainee, config, progress)
            saved_at = progress.total_steps


def _forward(session: Session, batch: Batch, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Losses of a batch by name, and their weighted total."""
    device, config = session.device, session.config
    images = augment(batch.images.to(device), config.augment, generator)
    caption_ids = augment_captions(batch.caption_ids, config.augment, generator)
    masked = None
    if "mlm" in config.loss.weights:
        # The interaction encoder has no mask: in the released code, too, it sees the padding of the whole context.
        padding = session.built.tokenizer.context_length - caption_ids.shape[1]
        masked = mask_tokens(F.pad(caption_ids, (0, padding)), config.mlm.mask_probability, generator)
    with arithmetic(device, config.precision):
        outputs = encode(session.built.model, images, caption_ids, masked, masked_for_all=config.mlm.masked_for_all)
        parts = session.trainee.objective(outputs, batch.pids.to(device), _per_pair(batch).to(device))
    return parts, losses.total(parts, config.loss.weights)


def _per_pair(batch: Batch) -> Tensor:
    """[B] the image of each pair."""
    return batch.image_ids.repeat_interleave(len(batch.pids) // len(batch.image_ids))


def _backward(session: Session, loss: Tensor, step: int) -> bool:
    """Add the gradients of a batch; at the end of a group of batches step the optimiser and say so.

    A group is `accumulate_steps` batches; the last of an epoch may be smaller, its gradients are averaged all the same.
    """
    trainee, clip_norm = session.trainee, session.config.optim.clip_grad_norm
    accumulate = session.config.loop.accumulate_steps
    group_start = step - step % accumulate
    group_size = min(accumulate, session.loader.steps_per_epoch - group_start)
    torch.autograd.backward(trainee.scaler.scale(loss / group_size))
    if step + 1 < group_start + group_size:
        return False
    if clip_norm is not None:
        trainee.scaler.unscale_(trainee.optimizer)
        parameters = [p for group in trainee.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    trainee.scaler.step(trainee.optimizer)
    trainee.scaler.update()
    trainee.optimizer.zero_grad(set_to_none=True)
    if trainee.average is not None:
        trainee.average.update()
    return True


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """Augmentation's randomness as a function of the place in the run, so that resuming needs no saved state."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _evaluate_and_keep(session: Session, run: RunFolder, progress: Progress) -> None:
    """Evaluate what the epoch made, the moving average where there is one, and keep it if it is the best so far."""
    average = session.trainee.average
    with nullcontext() if average is None else average.applied():
        result = _evaluate(session, run, progress, "epoch")
        if result.t2i.r1 > progress.best_r1:
            progress.best_r1, progress.best_epoch = result.t2i.r1, progress.epoch
            _save_best(session, run, progress)


def _evaluate(session: Session, run: RunFolder, progress: Progress, stage: str) -> Evaluation:
    """Evaluate on the selection split and record it under `stage`."""
    started = time.perf_counter()
    result = evaluate(session.encoder(bare=stage == "zero-shot"), session.val_split)
    progress.seconds += time.perf_counter() - started
    label = f"epoch {progress.epoch}" if stage == "epoch" else stage
    logger.info("%s: R1 %.2f on %s of %s", label, 100 * result.t2i.r1, result.split, result.dataset)
    run.record("evaluation", stage=stage, epoch=progress.epoch, step=progress.total_steps, **result.summary())
    return result


def _save_best(session: Session, run: RunFolder, progress: Progress) -> None:
    """Write best.safetensors: what inference needs of what was trained, and the backbone's digest."""
    built = session.built
    whole = {name: parameter.detach() for name, parameter in built.model.named_parameters()}
    # A random backbone lies in no file: what was trained over it would mean nothing without it.
    state = trainable_state(built.model) if built.backbone_sha256 else whole
    is_whole = len(state) == len(whole)
    save_method(
        run.best,
        state,
        architecture=built.model.architecture if is_whole else None,
        known_token_ids=built.tokenizer.known_ids if is_whole else None,
        config=to_dict(session.config),
        backbone_name=built.backbone_name,
        backbone_sha256=built.backbone_sha256,
        facts={
            "epoch": str(progress.epoch),
            "selected_on": session.val_split.name,
            "selection_r1": f"{progress.best_r1:.6f}",
        },
    )
