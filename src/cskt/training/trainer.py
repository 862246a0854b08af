"""`Trainer`: starts or resumes a run; its epochs of steps, evaluations, checkpoints and events."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from cskt.config import to_dict
from cskt.data.prefetcher import Prefetcher
from cskt.data.records import Split
from cskt.device import peak_memory_bytes
from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.evaluation.evaluate import Evaluation, SplitFeatures, evaluate
from cskt.evaluation.results import EPOCH, STEP_0, ZERO_SHOT
from cskt.model.io.native import MethodFile, save_weights
from cskt.training.checkpoint import load_last, save_last, set_aside
from cskt.training.checks import warnings_after, warnings_before
from cskt.training.context import TrainingContext
from cskt.training.events import read_events
from cskt.training.initial_weights import InitialWeights, save_best_heads
from cskt.training.loggers import Loggers
from cskt.training.monitor import StepMonitor
from cskt.training.optim import learning_rate, set_learning_rate
from cskt.training.run_folder import RunFolder
from cskt.training.run_hooks import Hooks
from cskt.training.shutdown import ShutdownSignal
from cskt.training.state import trainable_state
from cskt.training.step import forward_backward, generator_of, optimizer_step
from cskt.utils.console import Advance
from cskt.utils.messages import command_text
from cskt.utils.modules import named_tensors

logger = logging.getLogger(__name__)


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
        self.shutdown.hint = f"nothing is saved yet; the same command starts again ({run.path} may be deleted)"
        again = command_text("train", "--resume", run.path)
        logger.info("run folder: %s (if interrupted: %s)", run.path, again)
        warnings = warnings_before(context.config, context.val_split, context.state.backbone_sha256)
        for warning in warnings:
            logger.warning("%s", warning)
        facts = context.start_event() | ({} if initial is None else initial.start_event())
        self._open_loggers(facts)
        self._record("start", **facts, warnings=warnings)
        with self.shutdown.immediate():
            evaluates = context.config.loop.evaluate_before and context.config.is_trainable
            if evaluates:
                self._evaluate(ZERO_SHOT, 0)
            if initial is not None:
                initial.apply(context)
            if evaluates:
                self._evaluate(STEP_0, 0)
        self.save()

    def resume(self, *, allow_finished: bool) -> None:
        """Restore the state of last.pt; `allow_finished`: `loop.stop_after_epochs` may be reached already."""
        context, run, loop = self.context, self.run, self.context.config.loop
        source = load_last(run.last, context.state, context.config)
        progress, stop = context.state.progress, loop.stop_after_epochs
        is_past = stop is not None and stop <= progress.epoch < loop.num_epochs
        if is_past and context.config.is_trainable and not allow_finished:
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
        """Make the remaining steps of the current epoch, after the hooks if it has not begun."""
        context, loop = self.context, self.context.config.loop
        state, processes, progress = context.state, context.processes, context.state.progress
        if not progress.step:
            with self.shutdown.immediate():  # everything is saved
                self.hooks.call("before_epoch")
        epoch, num_steps = progress.epoch, context.loader.num_steps(progress.epoch)
        optim = context.config.optim
        logged_at, logged_step, logged_pairs = time.perf_counter(), progress.step, 0
        counted_at, saved_at = logged_at, progress.total_steps
        processes.traffic.clear()  # evaluating exchanged features
        # Reading a loss makes the host wait for the device: on an accelerator it is done now and then.
        with Prefetcher(context.loader.epoch(epoch, progress.step, processes.share), context.device) as prefetcher:
            for step, batch in enumerate(prefetcher, start=progress.step):
                rate = learning_rate(epoch, optim, loop.num_epochs, step=step, num_steps=num_steps)
                set_learning_rate(state.optimizer, rate)
                generator = generator_of(context.config.seed, epoch, step)
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
                if logs or saves:
                    now = time.perf_counter()
                    progress.seconds, counted_at = progress.seconds + now - counted_at, now
                if logs:
                    seconds = now - logged_at
                    self._record(
                        "step",
                        epoch=epoch + 1,
                        step=progress.total_steps,
                        loss=loss,
                        losses=losses_read,
                        lr=rate,
                        pairs_per_second=logged_pairs / seconds,
                        waiting_share=prefetcher.take_waited_seconds() / seconds,
                        **processes.traffic.take(progress.step - logged_step, seconds),
                        **self.monitor.counts(),
                        seconds=progress.seconds,
                    )
                    counted_at = logged_at = time.perf_counter()
                    logged_step, logged_pairs = progress.step, 0
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
            result = self._evaluate(EPOCH, epoch)
            if result.t2i.r1 > progress.best_r1:
                progress.best_r1, progress.best_epoch = result.t2i.r1, epoch
                self._save_best()
            if self.context.config.is_trainable:
                self.hooks.call("after_evaluation", result)

    def _evaluate(self, stage: str, epoch: int) -> Evaluation:
        """Evaluate on the selection splits and record the results under `stage`; return that on the first.

        Each process encodes its share.
        """
        started, context, progress = time.perf_counter(), self.context, self.context.state.progress
        encoder = context.encoder(bare=stage == ZERO_SHOT)
        results = []
        for split in (context.val_split, *context.other_splits):
            features = _encode_split(context, encoder, split)
            results.append(context.processes.run_on_rank0(partial(evaluate, encoder, split, features)))
        progress.seconds += time.perf_counter() - started
        label, step = f"epoch {epoch}" if stage == EPOCH else stage, progress.total_steps
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
        """Write best.safetensors, and the heads that belong to it."""
        context, state, run = self.context, self.context.state, self.run
        if not context.processes.is_main_process:
            return
        with run.guarded_write():
            save_weights(run.best, self._method_file(state.progress.best_epoch, state.progress.best_r1))
            if context.config.is_trainable:
                heads, epoch = trainable_state(state.objective), state.progress.best_epoch
                save_best_heads(run.path, heads, data_sha256=state.data_sha256, epoch=epoch)

    def _save_last_epoch(self, epoch: int, r1: float) -> None:
        """Write last.safetensors; with a moving average of the weights, that of these."""
        ema = self.context.state.ema
        with self.run.guarded_write(), nullcontext() if ema is None else ema.applied():
            save_weights(self.run.last_epoch, self._method_file(epoch, r1))

    def _method_file(self, epoch: int, r1: float) -> MethodFile:
        """Return what inference needs of the trained tensors as they are now."""
        context, state = self.context, self.context.state
        whole = {name: value.detach() for name, value in named_tensors(state.model).items()}
        # A random backbone is in no file: tensors that were trained over it mean nothing without it.
        tensors = trainable_state(state.model) if state.backbone_sha256 else whole
        is_whole = len(tensors) == len(whole)
        return MethodFile(
            config=to_dict(context.config),
            backbone_name=context.backbone_name,
            backbone_sha256=state.backbone_sha256,
            facts={"epoch": str(epoch), "selected_on": context.val_split.name, "selection_r1": f"{r1:.6f}"},
            architecture=state.model.architecture if is_whole else None,
            known_token_ids=context.tokenizer.known_ids if is_whole else None,
            tensors=tensors,
        )

    def end(self) -> None:
        """Log warnings about the result, and record the end of the run."""
        context, progress = self.context, self.context.state.progress
        events = read_events(self.run.path) if context.processes.is_main_process else []
        warnings = []
        if self.hooks.stopped or progress.epoch >= context.config.loop.num_epochs:  # all epochs are trained
            people, continues = context.val_split.num_ids, context.config.init_from is not None
            warnings = warnings_after(
                events, progress.best_r1, progress.best_epoch, num_people=people, is_continued=continues
            )
        for warning in warnings:
            logger.warning("%s", warning)
        evaluations = [event for event in events if event["event"] == "evaluation" and event["stage"] == EPOCH]
        last: dict[str, Any] = {}
        if context.config.keeps_last_epoch and evaluations:
            last = {"last_epoch": evaluations[-1]["epoch"], "last_r1": evaluations[-1]["t2i"]["r1"]}
            self._save_last_epoch(last["last_epoch"], last["last_r1"])
        self._record(
            "end",
            step=progress.total_steps,
            best_r1=progress.best_r1,
            best_epoch=progress.best_epoch,
            **last,
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
