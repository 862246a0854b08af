"""Loggers: where the events of a run are sent to, beside `metrics.jsonl`.

To add one, write a subclass of `Logger` and decorate it with `register`; `loop.loggers` names it.
"""

from cskt.training.loggers.base import LOGGERS, Logger, Loggers, register, scalars_of
from cskt.training.loggers.mlflow_logger import MLflowLogger
from cskt.training.loggers.tensorboard import TensorBoardLogger
from cskt.training.loggers.wandb_logger import WandbLogger

__all__ = ["LOGGERS", "Logger", "Loggers", "MLflowLogger", "TensorBoardLogger", "WandbLogger", "register", "scalars_of"]
