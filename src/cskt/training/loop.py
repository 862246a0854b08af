"""Training, top to bottom: set up, evaluate before, loop over epochs and steps, evaluate, keep the best."""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cskt.config import RunConfig, to_dict
from cskt.device import peak_memory_bytes
from cskt.errors import CsktError, out_of_memory_errors
from cskt.evaluation.evaluate import Evaluation, evaluate
from cskt.model.io.files import save_method
from cskt.training.checkpoint import Progress, load_last, save_last, set_aside, trainable_state
from cskt.training.distributed import joined
from cskt.training.doubts import doubts_after, doubts_before
from cskt.training.fit import fitted
from cskt.training.heads import save_best_heads
from cskt.training.init_from import InitialWeights, read_initial
from cskt.training.launch import note_refusal, num_restarts, was_refused
from cskt.training.loss_log import Readings
from cskt.training.lost_steps import LostSteps
from cskt.training.optim import learning_rate, set_learning_rate
from cskt.training.prefetcher import Feed
from cskt.training.run_folder import CONFIG, EVENTS, LAST, PREVIOUS, RunFolder, claimed, fresh_folder
from cskt.training.setup import Session, prepare
from cskt.training.shares import encode_shared
from cskt.training.shutdown import Leaving
from cskt.training.step import add_gradients, per_pair, update
from cskt.training.watch import CollapseWatch
from cskt.utils.progress import Advance, bar

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
    num_epochs_done: int = field(default=0, compare=False)
    """Epochs that the run has completed, over all sessions."""
    already_finished: bool = field(default=False, compare=False)
    """True if all epochs were completed before this session, which therefore trained nothing."""


@out_of_memory_errors("use --fit, a smaller --batch-size, --precision bf16 or --checkpoint-activations")
def train(
    config: RunConfig, folder: Path | None = None, *, resume: bool | None = False, refuse_overlaps: bool = True
) -> TrainResult:
    """Train a model and keep the epoch that does best on the selection split.

    Args:
        config: of the run; see `cskt.load_config`.
        folder: of the run; `<output_dir>/<dataset>/<time>_<name>` if None.
        resume: continue the run in `folder` from its last.pt; on a CPU bit-exactly if as many processes train. A stop
            (`loop.stop_after_epochs`) counts the epochs of the run and must lie ahead. None: continue the run if the
            folder has a checkpoint, otherwise start again.
        refuse_overlaps: refuse data whose splits or people share images or identities, unless it is one of the
            published data sets. If False, and for a run that is resumed, log a warning.

    Returns:
        The result. The run folder contains best.safetensors, best.heads.safetensors (if a loss has a head), last.pt,
        config.yaml, metrics.jsonl and TensorBoard's files.

    Raises:
        CsktError: bad data or config; a loss that is no longer finite (the last good checkpoint is intact); a folder
            that cannot be written.
        SystemExit: SIGTERM arrived and last.pt holds everything that was done, or another process of the launch failed.

    Example:
        >>> import cskt, tempfile
        >>> from cskt.data.paperdoll import make_dataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> make_dataset(folder / "data", ids={"train": 8, "val": 4, "test": 4}, images_per_id=2)
        >>> changes = {"data.root": str(folder / "data"), "data.batch_size": 16, "loop.num_epochs": 1}
        >>> cskt.train(cskt.load_config("demo", changes), folder / "run").best_epoch
        1
    """
    with joined() as processes, Leaving() as leaving, ExitStack() as held:
        with leaving.at_once():
            session = prepare(config, processes, refuse_overlaps=refuse_overlaps and not resume)
            if config.loop.fit and session.trains:
                session = fitted(session)
        processes.check_alike(session.essentials())
        # Before a folder is made, where that is possible: a run to start from that does not fit leaves nothing behind.
        initial = _initial(session) if resume is False else None
        folder = processes.from_leader(lambda: folder or fresh_folder(config))
        processes.from_leader(lambda: _claim(folder, held))
        if may_be_done := processes.any(resume is None):
            resume = processes.from_leader(lambda: _goes_on(folder))
            initial = None if resume else _initial(session)
        return _train(session, folder, leaving, initial, resume=bool(resume), may_be_done=may_be_done)


def _initial(session: Session) -> InitialWeights | None:
    """The weights of another run that this one starts from, the same in every process."""
    initial = read_initial(session)
    session.processes.check_alike({"the SHA-256 of init_from": None if initial is None else initial.sha256})
    return initial


def _check_stop(session: Session, folder: Path, progress: Progress) -> None:
    """Check that a run that is resumed has not come to its stop already.

    Raises:
        CsktError: it has.
    """
    stop, num_epochs = session.config.loop.stop_after_epochs, session.config.loop.num_epochs
    if session.trains and stop is not None and stop <= progress.epoch < num_epochs:
        raise CsktError(
            f"loop.stop_after_epochs {stop}: {folder} has completed {progress.epoch} of {num_epochs} epochs already;"
            " name a later epoch, or leave it out to train to the end"
        )


