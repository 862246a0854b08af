"""Interface and registry of hooks; early stopping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from cskt.config import RunConfig, validate_value
from cskt.errors import CsktError
from cskt.evaluation.evaluate import Evaluation
from cskt.plugins import Registry
from cskt.utils.messages import nearest

if TYPE_CHECKING:
    from cskt.training.run_hooks import TrainingRun


class Hook:
    """Code that training calls between epochs; a subclass overrides what it needs.

    Where several processes train, hooks are made in all and called in the first one. The others wait for it, for at
    most 30 minutes.

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

    def check(self, run: TrainingRun) -> None:
        """Check that the hook can act in this training, before it starts or is resumed; called in every process.

        Raises:
            CsktError: something is missing, such as a loss in the config or an installed package.
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
