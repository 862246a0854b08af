"""`RayEngine`: images encoded by the actors of a Ray cluster.

    driver: names (and bytes of images that are not files) -> batches -> actors: read, decode, encode -> driver: commit

Actors read files themselves, so every node must have the folder under the same path; images of shards travel with
their batch, in one direction. Only a few batches are under way, so memory does not grow with the gallery. If an actor
dies, its batches go to the others, and Ray restarts it where resources are free. A batch has no effect but its result,
and only the driver commits, as with `LocalEngine`: no image is lost, and none is stored twice.
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
from cskt.errors import CsktError, file_system_errors
from cskt.gallery.engines.ray_cluster import first_line, python_error
from cskt.gallery.indexing.encoding import LocalEngine, Pending, Processed, batched, bytes_held

BATCHES_PER_ACTOR = 3
"""Batches under way per actor: one is encoded, one is read, one is sent."""
CPUS_PER_ACTOR = 2
"""Without GPUs, if the number of actors is not given."""
MAX_DEATHS = 5
"""Actors that may die with one batch, and restarts of an actor that may fail, before that is an error."""
OTHER_PROGRAM = ("ModuleNotFoundError", "ImportError", "AttributeError")
"""Starts of errors of a worker that lacks what the driver sends; any other error in its start is a bug."""
SILENT_SECONDS = 60.0
"""Time without a result after which a warning is logged."""
VERSION = importlib.metadata.version("cskt")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ActorPlan:
    """Number of actors, and the resources of each."""

    num_workers: int
    num_cpus: int
    """CPUs of each worker."""
    device: str


@dataclass(frozen=True)
class ActorInfo:
    """Description of a started actor."""

    node: str
    pid: int
    version: str
    """Version of cskt."""
    fingerprint: str
    """Fingerprint of the model."""


@dataclass(frozen=True)
class ActorCall:
    """A request to an actor."""

    actor: int
    batch: Sequence[Pending] = ()
    """Images to encode; empty for a request to load the model and describe itself."""
    num_deaths: int = 0
    """Actors that died with this batch."""


class RayEngine:
    """Encodes in actors of a Ray cluster; use it inside `ray_cluster.connected`.

    The actors start with the first image that is to be encoded, and end with this object.

    Args:
        model: loaded by every actor.
        fingerprint: of the gallery's encoder.
        images: folder from which the actors read; None if images are not files.
        num_workers: number of actors; by default one for each GPU of the cluster, else one for every two CPUs.
        options: of each actor's encoder.
    """

    def __init__(
        self,
        model: ModelSource,
        fingerprint: str,
        images: Path | None,
        num_workers: int | None = None,
        options: EncodeOptions = EncodeOptions(),  # noqa: B008  (immutable)
    ) -> None:
        import ray  # noqa: PLC0415  (an extra, and slow to import)

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        self._plan = plan_actors(nodes, num_workers, None if options.device is None else str(options.device))
        self._load = partial(load_source, model, replace(options, device=self._plan.device))
        self._folder: tuple[Path, Path] | None = None
        if images is not None:
            # With an entry of the folder: on another node, the path may be an empty mount point.
            with file_system_errors(images):
                self._folder = images, next((Path(entry.path) for entry in os.scandir(images)), images)
        self._model, self._fingerprint, self._batch_size = model.path, fingerprint, options.batch_size
        self._actors: list[Any] = []
        self._infos: dict[int, ActorInfo] = {}

    def work(self, pending: Iterable[Pending]) -> Iterator[list[Processed]]:
        """Yield the results batch by batch, in the order in which they are finished."""
        batches = batched(pending, self._batch_size, bytes_held)
        first = next(batches, None)
        if first is None:
            return
        if not self._actors:
            self._start()
        running: dict[Any, ActorCall] = {}
        free = [*range(len(self._actors))] * BATCHES_PER_ACTOR
        restarting: dict[int, int] = {}  # dead actor -> entries in `free` that it gets back
        retries: deque[ActorCall] = deque()
        new = (ActorCall(-1, batch) for batch in itertools.chain([first], batches))
        while True:
            while free and (call := retries.popleft() if retries else next(new, None)) is not None:
                number = free.pop(0)
                work = self._actors[number].work.options(max_task_retries=0)
                with _ray_errors():
                    running[work.remote(call.batch)] = replace(call, actor=number)
            if not retries and not any(call.batch for call in running.values()):
                return
            if not running:
                raise CsktError(f"every worker has ended {MAX_DEATHS + 1} times as it started; is there memory enough?")
            call, result = _next_result(running)
            number = call.actor
            if call.batch and result is not None:
                free.append(number)
                yield _with_files(result, call.batch)
            elif call.batch:
                retries.append(_retry(call))
                if number not in restarting:
                    restarting[number] = free.count(number)
                    free = [other for other in free if other != number]
                    running[self._actors[number].describe.remote()] = ActorCall(number)
                    logger.warning(
                        "a worker (process %d of %s) died; nothing is lost, but is there memory enough?",
                        self._infos[number].pid, self._infos[number].node,
                    )  # fmt: skip
                restarting[number] += 1
            else:
                slots = restarting.pop(number)
                if result is not None:
                    self._infos[number] = result
                    free += [number] * slots

    def _start(self) -> None:
        """Start the actors, and check that each has this version and the gallery's model."""
        import ray  # noqa: PLC0415  (as above)

        worker: Any = ray.remote(_Worker).options(
            num_cpus=self._plan.num_cpus,
            num_gpus=int(self._plan.device == "cuda"),
            max_restarts=-1,
            max_task_retries=MAX_DEATHS,  # of descriptions, which therefore wait for an actor that is restarted
            max_concurrency=2,  # one batch is read while another is encoded
        )
        self._actors = [worker.remote(self._load, self._folder) for _ in range(self._plan.num_workers)]
        try:
            starting = {actor.describe.remote(): ActorCall(number) for number, actor in enumerate(self._actors)}
            while starting:
                call, info = _next_result(starting)
                if info is None:
                    raise CsktError(
                        f"loading the model has ended a worker {MAX_DEATHS + 1} times; is there memory enough?"
                    )
                if info.version != VERSION:
                    raise CsktError(f"node {info.node} has cskt {info.version}, this one {VERSION}; install the same")
                if info.fingerprint != self._fingerprint:
                    raise CsktError(
                        f"node {info.node} loads another model than the gallery's from {self._model}; put the same"
                        " weights there"
                    )
                self._infos[call.actor] = info
        except BaseException:
            self._actors = []
            raise