def _goes_on(folder: Path) -> bool:
    """Whether a folder holds a checkpoint; what has not come so far is cleared away."""
    if num_restarts() and was_refused(folder):
        return False  # what lies there is not of this launch, which will be refused again
    if any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        return True
    for name in (EVENTS, CONFIG):  # the config last: without it nobody would look for old events
        (folder / name).unlink(missing_ok=True)
    return False


def _claim(folder: Path, held: ExitStack) -> None:
    if not held.enter_context(claimed(folder)):
        note_refusal(folder)
        raise CsktError(f"{folder}: another process is training there; wait for it, or name another folder")


def _create(session: Session, folder: Path) -> None:
    if (folder / CONFIG).exists():
        note_refusal(folder)
    RunFolder.create(session.config, folder, session.built.model.architecture)


def _train(
    session: Session,
    folder: Path,
    leaving: Leaving,
    initial: InitialWeights | None,
    *,
    resume: bool,
    may_be_done: bool,
) -> TrainResult:
    config, last_epoch = session.config, session.last_epoch
    num_steps = last_epoch * session.loader.steps_per_epoch  # for the bar; epochs of identity-released differ a little
    with closing(RunFolder(folder, writes=session.processes.leads)) as run:
        progress = _resumed(session, run, may_be_done) if resume else _begun(session, run, leaving, initial)
        is_finished = progress.epoch >= config.loop.num_epochs if session.trains else progress.best_r1 >= 0
        leaving.hint = f"go on with: cskt train --resume {run.path}"
        watch, lost = CollapseWatch(config.loss.sdm_other_image), LostSteps(config, progress)
        with bar("training", num_steps, done=progress.total_steps, shown=session.processes.leads) as advance:
            for epoch in range(progress.epoch, last_epoch):
                _train_epoch(session, run, progress, advance, watch=watch, lost=lost, leaving=leaving)
                if (epoch + 1) % config.loop.eval_period_epochs == 0 or epoch + 1 == last_epoch:
                    _save(session, run, progress)  # evaluating may take long; what was trained is not lost meanwhile
                    with leaving.at_once():
                        _evaluate_and_keep(session, run, progress, epoch + 1)
                progress.epoch, progress.step = epoch + 1, 0
                _save(session, run, progress)
            if not session.trains and progress.best_r1 < 0:  # what was loaded is the result
                _evaluate_and_keep(session, run, progress, 0)
                _save(session, run, progress)
        events = run.events() if session.processes.leads else []
        doubts = doubts_after(events, progress.best_r1, progress.best_epoch)
        for doubt in doubts:
            logger.warning("%s", doubt)
        run.record(
            "end",
            step=progress.total_steps,
            best_r1=progress.best_r1,
            best_epoch=progress.best_epoch,
            seconds=progress.seconds,
            peak_memory_bytes=peak_memory_bytes(session.device),
            warnings=doubts,
        )
    return TrainResult(
        folder=run.path,
        best_r1=progress.best_r1,
        best_epoch=progress.best_epoch,
        seconds=progress.seconds,
        num_epochs_done=progress.epoch,
        already_finished=is_finished,
    )


def _resumed(session: Session, run: RunFolder, may_be_done: bool) -> Progress:
    """Go back to where last.pt stands.

    Args:
        may_be_done: the run may have come to its stop; otherwise that is an error.
    """
    progress, source = load_last(run.last, session.trainee, session.config)
    if not may_be_done:
        _check_stop(session, run.path, progress)
    session.processes.check_alike({"epochs and steps at which they resume": (progress.epoch, progress.total_steps)})
    if session.processes.leads and source != run.last:
        set_aside(run.last)
    run.set_stop(session.config.loop.stop_after_epochs)
    run.forget_after(progress.total_steps, progress.epoch)
    logger.info("resuming %s after epoch %d, step %d", run.path, progress.epoch, progress.step)
    return progress


def _begun(session: Session, run: RunFolder, leaving: Leaving, initial: InitialWeights | None) -> Progress:
    """Make the run's folder, evaluate the backbone and the start of the training, and save the start."""
    config, progress = session.config, Progress()
    session.processes.from_leader(lambda: _create(session, run.path))
    run.expect_files()
    leaving.hint = f"nothing is saved yet; to begin again, remove {run.path}"
    logger.info("run folder: %s (if interrupted: cskt train --resume %s)", run.path, run.path)
    doubts = doubts_before(config, session.val_split, session.built.backbone_sha256)
    for doubt in doubts:
        logger.warning("%s", doubt)
    run.record("start", **session.facts(), **({} if initial is None else initial.facts()), warnings=doubts)
    with leaving.at_once():
        evaluates = config.loop.evaluate_before and session.trains
        if evaluates:
            _evaluate(session, run, progress, "zero-shot", 0)
        if initial is not None:
            initial.apply(session)
        if evaluates:
            _evaluate(session, run, progress, "step-0", 0)
    _save(session, run, progress)
    return progress


