"""Training, from top to bottom: set up, train, evaluate, save."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cskt.config import RunConfig, load_config
from cskt.config.file_names import LAST
from cskt.errors import CsktError, MissingFileError, out_of_memory_errors
from cskt.plugins import load_plugins
from cskt.training.checkpoint import NOTHING_TO_RESUME
from cskt.training.context import prepare
from cskt.training.distributed import process_group
from cskt.training.hooks import Hook
from cskt.training.initial_weights import read_initial_weights
from cskt.training.launch import num_restarts, record_refusal, was_refused
from cskt.training.micro_batch import fit_micro_batch
from cskt.training.run_folder import RunFolder, claimed, fresh_folder, has_checkpoint
from cskt.training.run_hooks import Hooks
from cskt.training.shutdown import ShutdownSignal
from cskt.training.trainer import Trainer
from cskt.utils.arguments import expect
from cskt.utils.console import bar
from cskt.utils.messages import command_text
from cskt.utils.paths import expanded


class Resume(Enum):
    """Handling of a checkpoint in the folder of a run."""

    NEVER = "never"
    """Start a new run; a folder with a run is refused."""
    REQUIRED = "required"
    """Continue the run; its last.pt must exist, and a stop must lie ahead."""
    IF_POSSIBLE = "if possible"
    """Continue the run if the folder has a checkpoint, even if it is finished; otherwise start a new run."""

    @classmethod
    def of(cls, choice: Resume | bool | None) -> Resume:
        """Return the choice, also one that is written as True (required), False (never) or None (if possible)."""
        if isinstance(choice, Resume):
            return choice
        if choice is not None and not isinstance(choice, bool):
            raise TypeError(f"resume is {choice!r}; give True, False, None or a Resume")
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
    """True if the run had ended before this session, which therefore trained nothing: all epochs were completed, a hook
    had stopped it, or a recipe that trains nothing had been evaluated."""


@out_of_memory_errors("use --fit, a smaller --batch-size, --precision bf16 or --checkpoint-activations")
def train(
    config: RunConfig | str | Path,
    folder: str | Path | None = None,
    *,
    resume: Resume | bool | None = False,
    refuse_overlaps: bool = True,
    hooks: Sequence[Hook] = (),
    plugins: str | Path | Iterable[str | Path] = (),
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
        plugins: Python files or modules that register what the config names (data sets, losses, method parts, hooks,
            loggers); their code is run. A run records those that it used.

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
    load_plugins(plugins)
    config = load_config(config)
    stated = None if folder is None else expanded(folder)
    with process_group() as processes, ShutdownSignal() as shutdown, ExitStack() as stack:
        # Set up.
        with shutdown.immediate():
            refuses = refuse_overlaps and choice is not Resume.REQUIRED
            context = prepare(config, processes, refuse_overlaps=refuses)
            if config.loop.fit and config.is_trainable:
                context = fit_micro_batch(context)
        config = context.config  # from here on as it was fitted to the data, which is what is recorded
        processes.check_equal(context.values_equal_on_all_ranks())
        context.state.hooks = calls = Hooks(context, hooks)
        # What can be refused is refused before a folder is created.
        resumes = processes.run_on_rank0(lambda: _resumes(choice, stated))
        initial = None if resumes else read_initial_weights(context)
        run_folder = processes.run_on_rank0(lambda: stated or fresh_folder(config))
        processes.run_on_rank0(lambda: _claim(run_folder, stack))
        run = stack.enter_context(closing(RunFolder(run_folder, writes=processes.is_main_process)))
        trainer = stack.enter_context(closing(Trainer(context, run, shutdown, calls)))
        if resumes:
            trainer.resume(allow_finished=choice is Resume.IF_POSSIBLE)
        else:
            trainer.start(initial)
        shutdown.hint = f"continue with: {command_text('train', '--resume', run_folder)}"

        # Train, evaluate, save.
        progress, last_epoch = context.state.progress, context.num_epochs_to_train
        is_finished = bool(calls.stopped) or (
            progress.epoch >= config.loop.num_epochs if config.is_trainable else progress.best_r1 >= 0
        )
        num_steps = last_epoch * context.loader.steps_per_epoch  # epochs of identity-released differ a little
        with bar("training", num_steps, done=progress.total_steps, shown=processes.is_main_process) as advance:
            for epoch in range(progress.epoch, last_epoch):
                if calls.stopped:
                    break
                trainer.train_epoch(advance)
                is_due = (epoch + 1) % config.loop.eval_period_epochs == 0 or epoch + 1 == last_epoch
                if is_due or calls:
                    trainer.save()  # evaluating may take long, and must not lose what was trained
                calls.call("after_epoch")
                if is_due or calls.stopped:
                    trainer.evaluate_epoch(epoch + 1)
                progress.epoch, progress.step = epoch + 1, 0
                trainer.save()
            if not config.is_trainable and progress.best_r1 < 0:  # the loaded weights are the result
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


def _resumes(choice: Resume, folder: Path | None) -> bool:
    """Return whether the run in a folder is continued; raises CsktError if it must be and there is no such folder."""
    if choice is Resume.REQUIRED:
        if folder is None:
            raise CsktError("resume: name the folder of the run to continue")
        if not folder.is_dir():
            raise MissingFileError(f"{folder / LAST}: no such file{NOTHING_TO_RESUME}")
        return True
    if choice is Resume.NEVER or folder is None:
        return False
    is_of_another_launch = num_restarts() > 0 and was_refused(folder)  # and this one will be refused again
    return has_checkpoint(folder) and not is_of_another_launch