class _Worker:
    """An actor.

    The first call loads the model, not the constructor, whose errors Ray wraps into pages of text.
    """

    def __init__(self, load: Callable[[], Encoder], folder: tuple[Path, Path] | None) -> None:
        self._load, self._folder = load, folder
        self._node = socket.gethostname()
        self._engine: LocalEngine | None = None
        self._fingerprint = ""
        self._loading = threading.Lock()

    def describe(self) -> ActorInfo:
        """Load the model and describe this actor."""
        self._loaded()
        return ActorInfo(self._node, os.getpid(), importlib.metadata.version("cskt"), self._fingerprint)

    def work(self, batch: Sequence[Pending]) -> list[Processed]:
        """Read, decode and encode a batch; the driver has the files already."""
        (results,) = self._loaded().work(batch)
        return [replace(image, pending=replace(image.pending, source=b""), data=b"") for image in results]

    def _loaded(self) -> LocalEngine:
        with self._loading:
            if self._engine is None:
                if self._folder is not None and not self._folder[1].exists():
                    raise CsktError(
                        f"node {self._node} does not see {self._folder[0]}; every node needs it at that path"
                    )  # fmt: skip
                try:
                    encoder = self._load()
                except CsktError as error:
                    raise CsktError(f"node {self._node}: {error}") from None
                self._fingerprint, self._engine = encoder.fingerprint, LocalEngine(encoder)
            return self._engine


def plan_actors(nodes: Sequence[Mapping[str, float]], num_workers: int | None, device: str | None) -> ActorPlan:
    """Return a plan of actors all of which fit on the cluster, whose nodes have resources `CPU` and `GPU`."""
    num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if device is not None and device.startswith("cuda") and (device != "cuda" or not num_gpus):
        raise CsktError(f"--device {device}: Ray gives every worker one of the cluster's {num_gpus} GPUs; use auto")
    on_gpus = num_gpus > 0 and device in (None, "auto", "cuda")
    places = num_gpus if on_gpus else sum(cpus)
    count = num_workers or (num_gpus if on_gpus else max(1, sum(node // CPUS_PER_ACTOR for node in cpus)))
    if places == 0:
        raise CsktError("the cluster has no CPUs for workers; see `ray start --num-cpus`")
    if count > places:
        kind = "GPUs; --device cpu uses its CPUs" if on_gpus else "CPUs"
        raise CsktError(f"--workers {count}: the cluster has {places} {kind}; give at most {places}")
    if on_gpus:
        return ActorPlan(count, 1, "cuda")
    each = max(each for each in range(1, max(cpus) + 1) if sum(node // each for node in cpus) >= count)
    return ActorPlan(count, each, "cpu" if device in (None, "auto") else str(device))


def _with_files(results: Sequence[Processed], batch: Sequence[Pending]) -> list[Processed]:
    """Return results with the files of the batch from which they were made."""
    files = {item.image_id: item.source for item in batch if item.kept and isinstance(item.source, bytes)}
    return [replace(image, data=files.get(image.pending.image_id, b"")) for image in results]


def _retry(call: ActorCall) -> ActorCall:
    """Return the request for a batch whose actor died."""
    if call.num_deaths == MAX_DEATHS:
        raise CsktError(
            f"{MAX_DEATHS + 1} workers ended while {call.batch[0].image_id} to {call.batch[-1].image_id} were with"
            " them; is there memory enough? try a smaller --batch-size"
        )
    return replace(call, num_deaths=call.num_deaths + 1)


def _next_result(running: dict[Any, ActorCall]) -> tuple[ActorCall, Any]:
    """Wait for one of the running calls and remove it; the result is None if its actor died."""
    import ray  # noqa: PLC0415  (as above)

    with _ray_errors():
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
def _ray_errors() -> Iterator[None]:
    """Turn Ray's errors, which fill pages, into one line."""
    import ray  # noqa: PLC0415  (as above)

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CsktError):
            raise CsktError(str(error.cause)) from None
        raise
    except ray.exceptions.RayError as error:
        if cause := python_error(error):
            if not cause.startswith(OTHER_PROGRAM):
                raise
            raise CsktError(f"a worker cannot start: {cause}; is the same cskt on every node?") from None
        raise CsktError(f"the Ray cluster is gone ({first_line(error)}); what is stored stays, run it again") from None
