"""Batches on the device and results on the host, each copied while the device computes."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from cskt.device import to_device


class HasImages(Protocol):
    """A dataclass with images."""

    @property
    def images(self) -> Tensor:
        """Images of a batch, of any shape and type."""


AnyBatch = TypeVar("AnyBatch", bound=HasImages)
Item = TypeVar("Item")


class Prefetcher(Generic[AnyBatch]):
    """Batches with their images on a device, for training and for inference.

    Everything else of a batch stays on the host, such as captions, which are augmented and masked there. For an
    accelerator a thread takes the next batch and copies its images while the current one is in use; on CUDA from pinned
    memory and in a stream for copies, for which the consumer's stream waits and the host does not. On a CPU there is no
    thread. The generator of the batches is closed with the prefetcher.
    """

    def __init__(self, batches: Generator[AnyBatch, None, None], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._stream = _copy_stream(_device_index(device)) if device.type == "cuda" else None
        self._thread = None if device.type == "cpu" else ThreadPoolExecutor(1, "prefetcher", self._begin_thread)
        self._waited_seconds = 0.0

    def __enter__(self) -> Prefetcher[AnyBatch]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._batches.close()

    def __iter__(self) -> Iterator[AnyBatch]:
        """Yield the batches; an error of the generator is raised when its batch is due."""
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

    def take_waited_seconds(self) -> float:
        """Return the seconds that the consumer waited for data since the last call."""
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited

    def _start(self) -> Callable[[], AnyBatch | None]:
        """Start to load the next batch; the function that is returned gives it, or None after the last."""
        return self._next if self._thread is None else self._thread.submit(self._next).result

    def _begin_thread(self) -> None:
        if self._stream is not None:  # every thread begins on GPU 0, and would take memory there
            torch.cuda.set_device(self._stream.device)

    def _next(self) -> AnyBatch | None:
        batch: Any = next(self._batches, None)
        if batch is None or self._thread is None:
            return batch
        with torch.cuda.stream(self._stream):  # None changes nothing
            return dataclasses.replace(batch, images=to_device(batch.images, self._device))


def _device_index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _copy_stream(index: int) -> torch.cuda.Stream:
    """Return the stream of copies to a GPU: one for all prefetchers, as the allocator keeps memory for each stream."""
    return torch.cuda.Stream(torch.device("cuda", index))  # type: ignore[no-untyped-call]


def read_back(results: Iterable[tuple[Item, Tensor]], device: torch.device) -> Iterator[tuple[Item, Tensor]]:
    """Yield (item, tensor) pairs in order, with the tensor on the host.

    On CUDA a tensor is copied to pinned memory in the stream that computes it, and is yielded when the next one has
    been requested: the host waits for a result while the device computes the one after it.

    Args:
        results: pairs whose tensor is on `device`, computed when they are requested.
    """
    if device.type != "cuda":
        yield from ((item, tensor.cpu()) for item, tensor in results)
        return
    copies: deque[tuple[Item, Tensor, torch.cuda.Event]] = deque()

    def finish_oldest() -> tuple[Item, Tensor]:
        item, copy, done = copies.popleft()
        done.synchronize()
        return item, copy

    for item, tensor in results:
        copy, done = tensor.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(device))
        copies.append((item, copy, done))
        if len(copies) > 1:
            yield finish_oldest()
    while copies:
        yield finish_oldest()
