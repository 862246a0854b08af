"""Images encoded on a Ray cluster: actors hold the model, batches go out to them, and what they make comes back.

    driver: names (and bytes, where there is no file) -> batches -> actors: read, decode, encode -> driver: one commit

Files are read where they are encoded, so every node must see the folder under the same path; what comes from shards
travels with its batch, one way. Few batches are under way at a time, so memory does not grow with the gallery. The
batches of an actor that dies go to the others, and Ray starts it again where there is room: a batch has no effect but
its answer, and the one committer is the driver, as with `LocalEngine`. So nothing is lost, and nothing comes twice.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cskt.embed import EncodeOptions, Encoder, ModelSource, load_source
from cskt.errors import CsktError
from cskt.gallery.engines.ray_cluster import first_line, python_error
from cskt.gallery.indexing.encoding import LocalEngine, Pending, Processed, batched, bytes_held

IN_FLIGHT = 3
"""Batches that wait for an actor or are with it, per actor: one encoded, one read, one on its way."""
CPUS_EACH = 2
"""Of an actor, where nobody says how many actors there are to be and they have no GPU."""
MOST_DEATHS = 5
"""Times that a batch may lose its actor, or an actor die as it starts again, before it is blamed for it."""
SILENT_SECONDS = 60.0
"""After so long without an answer the log says that the cluster is waited for."""
VERSION = importlib.metadata.version("cskt")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorPlan:
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
    batch: Sequence[Pending] = ()
    """To encode; none where it is to load the model and introduce itself."""
    num_deaths: int = 0
    """Of actors that had this batch before."""


class RayEngine:
    """Encodes in actors of a Ray cluster; use it inside `ray_cluster.connected`.

    The actors start with the first image that there is to encode, and end with this object.

    Args:
        model: loaded by every actor.
        fingerprint: of the gallery's encoder.
        images: folder that the actors read from, none where nothing is read from one.
        num_workers: actors; by default one for each GPU of the cluster, else one for every two CPUs.
        device, batch_size, num_threads, compile: see `EncodeOptions`; they hold for each actor.

    Raises:
        CsktError: the cluster has too few CPUs or GPUs.
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
        self._plan = plan_actors(nodes, num_workers, device)
        options = EncodeOptions(self._plan.device, batch_size=batch_size, num_workers=num_threads, compile=compile)
        self._load = partial(load_source, model, options)
        self._seen = None if images is None else (images, next((entry.name for entry in os.scandir(images)), None))
        self._model, self._fingerprint, self._batch_size = model.path, fingerprint, batch_size
        self._actors: list[Any] = []
        self._processes: dict[int, Process] = {}

    def work(self, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        """Batches as they are done.

        Raises:
            CsktError: a node has another version of the package, or another model, or does not see the folder; the
                cluster is gone; or a batch has killed its actor again and again.
        """
        batches = batched(pending, self._batch_size, bytes_held)
        first = next(batches, None)
        if first is None:
            return
        if not self._actors:
            self._start()
        running: dict[Any, Call] = {}
        free = [*range(len(self._actors))] * IN_FLIGHT
        away: dict[int, int] = {}  # dead actors, until Ray has started them again -> how often they were free
        again: deque[Call] = deque()
        new = (Call(-1, batch) for batch in itertools.chain([first], batches))
        while True:
            while free and (call := again.popleft() if again else next(new, None)) is not None:
                number = free.pop(0)
                work = self._actors[number].work.options(max_task_retries=0)
                with _in_one_line():
                    running[work.remote(call.batch)] = replace(call, actor=number)
            if not again and not any(call.batch for call in running.values()):
                return
            if not running:
                raise CsktError(
                    f"every worker has ended {MOST_DEATHS + 1} times as it started; is there memory enough?"
                )
            call, answer = _next_answer(running)
            number = call.actor
            if call.batch and answer is not None:
                free.append(number)
                yield _with_bytes(answer, call.batch)
            elif call.batch:
                again.append(_to_be_done_again(call))
                if number not in away:
                    away[number] = free.count(number)
                    free = [other for other in free if other != number]
                    running[self._introduce(number)] = Call(number)
                    logger.warning(
                        "a worker (process %d of %s) died; nothing is lost, but is there memory enough?",
                        self._processes[number].pid, self._processes[number].node,
                    )  # fmt: skip
                away[number] += 1
            else:
                slots = away.pop(number)
                if answer is not None:
                    self._processes[number] = answer.process
                    free += [number] * slots

    def _start(self) -> None:
        """Start the actors and see that they are what they should be."""
        import ray  # noqa: PLC0415  (as above)

        worker: Any = ray.remote(_Worker)
        actor = worker.options(
            num_cpus=self._plan.num_cpus,
            num_gpus=int(self._plan.device == "cuda"),
            max_restarts=-1,
            max_task_retries=MOST_DEATHS,  # of introductions, which so wait for an actor that is started again
            max_concurrency=2,  # one batch is read while another is encoded
        )
        self._actors = [actor.remote(self._load, self._seen) for _ in range(self._plan.num_workers)]
        try:
            self._meet()
        except BaseException:
            self._actors = []
            raise

    def _meet(self) -> None:
        """See that every actor is what it should be."""
        starting = {self._introduce(number): Call(number) for number in range(len(self._actors))}
        while starting:
            call, told = _next_answer(starting)
            if told is None:
                raise CsktError(
                    f"loading the model has ended a worker {MOST_DEATHS + 1} times; is there memory enough?"
                )
            if told.version != VERSION:
                raise CsktError(
                    f"node {told.process.node} has cskt {told.version}, this one {VERSION}; install the same on all"
                )
            if told.fingerprint != self._fingerprint:
                raise CsktError(
                    f"node {told.process.node} loads another model than the gallery's from {self._model}; put the same"
                    " weights there"
                )
            self._processes[call.actor] = told.process

    def _introduce(self, number: int) -> Any:
        """Ask an actor for its introduction, which waits until it has started."""
        return self._actors[number].introduce.remote()


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

    def work(self, batch: Sequence[Pending]) -> list[Processed]:
        """Read, decode and encode a batch."""
        (images,) = self._ready().work(batch)
        return _without_bytes(images)

    def _ready(self) -> LocalEngine:
        with self._loading:
            if self._engine is None:
                self._look()
                try:
                    encoder = self._load()
                except ValueError as error:
                    raise CsktError(f"node {self._process.node}: {error}") from None
                self._fingerprint, self._engine = encoder.fingerprint, LocalEngine(encoder)
            return self._engine

    def _look(self) -> None:
        """See that the folder is here, and not merely the empty place where it should have been mounted."""
        if self._seen is not None:
            folder, entry = self._seen
            if not (folder / entry if entry else folder).exists():
                raise CsktError(f"node {self._process.node} does not see {folder}; every node needs it at that path")


def plan_actors(nodes: Sequence[Mapping[str, float]], num_workers: int | None, device: str | None) -> ActorPlan:
    """Actors for a cluster, such that each finds a place.

    Args:
        nodes: what each has: `CPU`, `GPU`.
        num_workers: as asked for.
        device: as asked for: auto (None), cpu, cuda or mps.

    Raises:
        CsktError: there are fewer GPUs or CPUs than actors.
    """
    num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if device is not None and device.startswith("cuda") and (device != "cuda" or not num_gpus):
        raise CsktError(f"--device {device}: Ray gives every worker one of the cluster's {num_gpus} GPUs; use auto")
    on_gpus = num_gpus > 0 and device in (None, "auto", "cuda")
    places = num_gpus if on_gpus else sum(cpus)
    count = num_workers or (num_gpus if on_gpus else max(1, sum(node // CPUS_EACH for node in cpus)))
    if places == 0:
        raise CsktError("the cluster has no CPUs for workers; see `ray start --num-cpus`")
    if count > places:
        kind = "GPUs; --device cpu uses its CPUs" if on_gpus else "CPUs"
        raise CsktError(f"--workers {count}: the cluster has {places} {kind}; give at most {places}")
    if on_gpus:
        return ActorPlan(count, 1, "cuda")
    each = max(each for each in range(1, max(cpus) + 1) if sum(node // each for node in cpus) >= count)
    return ActorPlan(count, each, "cpu" if device in (None, "auto") else str(device))


def _without_bytes(images: Sequence[Processed]) -> list[Processed]:
    """Return results without the files, which the driver has."""
    return [replace(image, pending=replace(image.pending, source=b""), data=b"") for image in images]


def _with_bytes(images: Sequence[Processed], batch: Sequence[Pending]) -> list[Processed]:
    """Return results with the files of the batch from which they were made."""
    files = {item.image_id: item.source for item in batch if item.kept and isinstance(item.source, bytes)}
    return [replace(image, data=files.get(image.pending.image_id, b"")) for image in images]


def _to_be_done_again(call: Call) -> Call:
    """A batch whose actor has died.

    Raises:
        CsktError: it has ended as many as it may.
    """
    if call.num_deaths == MOST_DEATHS:
        raise CsktError(
            f"{MOST_DEATHS + 1} workers ended while {call.batch[0].image_id} to {call.batch[-1].image_id} were with"
            " them; is there memory enough? try a smaller --batch-size"
        )
    return replace(call, num_deaths=call.num_deaths + 1)


def _next_answer(running: dict[Any, Call]) -> tuple[Call, Any]:
    """Wait for one of the calls that are under way, and take it out; the answer is None where its actor has died.

    Raises:
        CsktError: in the actor's own words; or it cannot start, or the cluster is gone.
    """
    import ray  # noqa: PLC0415  (an extra, and slow to import)

    with _in_one_line():
        while not (done := ray.wait(list(running), timeout=SILENT_SECONDS)[0]):
            logger.warning("no answer for %.0f s; has the cluster CPUs, GPUs and memory left?", SILENT_SECONDS)
        call = running.pop(done[0])
        try:
            return call, ray.get(done[0])
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            if python_error(error):
                raise
            return call, None


@contextmanager
def _in_one_line() -> Iterator[None]:
    """Tell in a line what Ray tells in pages.

    Raises:
        CsktError: in the actor's own words; or it cannot start, or the cluster is gone.
    """
    import ray  # noqa: PLC0415  (as above)

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ValueError):
            raise CsktError(str(error.cause)) from None
        raise
    except ray.exceptions.RayError as error:
        if cause := python_error(error):
            raise CsktError(f"a worker cannot start: {cause}; is the same cskt on every node?") from None
        raise CsktError(f"the Ray cluster is gone ({first_line(error)}); what is stored stays, run it again") from None
