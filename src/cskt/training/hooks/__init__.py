"""Hooks: code that training calls between epochs. It can log, weight pairs, and stop the training.

A hook is given to `cskt.train(config, folder, hooks=[...])`, or registered, here or by a plug-in, and named in a
config: `hooks.<name>.<field>`. Early stopping (`loop.patience_epochs`) is one.
`cskt.training.run_hooks` calls them.
"""

from cskt.training.hooks.base import HOOKS, EarlyStopping, Hook, check_hooks, register
from cskt.training.hooks.noise_division import NoiseDivision

__all__ = ["HOOKS", "EarlyStopping", "Hook", "NoiseDivision", "check_hooks", "register"]
