"""Images encoded on a Ray cluster: actors hold the model, batches go out to them, and what they make comes back.

    driver: names (and bytes, where there is no file) -> batches -> actors: read, decode, encode -> driver: one commit

Files are read where they are encoded, so every node must see the folder under the same path; what comes from shards
travels with its batch. Few batches are under way at a time, so memory does not grow with the gallery. An actor that
dies is started again by Ray and its batches are done anew: a batch has no effect but its answer, and the one committer
is the driver, as in `LocalEngine`. So nothing is lost, and nothing comes twice.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cskt.embed import Encoder
from cskt.gallery.indexing import LocalEngine, Pending, Worked, batched
from cskt.gallery.manifest import ModelSource
from cskt.gallery.ray_cluster import first_line

IN_FLIGHT = 3
"""Batches that wait for an actor or are with it, per actor: one encoded, one read, one on its way."""
CPUS_EACH = 2
"""Of an actor, where nobody says how many actors there are to be and they have no GPU."""
MOST_DEATHS = 5
"""Times that a batch is done anew after its actor has died, before the batch is blamed for it."""
SILENT_SECONDS = 60.0
"""After so long without an answer the log says that the cluster is waited for."""
VERSION = importlib.metadata.version("cskt")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """How many actors there are, and what each has of its node."""

    num_workers: int
    num_cpus: int
    """Of each."""
    device: str


@dataclass(frozen=True)
class Process:
    """Where an actor lives."""

    node: str
    pid: int


@dataclass(frozen=True)
class Introduction:
    """What an actor tells of itself."""

    process: Process
    version: str
    """Of the package."""
    fingerprint: str
    """Of the model."""


@dataclass(frozen=True)
class Call:
    """What an actor has been asked for."""

    actor: int
    about: str
    """In words."""


class RayEngine:
    """Encodes in actors of a Ray cluster; use it inside `ray_cluster.connected`.

    Args:
        model: loaded by every actor.
        fingerprint: of the gallery's encoder.
        images: folder that the actors read from, none where nothing is read from one.
        num_workers: actors; by default one for each GPU of the cluster, else one for every two CPUs.
        device, batch_size, num_threads, compile: see `ModelSource.load`; they hold for each actor.

    Raises:
        ValueError: the cluster has too few CPUs or GPUs; or a node has another version of the package, or another
            model, or does not see the folder.
    """

    def __init__(
        self,
        model: ModelSource,
        fingerprint: str,
        images: Path | None,
        num_workers: int | None = None,
        *,
        device: str | None = None,
        batch_size: int = 128,
        num_threads: int = 4,
        compile: bool = False,
    ) -> None:
        import ray  # noqa: PLC0415  (an extra, and slow to import)

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        share = share_out(nodes, num_workers, device)
        load = partial(model.load, share.device, batch_size=batch_size, num_workers=num_threads, compile=compile)
        worker: Any = ray.remote(_Worker)
        actor = worker.options(
            num_cpus=share.num_cpus,
            num_gpus=int(share.device == "cuda"),
            max_restarts=-1,
            max_task_retries=MOST_DEATHS,
            max_concurrency=2,  # one batch is read while another is encoded
        )
        seen = None if images is None else (images, next((entry.name for entry in os.scandir(images)), None))
        self._batch_size = batch_size
        self._actors: list[Any] = [actor.remote(load, seen) for _ in range(share.num_workers)]
        self._processes: dict[int, Process] = {}
        starting = {
            one.introduce.remote(): Call(number, "loading the model") for number, one in enumerate(self._actors)
        }
        while starting:
            call, told = _next_answer(starting)
            if told.version != VERSION:
                raise ValueError(
                    f"node {told.process.node} has cskt {told.version}, this one {VERSION}; install the same on all"
                )
            if told.fingerprint != fingerprint:
                raise ValueError(
                    f"node {told.process.node} loads another model than the gallery's from {model.path}; put the same"
                    " weights there"
                )
            self._processes[call.actor] = told.process

    def work(self, pending: Iterable[Pending]) -> Iterator[Worked]:
        """Batches as they are done.

        Raises:
            ValueError: the cluster is gone, or a batch has killed its actor again and again.
        """
        batches, free = batched(pending, self._batch_size), [*range(len(self._actors))] * IN_FLIGHT
        running: dict[Any, Call] = {}
        while True:
            while free and (batch := next(batches, None)) is not None:
                number = free.pop(0)
                reference = self._actors[number].work.remote(batch)
                running[reference] = Call(number, f"encoding {batch[0].image_id} and those after it")
            if not running:
                return
            call, (process, worked) = _next_answer(running)
            if process != self._processes[call.actor]:
                logger.warning(
                    "a worker (process %d of %s) died and was started again; nothing is lost, but is there memory"
                    " enough?", self._processes[call.actor].pid, self._processes[call.actor].node,
                )  # fmt: skip
                self._processes[call.actor] = process
            free.append(call.actor)
            yield worked


class _Worker:
    """An actor: the model, and what it does with a batch.

    The model is loaded by the first call and not by the constructor, whose errors Ray wraps into pages of text.
    """

    def __init__(self, load: Callable[[], Encoder], seen: tuple[Path, str | None] | None) -> None:
        self._load, self._seen = load, seen
        self._process = Process(socket.gethostname(), os.getpid())
        self._engine: LocalEngine | None = None
        self._fingerprint = ""
        self._loading = threading.Lock()

    def introduce(self) -> Introduction:
        """Once the model is loaded."""
        self._ready()
        return Introduction(self._process, importlib.metadata.version("cskt"), self._fingerprint)

    def work(self, batch: list[Pending]) -> tuple[Process, Worked]:
        """Read, decode and encode a batch."""
        (worked,) = self._ready().work(batch)
        return self._process, worked

    def _ready(self) -> LocalEngine:
        with self._loading:
            if self._engine is None:
                self._look()
                encoder = self._load()
                self._fingerprint, self._engine = encoder.fingerprint, LocalEngine(encoder)
            return self._engine

    def _look(self) -> None:
        """See that the folder is here, and not merely the empty place where it should have been mounted."""
        if self._seen is not None:
            folder, entry = self._seen
            if not (folder / entry if entry else folder).exists():
                raise ValueError(f"node {self._process.node} does not see {folder}; every node needs it at that path")


def share_out(nodes: Sequence[Mapping[str, float]], num_workers: int | None, device: str | None) -> Share:
    """Actors for a cluster, such that each finds a place.

    Args:
        nodes: what each has: `CPU`, `GPU`.
        num_workers: as asked for.
        device: as asked for: auto (None), cpu, cuda or mps.

    Raises:
        ValueError: there are fewer GPUs or CPUs than actors.
    """
    num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if device is not None and device.startswith("cuda") and (device != "cuda" or not num_gpus):
        raise ValueError(f"--device {device}: Ray gives every worker one of the cluster's {num_gpus} GPUs; use auto")
    if num_gpus and device in (None, "auto", "cuda"):
        count, places, each, device = num_workers or num_gpus, num_gpus, 1, "cuda"
    else:
        count, places = num_workers or max(1, sum(node // CPUS_EACH for node in cpus)), sum(cpus)
        each = max(1, min(cpus, default=0) // math.ceil(count / max(1, len(cpus))))
        device = "cpu" if device in (None, "auto") else device
    if count > places:
        kind = "GPUs; --device cpu uses its CPUs" if device == "cuda" else "CPUs"
        raise ValueError(f"--workers {count}: the cluster has {places} {kind}; give at most {places}")
    return Share(count, each, device)


def _next_answer(running: dict[Any, Call]) -> tuple[Call, Any]:
    """Wait for one of the calls that are under way, and take it out.

    Raises:
        ValueError: in the actor's own words; or it died too often, or the cluster is gone.
    """
    import ray  # noqa: PLC0415  (an extra, and slow to import)

    while not (done := ray.wait(list(running), timeout=SILENT_SECONDS)[0]):
        logger.warning("no answer for %.0f s; has the cluster CPUs, GPUs and memory left?", SILENT_SECONDS)
    call = running.pop(done[0])
    try:
        return call, ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise ValueError(str(error.cause)) from None
        raise
    except ray.exceptions.RayActorError:
        raise ValueError(
            f"{call.about} has ended its worker {MOST_DEATHS + 1} times; is there memory enough? try a smaller"
            " --batch-size"
        ) from None
    except ray.exceptions.RayError as error:
        raise ValueError(f"the Ray cluster is gone ({first_line(error)}); what is stored stays, run it again") from None
