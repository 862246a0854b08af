"""Weights & Biases, by its own client: it reads WANDB_MODE, WANDB_PROJECT and its other variables."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cskt.config import RunConfig, to_dict
from cskt.training.loggers.base import Logger, register, remembered_id, scalars_of
from cskt.utils.messages import require

PROJECT = "cskt"
"""Project, if WANDB_PROJECT names none."""


@register("wandb")
class WandbLogger(Logger):
    """A run of Weights & Biases, named after the run folder; its local files are in `wandb/` of that folder.

    A resumed run continues it: `wandb.id` holds its id. Curves are drawn over our own steps (`step`), because the
    service refuses steps that a resumed run repeats.
    """

    def __init__(self, folder: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, config, facts)
        import wandb  # noqa: PLC0415  (an extra, and slow to import)

        run_id, _ = remembered_id(folder, "wandb", lambda: secrets.token_hex(4))
        self._exit_code = 1
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=f"{folder.resolve().parent.name}/{folder.resolve().name}",
            id=run_id,
            resume="allow",
            dir=folder,
            config={**to_dict(config), "facts": dict(facts)},
            allow_val_change=True,
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    @classmethod
    def check(cls) -> None:
        """See `Logger.check`."""
        require("wandb", "wandb")

    def log(self, event: Mapping[str, Any]) -> None:
        """Log the numbers of an event."""
        self._run.log({"step": event.get("step", 0), **dict(scalars_of(event))})
        if event["event"] == "end":
            self._exit_code = 0

    def close(self) -> None:
        """Finish the run, as failed if it did not end."""
        self._run.finish(exit_code=self._exit_code)
