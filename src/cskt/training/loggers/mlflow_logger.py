"""MLflow, by its own client: it reads MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and its other variables."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cskt.config import RunConfig, flat_values
from cskt.training.loggers.base import Logger, register, remembered_id, scalars_of
from cskt.utils.messages import require

EXPERIMENT = "cskt"
"""Experiment, if MLFLOW_EXPERIMENT_NAME names none."""
MAX_PARAMETERS = 100
"""Parameters that MLflow takes in one call."""


@register("mlflow")
class MLflowLogger(Logger):
    """A run of MLflow, named after the run folder, with the config as parameters and the facts as tags.

    A resumed run continues it: `mlflow.id` holds its id.
    """

    def __init__(self, folder: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, config, facts)
        from mlflow import MlflowClient  # noqa: PLC0415  (an extra, and slow to import)
        from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415

        self._client, self._metric, self._status = MlflowClient(), Metric, "FAILED"
        self._id, is_new = remembered_id(folder, "mlflow", self._create)
        self._client.update_run(self._id, status="RUNNING")
        if is_new:
            parameters = [Param(key, str(value)) for key, value in flat_values(config).items()]
            for start in range(0, len(parameters), MAX_PARAMETERS):
                self._client.log_batch(self._id, params=parameters[start : start + MAX_PARAMETERS])
        self._client.log_batch(self._id, tags=[RunTag(f"cskt.{key}", str(value)) for key, value in facts.items()])

    @classmethod
    def check(cls) -> None:
        """See `Logger.check`."""
        require("mlflow", "mlflow")

    def log(self, event: Mapping[str, Any]) -> None:
        """Log the numbers of an event."""
        now, step = time.time_ns() // 1_000_000, event.get("step", 0)
        self._client.log_batch(self._id, [self._metric(tag, value, now, step) for tag, value in scalars_of(event)])
        if event["event"] == "end":
            self._status = "FINISHED"

    def close(self) -> None:
        """End the run, as failed if it did not end."""
        self._client.set_terminated(self._id, self._status)

    def _create(self) -> str:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        name, folder = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT), self.folder.resolve()
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                experiment_id = self._client.create_experiment(name)
            except MlflowException:  # another process has just created it
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment is not None:
            experiment_id = experiment.experiment_id
        run = self._client.create_run(experiment_id, run_name=f"{folder.parent.name}/{folder.name}")
        return str(run.info.run_id)
