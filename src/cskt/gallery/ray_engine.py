"""Images encoded on a Ray cluster: actors hold the model, batches go out to them, and what they make comes back.

    driver: names (and bytes, where there is no file) -> batches -> actors: read, decode, encode -> driver: one commit

Files are read where they are encoded, so every node must see the folder under the same path; what comes from shards
travels with its batch. Few batches are under way at a time, so memory does not grow with the gallery. An actor that
dies is started again by Ray and its batches are done anew: a batch has no effect but its answer, and the one committer
is the driver, as in `LocalEngine`. So nothing is lost, and nothing comes twice.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cskt.extras import require
from cskt.gallery.indexing import LocalEngine, Pending, Worked, batched
from cskt.gallery.manifest import ModelSource

IN_FLIGHT = 3
"""Batches that wait for an actor or are with it, per actor: one encoded, one read, one on its way."""
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class ClusterOptions:
    """How the work is spread."""

    address: str | None = None
    """Of a running cluster, `auto` for the one of this machine; none starts one here, for this run alone."""
    num_workers: int | None = None
    """Actors; by default one for each GPU of the cluster, else one for every two CPUs."""


class RayEngine:
    """Encodes in actors of a Ray cluster; use it inside `connected`.

    Args:
        model: loaded by every actor.
        fingerprint: of the gallery's encoder; an actor with another is refused.
        images: folder that the actors read from, none where nothing is read from one.
        options: how the work is spread.
        device, batch_size, num_workers: see `ModelSource.load`; they hold for each actor.
    """

    def __init__(
        self,
        model: ModelSource,
        fingerprint: str,
        images: Path | None,
        options: ClusterOptions,
        *,
        device: str | None = None,
        batch_size: int = 128,
        num_workers: int = 4,
    ) -> None:
        import ray  # noqa: PLC0415  (an extra, and slow to import)

        self._batch_size = batch_size
        cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]
        num_gpus, num_cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 1))
        on_gpus = num_gpus > 0 and device in (None, "auto", "cuda")
        count = options.num_workers or (num_gpus if on_gpus else max(num_cpus // 2, 1))
        worker: Any = ray.remote(_Worker)
        actor = worker.options(
            num_gpus=1 if on_gpus else 0,
            num_cpus=max(num_cpus // count, 1),
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=2,  # one batch is read while another is encoded
        )
        load = (model, "cuda" if on_gpus else "cpu" if device in (None, "auto") else device, batch_size, num_workers)
        self._actors: list[Any] = [actor.remote(load, images) for _ in range(count)]
        for found in _answers([one.fingerprint.remote() for one in self._actors]):
            if found != fingerprint:
                raise ValueError("a worker loads another model than the gallery's; put the same weights on every node")

    def work(self, pending: Iterable[Pending]) -> Iterator[Worked]:
        """Batches as they are done.

        Raises:
            ValueError: the cluster is gone.
        """
        import ray  # noqa: PLC0415

        batches, running = batched(pending, self._batch_size), {}
        free = self._actors * IN_FLIGHT
        while True:
            while free and (batch := next(batches, None)) is not None:
                actor = free.pop(0)
                running[actor.work.remote(batch)] = actor
            if not running:
                return
            with _cluster_errors():
                (done, *_), _ = ray.wait(list(running))
            free.append(running.pop(done))
            (worked,) = _answers([done])
            yield worked


class _Worker:
    """An actor: the model, and what it does with a batch."""

    def __init__(self, load: tuple[ModelSource, str, int, int], images: Path | None) -> None:
        model, device, batch_size, num_workers = load
        if images is not None and not images.is_dir():
            raise ValueError(f"node {socket.gethostname()} does not see {images}; every node needs it at that path")
        self._encoder = model.load(device, batch_size=batch_size, num_workers=num_workers, compile=False)

    def fingerprint(self) -> str:
        """Of the model."""
        return self._encoder.fingerprint

    def work(self, batch: list[Pending]) -> Worked:
        """Read, decode and encode a batch."""
        (worked,) = LocalEngine(self._encoder).work(batch)
        return worked


@contextmanager
def connected(options: ClusterOptions) -> Iterator[None]:
    """A connection to a Ray cluster, or a cluster of this machine that hears nobody else, for the `with` block.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """
    require("ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray  # noqa: PLC0415  (an extra, and slow to import)

    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    alone: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": LOCALHOST}
    if options.address is None:
        ray.init(**quiet, **alone)
    else:
        try:
            _reach(options.address)
            ray.init(address=options.address, **quiet)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"no Ray cluster at {options.address}: {reason}; see `ray start`") from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Ray itself would try for minutes where nobody answers.

    Raises:
        OSError, ValueError: nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=5).close()


def _answers(references: list[Any]) -> list[Any]:
    import ray  # noqa: PLC0415

    with _cluster_errors():
        return ray.get(references)


@contextmanager
def _cluster_errors() -> Iterator[None]:
    """What Ray raises, as one line: the worker's own words, or that the cluster is gone."""
    import ray  # noqa: PLC0415

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise ValueError(_words(error.cause)) from None
    except ray.exceptions.ActorDiedError as error:
        told = str(error)
        if "ValueError: " in told:  # in its constructor
            raise ValueError(told.rsplit("ValueError: ", 1)[1].splitlines()[0]) from None
        raise ValueError(f"a worker cannot be started: {_words(error)}") from None
    except ray.exceptions.RayError as error:
        raise ValueError(f"the Ray cluster is gone ({_words(error)}); what is stored stays, run it again") from None


def _words(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
