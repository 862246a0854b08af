"""Batches on the training device, each brought there while the step before it runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch

from cskt.data.images import to_device
from cskt.types import Batch


class Feed:
    """The batches of a loader with their images on the training device.

        with Feed(loader.epoch(epoch, step), device) as feed:
            for batch in feed: ...

    Images alone travel. Captions, identities and image numbers stay on the host, where captions are augmented and
    masked and the watch looks at identities; `cskt.data.images.to_device` sends what is left of them.

    On a CPU nothing is added to the loader. For an accelerator a thread takes the next batch from the loader and copies
    its images while the current batch is computed with; on CUDA from pinned memory and in a stream of its own, which
    the consumer's stream waits for and the host does not.

    Args:
        batches: what a loader yields; closed with the feed.
        device: where the images shall be.
    """

    def __init__(self, batches: Generator[Batch, None, None], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._thread = None if device.type == "cpu" else ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._waited_seconds = 0.0

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._batches.close()

    def __iter__(self) -> Iterator[Batch]:
        """
        Raises:
            Whatever the loader raises, when its batch is asked for.
        """
        finish = self._start()
        while True:
            started = time.perf_counter()
            batch = finish()
            self._waited_seconds += time.perf_counter() - started
            if batch is None:
                return
            self._hand_over(batch)
            finish = self._start()
            yield batch

    def take_waited(self) -> float:
        """Seconds that the consumer has stood still for data since this was last asked."""
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited

    def _start(self) -> Callable[[], Batch | None]:
        """Begin with the next batch; what is returned gives it, or none after the last."""
        return self._next if self._thread is None else self._thread.submit(self._next).result

    def _next(self) -> Batch | None:
        batch = next(self._batches, None)
        if batch is None or self._thread is None:
            return batch
        with torch.cuda.stream(self._stream):  # none changes nothing
            return dataclasses.replace(batch, images=to_device(batch.images, self._device))

    def _hand_over(self, batch: Batch) -> None:
        if self._stream is None:
            return
        consumer = torch.cuda.current_stream(self._device)
        consumer.wait_stream(self._stream)  # before the next copy is started, so it waits for this one alone
        batch.images.record_stream(consumer)  # their memory is not used again before the consumer is done with it