def _train_epoch(
    session: Session,
    run: RunFolder,
    progress: Progress,
    advance: Advance,
    *,
    watch: CollapseWatch,
    lost: LostSteps,
    leaving: Leaving,
) -> None:
    """Make the steps that are left of the epoch under way; changes `progress`."""
    config, processes = session.config, session.processes
    epoch = progress.epoch
    num_steps = session.loader.num_steps(epoch)
    log_period, save_period = config.loop.log_period_steps, config.loop.save_period_steps
    rate = learning_rate(epoch, config.optim, config.loop.num_epochs)
    set_learning_rate(session.trainee.optimizer, rate)
    logged_at, logged_step, logged_pairs = time.perf_counter(), progress.step, 0
    saved_at = progress.total_steps
    processes.traffic.clear()  # of what evaluating exchanged
    # Reading a loss makes the host wait for the device: on an accelerator it is done now and then, never at each step.
    readings = Readings(watch, skips_steps=session.trainee.scaler.is_enabled())
    with Feed(session.loader.epoch(epoch, progress.step, processes.share), session.device) as feed:
        for step, batch in enumerate(feed, start=progress.step):
            parts = add_gradients(session, batch, step, _generator(config.seed, epoch, step), num_steps)
            largest_gradient = update(session, step, num_steps)
            readings.add(epoch, step, parts, batch, largest_gradient)
            lost.look_at(batch.pids, per_pair(batch))

            progress.step, progress.total_steps = step + 1, progress.total_steps + 1
            logged_pairs += len(batch.pids)
            logs = progress.total_steps % log_period == 0 or step + 1 == num_steps
            is_update = largest_gradient is not None
            leaves = is_update and processes.any(leaving.asked)
            saves = leaves or (is_update and save_period > 0 and progress.total_steps - saved_at >= save_period)
            if logs or saves or session.device.type == "cpu":
                last = readings.read(run.path)
                lost.add_skipped(readings.num_skipped)
                advance(readings.num_read, note=f"epoch {epoch + 1}/{config.loop.num_epochs}, loss {last['loss']:.3f}")
            if logs:
                seconds = time.perf_counter() - logged_at
                progress.seconds += seconds
                run.record(
                    "step",
                    epoch=epoch + 1,
                    step=progress.total_steps,
                    loss=last.pop("loss"),
                    losses=last,
                    lr=rate,
                    pairs_per_second=logged_pairs / seconds,
                    waiting_share=feed.take_waited() / seconds,
                    **processes.exchanged(progress.step - logged_step, seconds),
                    **lost.counts(),
                    seconds=progress.seconds,
                )
                logged_at, logged_step, logged_pairs = time.perf_counter(), progress.step, 0
            if saves:
                _save(session, run, progress)
                saved_at = progress.total_steps
            if leaves:
                leaving.leave()
    lost.close_epoch(num_steps, num_updates=-(-num_steps // config.loop.accumulate_steps))


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """Augmentation's randomness as a function of the place in the run, so that resuming needs no saved state."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _evaluate_and_keep(session: Session, run: RunFolder, progress: Progress, epoch: int) -> None:
    """Evaluate what an epoch made, the moving average where there is one, and keep it if it is the best so far."""
    average = session.trainee.average
    with nullcontext() if average is None else average.applied():
        result = _evaluate(session, run, progress, "epoch", epoch)
        if result.t2i.r1 > progress.best_r1:
            progress.best_r1, progress.best_epoch = result.t2i.r1, epoch
            _save_best(session, run, progress)


def _evaluate(session: Session, run: RunFolder, progress: Progress, stage: str, epoch: int) -> Evaluation:
    """Evaluate on the selection split and record it under `stage`."""
    started = time.perf_counter()
    encoder, processes = session.encoder(bare=stage == "zero-shot"), session.processes
    features = encode_shared(encoder, session.val_split, processes)
    result = processes.from_leader(lambda: evaluate(encoder, session.val_split, features))
    progress.seconds += time.perf_counter() - started
    label = f"epoch {epoch}" if stage == "epoch" else stage
    logger.info("%s: R1 %.2f on %s of %s", label, 100 * result.t2i.r1, result.split, result.dataset)
    run.record("evaluation", stage=stage, epoch=epoch, step=progress.total_steps, **result.summary())
    return result


def _save(session: Session, run: RunFolder, progress: Progress) -> None:
    """Write last.pt."""
    if session.processes.leads:
        run.check_files()
        save_last(run.last, session.trainee, session.config, progress)
        run.expect_files()


def _save_best(session: Session, run: RunFolder, progress: Progress) -> None:
    """Write best.safetensors: what inference needs of what was trained, and the backbone's digest."""
    if not session.processes.leads:
        return
    run.check_files()
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
            "epoch": str(progress.best_epoch),
            "selected_on": session.val_split.name,
            "selection_r1": f"{progress.best_r1:.6f}",
        },
    )
    if session.trains:
        heads, data_sha256 = trainable_state(session.trainee.objective), session.trainee.data_sha256
        save_best_heads(run.path, heads, data_sha256=data_sha256, epoch=progress.best_epoch)
    run.expect_files()
