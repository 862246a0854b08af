"""Training, from top to bottom: set up, train, evaluate, save."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cskt.config import RunConfig, load_config, to_dict
from cskt.data.records import Split
from cskt.device import peak_memory_bytes
from cskt.embed import Encoder
from cskt.errors import CsktError, file_system_errors, out_of_memory_errors
from cskt.evaluation.evaluate import Evaluation, SplitFeatures, evaluate
from cskt.model.io.names import CONFIG, EVENTS, LAST, PREVIOUS
from cskt.model.io.native import MethodFile, save_weights
from cskt.training.checkpoint import load_last, save_last, set_aside
from cskt.training.checks import warnings_after, warnings_before
from cskt.training.context import TrainingContext, prepare
from cskt.training.distributed import process_group
from cskt.training.events import read_events
from cskt.training.hooks import Hook, Hooks
from cskt.training.initial_weights import InitialWeights, read_initial_weights, save_best_heads
from cskt.training.launch import num_restarts, record_refusal, was_refused
from cskt.training.loggers import Loggers
from cskt.training.micro_batch import fit_micro_batch
from cskt.training.monitor import StepMonitor
from cskt.training.optim import learning_rate, set_learning_rate
from cskt.training.prefetcher import Prefetcher
from cskt.training.run_folder import RunFolder, claimed, fresh_folder
from cskt.training.shutdown import ShutdownSignal
from cskt.training.state import trainable_state
from cskt.training.step import forward_backward, optimizer_step
from cskt.utils.arguments import expect
from cskt.utils.console import Advance, bar

logger = logging.getLogger(__name__)


class Resume(Enum):
    """Handling of a checkpoint in the folder of a run."""

    NEVER = "never"
    """Start a new run; a folder with a run is refused."""
    REQUIRED = "required"
    """Continue the run; its last.pt must exist, and a stop must lie ahead."""
    IF_POSSIBLE = "if possible"
    """Continue the run if the folder has a checkpoint, otherwise start again; a finished run is no error."""

    @classmethod
    def of(cls, choice: Resume | bool | None) -> Resume:
        """Return the choice, also one that is written as True (required), False (never) or None (if possible)."""
        if isinstance(choice, Resume):
            return choice
        return {True: cls.REQUIRED, False: cls.NEVER, None: cls.IF_POSSIBLE}[choice]


@dataclass(frozen=True)
class TrainResult:
    """Result of a training."""

    folder: Path
    best_r1: float
    """Selection score, t2i R1 as a fraction, on the split named by `data.select_on`."""
    best_epoch: int
    """From 1; 0 if nothing trains."""
    seconds: float
    """Time of training and its evaluations, over all sessions."""
    num_epochs_done: int = field(default=0, compare=False)
    """Epochs that the run has completed, over all sessions."""
    stopped: str = field(default="", compare=False)
    """Reason why a hook, such as early stopping, ended the run before its last epoch; empty otherwise."""
    already_finished: bool = field(default=False, compare=False)
    """True if all epochs were completed before this session, which therefore trained nothing."""


@out_of_memory_errors("use --fit, a smaller --batch-size, --precision bf16 or --checkpoint-activations")
def train(
    config: RunConfig | str | Path,
    folder: str | Path | None = None,
    *,
    resume: Resume | bool | None = False,
    refuse_overlaps: bool = True,
    hooks: Sequence[Hook] = (),
) -> TrainResult:
    """Train a model and keep the epoch that does best on the selection split.

    Args:
        config: of the run, or what `cskt.load_config` takes: the name or path of a recipe.
        folder: of the run; `<output_dir>/<dataset>/<time>_<name>` if None.
        resume: a `Resume`. True: continue the run in `folder` from its last.pt, on a CPU bit-exactly if as many
            processes train. A stop (`loop.stop_after_epochs`) counts the epochs of the run and must lie ahead. None:
            continue the run if the folder has a checkpoint, otherwise start again.
        refuse_overlaps: refuse data whose splits or people share images or identities, unless it is one of the
            published data sets. If False, and for a run that is resumed, log a warning.
        hooks: called between epochs, beside those of the config; see `cskt.training.hooks.Hook`. A run is resumed with
            the hooks that it was started with.

    Returns:
        The result. The run folder contains best.safetensors, best.heads.safetensors (if a loss has a head), last.pt,
        config.yaml, metrics.jsonl and the files of the loggers.

    Raises:
        CsktError: bad data or config; a loss that is no longer finite (the last good checkpoint is intact); a folder
            that cannot be written.
        SystemExit: SIGTERM arrived and last.pt holds everything that was done, or another process of the launch failed.

    Example:
        >>> import cskt, tempfile
        >>> from cskt.data.paperdoll import make_dataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = make_dataset(folder / "data", ids={"train": 8, "val": 4, "test": 4}, images_per_id=2)
        >>> changes = {"data.root": str(folder / "data"), "data.batch_size": 16, "loop.num_epochs": 1}
        >>> cskt.train(cskt.load_config("demo", changes), folder / "run").best_epoch
        1
    """
    choice = Resume.of(resume)
    expect(folder, (str, Path, type(None)), "folder")
    config = load_config(config)
    stated = None if folder is None else Path(folder)
    with process_group() as processes, ShutdownSignal() as shutdown, ExitStack() as stack:
        # Set up.
        with shutdown.immediate():
            refuses = refuse_overlaps and choice is not Resume.REQUIRED
            context = prepare(config, processes, refuse_overlaps=refuses)
            if config.loop.fit and context.trains:
                context = fit_micro_batch(context)
        processes.check_equal(context.values_equal_on_all_ranks())
        context.state.hooks = calls = Hooks(context, hooks)
        # Initial weights are read before a folder is created, if possible: weights that do not fit leave no folder.
        initial = read_initial_weights(context) if choice is Resume.NEVER else None
        run_folder = processes.run_on_rank0(lambda: stated or fresh_folder(config))
        processes.run_on_rank0(lambda: _claim(run_folder, stack))
        resumes = choice is Resume.REQUIRED
        if allow_finished := processes.any(choice is Resume.IF_POSSIBLE):
            resumes = processes.run_on_rank0(lambda: _has_checkpoint(run_folder))
            if not resumes:
                processes.run_on_rank0(lambda: _delete_unfinished_start(run_folder))
                initial = read_initial_weights(context)
        run = stack.enter_context(closing(RunFolder(run_folder, writes=processes.is_main_process)))
        trainer = stack.enter_context(closing(Trainer(context, run, shutdown, calls)))
        if resumes:
            trainer.resume(allow_finished=allow_finished)
        else:
            trainer.start(initial)
        shutdown.hint = f"continue with: cskt train --resume {run_folder}"

        # Train, evaluate, save.
        progress, last_epoch = context.state.progress, context.last_epoch
        is_finished = bool(calls.stopped) or (
            progress.epoch >= config.loop.num_epochs if context.trains else progress.best_r1 >= 0
        )
        num_steps = last_epoch * context.loader.steps_per_epoch  # epochs of identity-released differ a little
        with bar("training", num_steps, done=progress.total_steps, shown=processes.is_main_process) as advance:
            for epoch in range(progress.epoch, last_epoch):
                if calls.stopped:
                    break
                if not progress.step:
                    calls.call("before_epoch")
                trainer.train_epoch(advance)
                is_due = (epoch + 1) % config.loop.eval_period_epochs == 0 or epoch + 1 == last_epoch
                if is_due or calls:
                    trainer.save()  # evaluating may take long, and must not lose what was trained
                calls.call("after_epoch")
                if is_due or calls.stopped:
                    trainer.evaluate_epoch(epoch + 1)
                progress.epoch, progress.step = epoch + 1, 0
                trainer.save()
            if not context.trains and progress.best_r1 < 0:  # the loaded weights are the result
                trainer.evaluate_epoch(0)
                trainer.save()
        trainer.end()
    return TrainResult(
        folder=run_folder,
        best_r1=progress.best_r1,
        best_epoch=progress.best_epoch,
        seconds=progress.seconds,
        num_epochs_done=progress.epoch,
        stopped=calls.stopped,
        already_finished=is_finished,
    )


def _claim(folder: Path, stack: ExitStack) -> None:
    if not stack.enter_context(claimed(folder)):
        record_refusal(folder)
        raise CsktError(f"{folder}: another process is training there; wait for it, or name another folder")


def _has_checkpoint(folder: Path) -> bool:
    """Return True if a folder has a checkpoint of this launch, or of an earlier one that it may continue."""
    if num_restarts() and was_refused(folder):
        return False  # the run there is not of this launch, which will be refused again
    return any((folder / name).is_file() for name in (LAST, PREVIOUS))


def _delete_unfinished_start(folder: Path) -> None:
    """Delete the files of a start that ended before its first checkpoint."""
    if num_restarts() and was_refused(folder):
        return
    for name in (EVENTS, CONFIG):  # the config last: without it old events would never be deleted
        with file_system_errors(folder / name):
            (folder / name).unlink(missing_ok=True)


class Trainer:
    """Train one run: start or resume, train epochs, evaluate, save."""

    def __init__(self, context: TrainingContext, run: RunFolder, shutdown: ShutdownSignal, hooks: Hooks) -> None:
        self.context, self.run, self.shutdown, self.hooks = context, run, shutdown, hooks
        hooks.run.record = self._record
        self.monitor = StepMonitor(context.config, context.state, run.path)
        self.loggers = Loggers()

    def start(self, initial: InitialWeights | None) -> None:
        """Create the run folder, evaluate the backbone and the initial weights, and save the latter."""
        context, run = self.context, self.run
        context.processes.run_on_rank0(lambda: run.create(context.config, context.state.model.architecture))
        self.shutdown.hint = f"nothing is saved yet; to begin again, remove {run.path}"
        logger.info("run folder: %s (if interrupted: cskt train --resume %s)", run.path, run.path)
        warnings = warnings_before(context.config, context.val_split, context.state.backbone_sha256)
        for warning in warnings:
            logger.warning("%s", warning)
        facts = context.start_event() | ({} if initial is None else initial.start_event())
        self._open_loggers(facts)
        self._record("start", **facts, warnings=warnings)
        with self.shutdown.immediate():
            evaluates = context.config.loop.evaluate_before and context.trains
            if evaluates:
                self._evaluate("zero-shot", 0)
            if initial is not None:
                initial.apply(context)
            if evaluates:
                self._evaluate("step-0", 0)
        self.save()

    def resume(self, *, allow_finished: bool) -> None:
        """Restore the state of last.pt; `allow_finished`: `loop.stop_after_epochs` may be reached already."""
        context, run, loop = self.context, self.run, self.context.config.loop
        source = load_last(run.last, context.state, context.config)
        progress, stop = context.state.progress, loop.stop_after_epochs
        if not allow_finished and context.trains and stop is not None and stop <= progress.epoch < loop.num_epochs:
            raise CsktError(
                f"loop.stop_after_epochs {stop}: {run.path} has completed {progress.epoch} of {loop.num_epochs} epochs"
                " already; name a later epoch, or leave it out to train to the end"
            )
        position = (progress.epoch, progress.total_steps)
        context.processes.check_equal({"epochs and steps at which they resume": position})
        if context.processes.is_main_process and source != run.last:
            set_aside(run.last)
        run.set_stop(stop)
        run.drop_events_after(progress.total_steps, progress.epoch)
        self._open_loggers(context.start_event() | {"resumed_after_step": progress.total_steps})
        logger.info("resuming %s after epoch %d, step %d", run.path, progress.epoch, progress.step)

    def train_epoch(self, advance: Advance) -> None:
        """Make the remaining steps of the current epoch."""
        context, loop = self.context, self.context.config.loop
        state, processes, progress = context.state, context.processes, context.state.progress
        epoch, num_steps = progress.epoch, context.loader.num_steps(progress.epoch)
        rate = learning_rate(epoch, context.config.optim, loop.num_epochs)
        set_learning_rate(state.optimizer, rate)
        logged_at, logged_step, logged_pairs = time.perf_counter(), progress.step, 0
        saved_at = progress.total_steps
        processes.traffic.clear()  # evaluating exchanged features
        # Reading a loss makes the host wait for the device: on an accelerator it is done now and then.
        with Prefetcher(context.loader.epoch(epoch, progress.step, processes.share), context.device) as prefetcher:
            for step, batch in enumerate(prefetcher, start=progress.step):
                generator = _generator(context.config.seed, epoch, step)
                losses = forward_backward(context, batch, step, generator, num_steps)
                largest_gradient = optimizer_step(context, step, num_steps)
                num_unread = self.monitor.add(step, losses, largest_gradient, batch)

                progress.step, progress.total_steps = step + 1, progress.total_steps + 1
                logged_pairs += len(batch.pids)
                logs = progress.total_steps % loop.log_period_steps == 0 or step + 1 == num_steps
                is_update = largest_gradient is not None
                exits = is_update and processes.any(self.shutdown.received)
                is_due = loop.save_period_steps > 0 and progress.total_steps - saved_at >= loop.save_period_steps
                saves = exits or (is_update and is_due)
                if logs or saves or context.device.type == "cpu":
                    loss, losses_read = self.monitor.read()
                    advance(num_unread, note=f"epoch {epoch + 1}/{loop.num_epochs}, loss {loss:.3f}")
                if logs:
                    seconds = time.perf_counter() - logged_at
                    progress.seconds += seconds
                    self._record(
                        "step",
                        epoch=epoch + 1,
                        step=progress.total_steps,
                        loss=loss,
                        losses=losses_read,
                        lr=rate,
                        pairs_per_second=logged_pairs / seconds,
                        waiting_share=prefetcher.take_waited() / seconds,
                        **processes.traffic.take(progress.step - logged_step, seconds),
                        **self.monitor.counts(),
                        seconds=progress.seconds,
                    )
                    logged_at, logged_step, logged_pairs = time.perf_counter(), progress.step, 0
                if saves:
                    self.save()
                    saved_at = progress.total_steps
                if exits:
                    self.shutdown.exit()
        self.monitor.end_epoch(num_steps)

    def evaluate_epoch(self, epoch: int) -> None:
        """Evaluate an epoch, by its moving average if there is one, and save its weights if it is the best so far."""
        state, progress = self.context.state, self.context.state.progress
        with self.shutdown.immediate(), nullcontext() if state.ema is None else state.ema.applied():
            result = self._evaluate("epoch", epoch)
            if result.t2i.r1 > progress.best_r1:
                progress.best_r1, progress.best_epoch = result.t2i.r1, epoch
                self._save_best()
            if self.context.trains:
                self.hooks.call("after_evaluation", result)

    def _evaluate(self, stage: str, epoch: int) -> Evaluation:
        """Evaluate on the selection splits and record the results under `stage`; return that on the first.

        Each process encodes its share.
        """
        started, context, progress = time.perf_counter(), self.context, self.context.state.progress
        encoder = context.encoder(bare=stage == "zero-shot")
        results = []
        for split in (context.val_split, *context.other_splits):
            features = _encode_split(context, encoder, split)
            results.append(context.processes.run_on_rank0(partial(evaluate, encoder, split, features)))
        progress.seconds += time.perf_counter() - started
        label, step = f"epoch {epoch}" if stage == "epoch" else stage, progress.total_steps
        for number, result in enumerate(results, start=1):
            of_mix = f" (data set {number} of the mix)" if number > 1 else ""
            logger.info("%s: R1 %.2f on %s of %s%s", label, 100 * result.t2i.r1, result.split, result.dataset, of_mix)
            if number == 1:
                self._record("evaluation", stage=stage, epoch=epoch, step=step, **result.summary())
            else:
                place = {"stage": f"{stage}-mix-{number}", "epoch": epoch, "step": step}
                self._record("mix-evaluation", **place, **result.summary())
        return results[0]

    def save(self) -> None:
        """Write last.pt."""
        if self.context.processes.is_main_process:
            with self.run.guarded_write():
                save_last(self.run.last, self.context.state, self.context.config)

    def _save_best(self) -> None:
        """Write best.safetensors (what inference needs of the trained tensors), and the heads that belong to it."""
        context, state, run = self.context, self.context.state, self.run
        if not context.processes.is_main_process:
            return
        whole = {name: parameter.detach() for name, parameter in state.model.named_parameters()}
        # A random backbone is in no file: tensors that were trained over it mean nothing without it.
        tensors = trainable_state(state.model) if state.backbone_sha256 else whole
        is_whole = len(tensors) == len(whole)
        with run.guarded_write():
            facts = {
                "epoch": str(state.progress.best_epoch),
                "selected_on": context.val_split.name,
                "selection_r1": f"{state.progress.best_r1:.6f}",
            }
            file = MethodFile(
                config=to_dict(context.config),
                backbone_name=context.backbone_name,
                backbone_sha256=state.backbone_sha256,
                facts=facts,
                architecture=state.model.architecture if is_whole else None,
                known_token_ids=context.tokenizer.known_ids if is_whole else None,
                tensors=tensors,
            )
            save_weights(run.best, file)
            if context.trains:
                heads, epoch = trainable_state(state.objective), state.progress.best_epoch
                save_best_heads(run.path, heads, data_sha256=state.data_sha256, epoch=epoch)

    def end(self) -> None:
        """Log warnings about the result, and record the end of the run."""
        context, progress = self.context, self.context.state.progress
        events = read_events(self.run.path) if context.processes.is_main_process else []
        warnings = warnings_after(events, progress.best_r1, progress.best_epoch)
        for warning in warnings:
            logger.warning("%s", warning)
        self._record(
            "end",
            step=progress.total_steps,
            best_r1=progress.best_r1,
            best_epoch=progress.best_epoch,
            seconds=progress.seconds,
            peak_memory_bytes=peak_memory_bytes(context.device),
            warnings=warnings,
            **({"stopped": self.hooks.stopped} if self.hooks.stopped else {}),
        )

    def close(self) -> None:
        """Close the loggers."""
        self.loggers.close()

    def _open_loggers(self, facts: dict[str, Any]) -> None:
        if self.context.processes.is_main_process:
            config = self.context.config
            self.loggers = Loggers(config.loop.loggers, self.run.path, config, facts)

    def _record(self, event: str, **values: Any) -> None:
        """Write an event to metrics.jsonl and send it to the loggers."""
        self.run.record(event, **values)
        self.loggers.log({"event": event, **values})


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    """Return a generator for the augmentation of a step: a function of the position, so resuming needs no state."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _encode_split(context: TrainingContext, encoder: Encoder, split: Split) -> SplitFeatures:
    """Encode every image and caption of a split once, divided among the processes; all get all features."""
    processes = context.processes
    images, captions = processes.share(len(split.records)), processes.share(len(split.captions))
    image_features = encoder.encode_image(split.image_paths[images.start : images.stop])
    text_features = encoder.encode_text(split.captions[captions.start : captions.stop])
    return SplitFeatures(
        image_features=processes.gather(image_features, len(split.records)),
        text_features=processes.gather(text_features, len(split.captions)),
        image_pids=torch.tensor(split.image_pids),
        caption_pids=torch.tensor(split.caption_pids),
    )
