"""Batches on the training device, each copied there while the step before it runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from cskt.data.images import to_device
from cskt.types import Batch


class Prefetcher:
    """Batches of a loader with their images on the training device.

    Captions, identities and image ids stay on the host, where captions are augmented and masked. For an accelerator a
    thread takes the next batch from the loader and copies its images during the current step; on CUDA from pinned
    memory and in a stream of its own, for which the consumer's stream waits and the host does not. On a CPU there is no
    thread. The loader is closed with the prefetcher.
    """

    def __init__(self, batches: Generator[Batch, None, None], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._thread = None if device.type == "cpu" else ThreadPoolExecutor(1, thread_name_prefix="prefetcher")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._waited_seconds = 0.0

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._batches.close()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; an error of the loader is raised when its batch is due."""
        finish = self._start()
        while True:
            started = time.perf_counter()
            batch = finish()
            self._waited_seconds += time.perf_counter() - started
            if batch is None:
                return
            if self._stream is not None:
                consumer = torch.cuda.current_stream(self._device)
                consumer.wait_stream(self._stream)  # before the next copy is started, so it waits for this one alone
                batch.images.record_stream(consumer)  # their memory is reused only after the consumer is done with it
            finish = self._start()
            yield batch

    def take_waited(self) -> float:
        """Return the seconds that the consumer waited for data since the last call."""
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited

    def _start(self) -> Callable[[], Batch | None]:
        """Start to load the next batch; the function that is returned gives it, or None after the last."""
        return self._next if self._thread is None else self._thread.submit(self._next).result

    def _next(self) -> Batch | None:
        batch = next(self._batches, None)
        if batch is None or self._thread is None:
            return batch
        with torch.cuda.stream(self._stream):  # None changes nothing
            return dataclasses.replace(batch, images=to_device(batch.images, self._device))
