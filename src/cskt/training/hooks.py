"""Hooks: code of a user that training calls between epochs. It can log values and stop the training.

A hook is given to `cskt.train(config, folder, hooks=[...])`, or registered by a plug-in and named in a config:
`hooks.<name>.<field>`. Early stopping (`loop.patience_epochs`) is one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from cskt.config import RunConfig, validate_value
from cskt.data.records import Split
from cskt.embed import Encoder
from cskt.errors import CsktError
from cskt.evaluation.evaluate import Evaluation
from cskt.plugins import Registry
from cskt.utils.messages import nearest

if TYPE_CHECKING:
    from cskt.training.context import TrainingContext

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

    def log(self, values: Mapping[str, float]) -> None:
        """Record numbers by name, as an event `hook` of metrics.jsonl and in the loggers.

        Raises:
            CsktError: a name has other characters than letters, digits and `_ - . /`, or a value is no number.
        """
        found = {name: float(value) for name, value in values.items()}
        if wrong := next((name for name in found if not VALUE_NAME.fullmatch(name)), None):
            raise CsktError(f"hook: the name '{wrong}' of a value must consist of letters, digits and _ - . /")
        if wrong := next((name for name, value in found.items() if not math.isfinite(value)), None):
            raise CsktError(f"hook: the value '{wrong}' is {found[wrong]}; log finite numbers")
        assert self.record is not None
        self.record("hook", epoch=self.epoch, step=self._context.state.progress.total_steps, values=found)

    def stop(self, reason: str) -> None:
        """End the training after the current epoch, which is evaluated and saved; the first reason counts."""
        self.stopped = self.stopped or reason or "a hook stopped the training"


class Hook:
    """Code that training calls between epochs, in the main process; a subclass overrides what it needs.

    For `hooks.<name>.<field>` in a config a subclass is a dataclass whose fields have defaults, and `register` names
    it. A hook that remembers something between epochs has `state_dict` and `load_state_dict`, so that a resumed run
    equals an uninterrupted one. An exception ends the training.

    Example:
        >>> from dataclasses import dataclass
        >>> from cskt.training.hooks import Hook, register
        >>> @register("good_enough")
        ... @dataclass
        ... class GoodEnough(Hook):
        ...     r1: float = 0.9
        ...     def after_evaluation(self, run, evaluation):
        ...         run.log({"missing": self.r1 - evaluation.t2i.r1})
        ...         if evaluation.t2i.r1 >= self.r1:
        ...             run.stop(f"R1 is {evaluation.t2i.r1:.2f}")
    """

    def before_epoch(self, run: TrainingRun) -> None:
        """Act before the first step of an epoch."""

    def after_epoch(self, run: TrainingRun) -> None:
        """Act after the last step of an epoch, before its evaluation."""

    def after_evaluation(self, run: TrainingRun, evaluation: Evaluation) -> None:
        """Act after an epoch was evaluated on the selection split, with the result on it."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint saves: numbers, texts, tensors, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


HOOKS: Registry[type[Hook]] = Registry("hook", "cskt.hooks")
"""Hook by its name in a config."""
Kind = TypeVar("Kind", bound=type[Hook])


def register(name: str) -> Callable[[Kind], Kind]:
    """Return a decorator that makes a hook known to configurations: `hooks.<name>.<field>`.

    Raises:
        CsktError: the name is taken or malformed, or what is decorated is no `Hook` with the fields of a dataclass.
    """

    def add(kind: Kind) -> Kind:
        is_hook = isinstance(kind, type) and issubclass(kind, Hook) and dataclasses.is_dataclass(kind)
        if not (name.isidentifier() and is_hook):
            raise CsktError(f"hook '{name}': give a name of letters, digits and _, and a dataclass that extends Hook")
        return HOOKS.register(name, kind)

    return add


@dataclasses.dataclass
class EarlyStopping(Hook):
    """Stops when no epoch has been better for `patience_epochs`; its state is the progress of the run."""

    patience_epochs: int

    def after_evaluation(self, run: TrainingRun, evaluation: Evaluation) -> None:
        """Stop if the best epoch is too long ago."""
        if run.epoch - run.best_epoch >= self.patience_epochs:
            run.stop(f"no better R1 than that of epoch {run.best_epoch} (loop.patience_epochs {self.patience_epochs})")


def check_hooks(config: RunConfig) -> RunConfig:
    """Return a config with the fields of its hooks as their types; raise CsktError for an unknown hook or field."""
    checked = {}
    for name, given in config.hooks.items():
        kinds, known = get_type_hints(HOOKS[name], include_extras=True), _fields(HOOKS[name])
        if unknown := next((field for field in given if field not in known), None):
            raise CsktError(f"unknown key 'hooks.{name}.{unknown}': {nearest(unknown, known)}")
        checked[name] = {
            field: validate_value(kinds[field], value, f"hooks.{name}.{field}") for field, value in given.items()
        }
    return dataclasses.replace(config, hooks=checked)


def _fields(kind: type[Hook]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]


class Hooks:
    """Hooks of a run by name: early stopping, those of the config, and those given in Python by their class.

    They act in the main process; what they decide holds in all.

    Args:
        extra: hooks given in Python.

    Raises:
        CsktError: `extra` has something that is no hook, or two of one class.
    """

    def __init__(self, context: TrainingContext, extra: Sequence[Hook] = ()) -> None:
        self._processes = context.processes
        self.run = TrainingRun(context)
        config = context.config
        self._hooks: dict[str, Hook] = {}
        if config.loop.patience_epochs is not None:
            self._hooks["early stopping"] = EarlyStopping(config.loop.patience_epochs)
        self._hooks |= {name: HOOKS[name](**fields) for name, fields in config.hooks.items()}
        for hook in extra:
            name = type(hook).__name__
            if not isinstance(hook, Hook) or name in self._hooks:
                raise CsktError(f"hooks: give instances of cskt.training.hooks.Hook, of one class each, not {hook!r}")
            self._hooks[name] = hook

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

        def act() -> str:
            for hook in self._hooks.values():
                getattr(hook, moment)(self.run, *arguments)
            return self.run.stopped

        self.run.stopped = self._processes.run_on_rank0(act)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all hooks by name, and whether they stopped the run; empty without hooks."""
        if not self._hooks:
            return {}
        return {
            "stopped": self.run.stopped,
            "states": {name: hook.state_dict() for name, hook in self._hooks.items()},
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
        for name, state in states.items():
            self._hooks[name].load_state_dict(state)
