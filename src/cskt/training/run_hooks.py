"""The hooks of one training: what they see of it, and when they are called."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cskt.config import RunConfig
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.training.context import TrainingContext
from cskt.training.hooks import HOOKS, EarlyStopping, Hook
from cskt.training.pair_losses import pair_losses
from cskt.utils.messages import one_line

VALUE_NAME = re.compile(r"[\w./ -]{1,100}", re.ASCII)


class TrainingRun:
    """A training as its hooks see it."""

    def __init__(self, context: TrainingContext) -> None:
        self._context = context
        self.record: Callable[..., None] | None = None
        """Writes an event, given its kind and its values by keyword; set by the trainer."""
        self.stopped = ""
        """Reason why training ends after the current epoch; empty if it does not."""

    @property
    def config(self) -> RunConfig:
        """Config of the run."""
        return self._context.config

    @property
    def epoch(self) -> int:
        """Current epoch, from 1."""
        return self._context.state.progress.epoch + 1

    @property
    def best_epoch(self) -> int:
        """Epoch, from 1, with the best R1 on the selection split so far; 0 before the first evaluation."""
        return self._context.state.progress.best_epoch

    @property
    def train_split(self) -> Split:
        """Training pairs: caption i of `captions` belongs to the image `caption_image_ids[i]`."""
        return self._context.train_split

    def encoder(self) -> Encoder:
        """Return an encoder with the current weights; in `after_evaluation`, with those that were evaluated."""
        return self._context.encoder()

    @property
    def pair_weights(self) -> Tensor | None:
        """[num_pairs] float32, the weight of each training pair in the losses; None if all count alike.

        Assign numbers of at least 0 (a tensor, an array or a list; booleans as well), in the order of
        `train_split.captions`. They hold from the next step on, in all processes, until others are assigned, and are
        saved in last.pt. The losses become weighted means, or sums, over the pairs of a batch: see
        `cskt.losses.reduced`. A pair of weight 0 remains a negative to the others. Reading gives a copy.

        Assigning raises a CsktError if the shape is another, if a number is negative or not finite, if all are 0, or if
        a loss of the run takes no weights.
        """
        weights = self._context.state.objective.pair_weights
        return None if weights is None else weights.clone()

    @pair_weights.setter
    def pair_weights(self, weights: ArrayLike | Tensor | None) -> None:
        objective, num_pairs = self._context.state.objective, self._context.loader.num_pairs
        if weights is None:
            objective.pair_weights = None
            return
        try:
            given = torch.as_tensor(weights).detach().to("cpu", torch.float32, copy=True)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CsktError(f"run.pair_weights: {one_line(error)}; give a number for each training pair") from None
        if given.shape != (num_pairs,):
            raise CsktError(
                f"run.pair_weights has shape {list(given.shape)}; give [{num_pairs}], a number for each training pair"
            )
        if wrong := (~((given >= 0) & given.isfinite())).nonzero().flatten().tolist():
            raise CsktError(f"run.pair_weights[{wrong[0]}] is {given[wrong[0]]:g}; give finite numbers of at least 0")
        if not given.any():
            raise CsktError("run.pair_weights are all 0, so nothing would be learned; run.stop ends the training")
        objective.pair_weights = given

    def check_takes_pair_weights(self) -> None:
        """Raise CsktError if a loss of the run takes no weights of pairs; for `Hook.check`, before training begins."""
        self._context.state.objective.check_takes_pair_weights()

    def pair_losses(self, names: str | Sequence[str]) -> dict[str, Tensor]:
        """Return the losses of every training pair with the current weights; see `cskt.training.pair_losses`.

        It is a forward pass over all pairs. With several processes the first computes it alone.

        Args:
            names: of losses in `loss.weights`; one of weight 0 there is not trained with.

        Returns:
            [num_pairs] float32 for each name, in the order of `train_split.captions`.

        Raises:
            CsktError: a loss is not in the config, or has no value for each pair (`mlm`).
        """
        return pair_losses(self._context, names)

    def log(self, values: Mapping[str, float]) -> None:
        """Record numbers by name, as an event `hook` of metrics.jsonl and in the loggers.

        Raises:
            CsktError: a name is not 1 to 100 letters, digits, spaces and `_ - . /`, or a value is not a finite number.
        """
        found = {name: float(value) for name, value in values.items()}
        if wrong := next((name for name in found if not VALUE_NAME.fullmatch(name)), None):
            raise CsktError(f"hook: the name '{wrong}' of a value must be 1 to 100 letters, digits, spaces and _ - . /")
        if wrong := next((name for name, value in found.items() if not math.isfinite(value)), None):
            raise CsktError(f"hook: the value '{wrong}' is {found[wrong]}; log finite numbers")
        assert self.record is not None
        self.record("hook", epoch=self.epoch, step=self._context.state.progress.total_steps, values=found)

    def stop(self, reason: str) -> None:
        """End the training after the current epoch, which is evaluated and saved; the first reason counts."""
        self.stopped = self.stopped or reason or "a hook stopped the training"


class Hooks:
    """Hooks of a run by name: early stopping, those of the config, and those given in Python by their class.

    They act in the main process, which logs and saves; what they decide (`stop`, `pair_weights`) holds in all
    processes.

    Args:
        extra: hooks given in Python.

    Raises:
        CsktError: `extra` has something that is no hook, or two of one class; a hook cannot act in this training.
    """

    def __init__(self, context: TrainingContext, extra: Sequence[Hook] = ()) -> None:
        self._processes, self._objective = context.processes, context.state.objective
        self.run = TrainingRun(context)
        config = context.config
        self._hooks: dict[str, Hook] = {}
        if config.loop.patience_epochs is not None:
            self._hooks["early stopping"] = EarlyStopping(config.loop.patience_epochs)
        self._hooks |= {name: HOOKS[name](**fields) for name, fields in config.hooks.items()}
        for hook in extra:
            name = type(hook).__name__
            if not isinstance(hook, Hook):
                raise CsktError(f"hooks: {hook!r} is not an instance of cskt.training.hooks.Hook")
            if name in self._hooks:
                raise CsktError(f"hooks: two hooks of class {name}; give one of each class")
            self._hooks[name] = hook
        for hook in self._hooks.values():
            hook.check(self.run)

    def __bool__(self) -> bool:
        return bool(self._hooks)

    @property
    def stopped(self) -> str:
        """Reason why training ends after the current epoch; empty if it does not."""
        return self.run.stopped

    def call(self, moment: str, *arguments: Any) -> None:
        """Call a method of all hooks, such as `before_epoch`, with the run and further arguments."""
        if not self._hooks:
            return

        before = self._objective.pair_weights

        def act() -> tuple[str, bool, Tensor | None]:
            for hook in self._hooks.values():
                getattr(hook, moment)(self.run, *arguments)
            after = self._objective.pair_weights
            return self.run.stopped, after is not before, None if after is before else after

        self.run.stopped, has_new_weights, weights = self._processes.run_on_rank0(act)
        if has_new_weights:
            self._objective.pair_weights = weights

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all hooks by name, and what they decided for the run; empty without hooks."""
        if not self._hooks:
            return {}
        weights = self._objective.pair_weights
        return {
            "stopped": self.run.stopped,
            "states": {name: hook.state_dict() for name, hook in self._hooks.items()},
            **({} if weights is None else {"pair_weights": weights}),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a `state_dict`.

        Raises:
            CsktError: the run was trained with other hooks.
        """
        states = saved.get("states", {})
        if list(states) != list(self._hooks):
            before, now = ", ".join(states) or "none", ", ".join(self._hooks) or "none"
            raise CsktError(
                f"the run was trained with other hooks (before: {before}; now: {now}); resume it with the same, in"
                " Python with cskt.train(config, folder, hooks=[...], resume=True)"
            )
        self.run.stopped = str(saved.get("stopped", ""))
        self.run.pair_weights = saved.get("pair_weights")
        for name, state in states.items():
            self._hooks[name].load_state_dict(state)
