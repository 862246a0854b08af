"""Program of one process in the tests of several processes, started by `torchrun`.

    torchrun --nproc-per-node N shared_training.py gradients CONFIG OUTPUT [double|weighted]
    torchrun --nproc-per-node N shared_training.py stop STEP train --config CONFIG ...
    torchrun --nproc-per-node N shared_training.py kill STEP train --config CONFIG ...
    torchrun --nproc-per-node N shared_training.py overflow STEP train --config CONFIG ...
    torchrun --nproc-per-node N shared_training.py delete STEP FOLDER train --config CONFIG ...
    torchrun --nproc-per-node N shared_training.py differ KEY VALUE train --config CONFIG ...

CONFIG is a saved RunConfig; what follows STEP is a command line of `cskt`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cskt.cli.main import main
from cskt.config import load_config
from cskt.data.loading import Batch
from cskt.plugins import environment_plugins, load_plugins
from cskt.training import trainer
from cskt.training.context import TrainingContext, prepare
from cskt.training.distributed import process_group
from cskt.training.step import forward_backward

THREADS_LEFT = "threads that may abort the process at its exit:"
"""Printed where a process ends while Gloo's threads, which may hold tensors, still run."""


def gradients(config: str, output: str, kind: str = "") -> None:
    """Save the losses of every batch of an epoch and its gradients as they are just before the optimiser's step."""
    load_plugins(environment_plugins())
    with process_group() as processes:
        context = prepare(load_config(config), processes)
        if kind == "weighted":
            weight_pairs(context)
        if kind == "double":
            torch.Tensor.float = torch.Tensor.double
            in_double(context)
        found = gradients_of_epoch(context)
        found[-1]["buffers"] = dict(context.state.model.named_buffers())
        torch.save(found, f"{output}.{processes.rank}")


def weight_pairs(context: TrainingContext) -> TrainingContext:
    """The same with a weight for each pair, 0 for every fourth."""
    context.state.objective.pair_weights = torch.arange(context.loader.num_pairs, dtype=torch.float32) % 4 / 2
    return context


def in_double(context: TrainingContext) -> TrainingContext:
    """The same with weights in float64; where `Tensor.float` is `Tensor.double`, all is computed so."""
    context.state.model.double()
    context.state.objective.double()
    return context


def gradients_of_epoch(context: TrainingContext) -> list[dict[str, dict[str, torch.Tensor]]]:
    """Per batch of the first epoch its losses and its gradients by name, summed over the processes."""
    found = []
    processes, state = context.processes, context.state
    named = dict([*context.state.model.named_parameters(), *state.objective.named_parameters()])
    for step, batch in enumerate(context.loader.epoch(0, share=processes.share)):
        losses = forward_backward(context, batch, step, torch.Generator().manual_seed(step))
        trained = [parameter for parameter in named.values() if parameter.requires_grad]
        processes.all_reduce_gradients(trained, uneven=bool(state.model.parts))
        held = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
        found.append({"losses": losses, "gradients": held})
        state.optimizer.zero_grad(set_to_none=True)
    return found


def is_last() -> bool:
    """Return True in the process of the highest rank."""
    return int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1


def signalled(number: signal.Signals, step: str, *words: str) -> int:
    """Train by the command line; the last process sends itself a signal behind a step, unless it is a second one."""
    is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    train_step, num_steps = trainer.optimizer_step, itertools.count(1)

    def update(context: TrainingContext, position: int, num_steps_of_epoch: int) -> bool:
        updated = train_step(context, position, num_steps_of_epoch)
        if next(num_steps) == int(step) and is_last() and is_first:
            os.kill(os.getpid(), number)
        return updated

    trainer.optimizer_step = update
    return main(words)


def overflowing(step: str, *words: str) -> int:
    """Train by the command line with a loss scaled by 64; the last process finds infinite gradients in a batch."""
    num_batches = itertools.count(1)

    def add(
        context: TrainingContext, batch: Batch, position: int, generator: torch.Generator, num_steps_of_epoch: int
    ) -> dict[str, torch.Tensor]:
        parts = forward_backward(context, batch, position, generator, num_steps_of_epoch)
        if next(num_batches) == int(step) and is_last():
            next(p.grad for p in context.state.model.parameters() if p.grad is not None).fill_(torch.inf)
        return parts

    trainer.forward_backward = add
    torch.amp.GradScaler = partial(torch.amp.GradScaler, init_scale=64.0)
    return main(words)


def deleting(step: str, folder: str, *words: str) -> int:
    """Train by the command line; the first process deletes the run's folder behind a step."""
    train_step, num_steps = trainer.optimizer_step, itertools.count(1)

    def update(*arguments: Any) -> Any:
        updated = train_step(*arguments)
        if next(num_steps) == int(step) and os.environ["RANK"] == "0":
            shutil.rmtree(folder)
        return updated

    trainer.optimizer_step = update
    return main(words)


def differing(key: str, value: str, *words: str) -> int:
    """Train by the command line; the last process has another idea of what is trained."""
    original = TrainingContext.values_equal_on_all_ranks
    if is_last():
        TrainingContext.values_equal_on_all_ranks = lambda context: original(context) | {key: value}
    return main(words)


def run(kind: str, *words: str) -> int:
    """Do what the command line names; return the exit status."""
    if kind == "gradients":
        gradients(*words)
        return 0
    if kind in ("stop", "kill"):
        return signalled({"stop": signal.SIGTERM, "kill": signal.SIGKILL}[kind], *words)
    return {"overflow": overflowing, "delete": deleting, "differ": differing}[kind](*words)


def gloo_threads() -> list[str]:
    """Return the names of the threads of Gloo that do not end in this process; none where no system lists them."""
    names: list[str] = []
    for _ in range(600):  # the system lists a thread for a moment after its end
        names = [name for path in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := thread_name(path))]
        if not names:
            break
        time.sleep(0.1)
    return names


def thread_name(path: Path) -> str:
    """Return the name of a thread from its file; empty for one that has ended meanwhile."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        sys.exit(run(*sys.argv[1:]))
    finally:
        if threads := gloo_threads():
            print(THREADS_LEFT, threads, file=sys.stderr)
