"""`Prefetcher`: every batch in order, the time waited, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest
import torch

from cskt.data import prefetcher
from cskt.data.prefetcher import Prefetcher
from cskt.errors import CsktError
from cskt.types import Batch

CPU = torch.device("cpu")
ELSEWHERE = torch.device("meta")
"""In place of an accelerator: tensors can be copied to it, and have a shape."""
SECONDS = 0.5


def make_batch(number: int) -> Batch:
    return Batch(
        images=torch.full((2, 3, 4, 2), number, dtype=torch.uint8),
        caption_ids=torch.full((2, 5), number),
        pids=torch.tensor([0, 1]),
        image_ids=torch.tensor([number, number + 1]),
    )


class Clock:
    """Clock that advances only while a batch is loaded or a step is made, in place of `time`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.was_read = threading.Event()

    def perf_counter(self) -> float:
        self.was_read.set()
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(prefetcher, "time", clock)
    return clock


class Loader:
    """Three batches, each of which takes `SECONDS` of a clock; records how many were started."""

    def __init__(self, clock: Clock | None = None, fails_at: int | None = None) -> None:
        self.clock, self.fails_at = clock, fails_at
        self.num_started = 0
        self.has_loaded = [threading.Event() for _ in range(3)]
        self.closed = False

    def epoch(self) -> Generator[Batch, None, None]:
        try:
            for number in range(3):
                self.num_started += 1
                if number == self.fails_at:
                    raise CsktError("4.jpg: no such image")
                if self.clock is not None:
                    if number == 0:
                        assert self.clock.was_read.wait(60), "the consumer waits for the first batch"
                    self.clock.seconds += SECONDS
                self.has_loaded[number].set()
                yield make_batch(number)
        finally:
            self.closed = True


def test_on_the_cpu_batches_pass_through() -> None:
    batches = [make_batch(number) for number in range(3)]
    loader = (batch for batch in batches)
    before = threading.active_count()
    with Prefetcher(loader, CPU) as feed:
        for fed, batch in zip(feed, batches, strict=True):
            assert fed is batch and threading.active_count() == before


def test_on_an_accelerator_only_images_are_copied() -> None:
    with Prefetcher(Loader().epoch(), ELSEWHERE) as feed:
        fed = list(feed)
    assert [batch.image_ids.tolist() for batch in fed] == [[0, 1], [1, 2], [2, 3]]
    for number, batch in enumerate(fed):
        assert batch.images.device == ELSEWHERE
        assert batch.images.shape == (2, 3, 4, 2) and batch.images.dtype == torch.uint8
        assert torch.equal(batch.caption_ids, make_batch(number).caption_ids)
        assert batch.pids.device == batch.image_ids.device == CPU


def test_on_an_accelerator_one_batch_is_prefetched() -> None:
    loader = Loader()
    with Prefetcher(loader.epoch(), ELSEWHERE) as feed:
        batches = iter(feed)
        next(batches)
        assert loader.has_loaded[1].wait(60)
        assert loader.num_started == 2, "the next and no more"


@pytest.mark.parametrize("device", [CPU, ELSEWHERE])
def test_waiting_time_is_measured(clock: Clock, device: torch.device) -> None:
    with Prefetcher(Loader(clock).epoch(), device) as feed:
        next(iter(feed))
        assert feed.take_waited_seconds() == SECONDS
        assert feed.take_waited_seconds() == 0.0


def test_on_an_accelerator_a_long_step_hides_the_loader(clock: Clock) -> None:
    loader = Loader(clock)
    with Prefetcher(loader.epoch(), ELSEWHERE) as feed:
        batches = iter(feed)
        next(batches)
        feed.take_waited_seconds()
        assert loader.has_loaded[1].wait(60), "while the step is made"
        next(batches)
        assert feed.take_waited_seconds() == 0.0


def test_a_step_is_not_counted_as_waiting(clock: Clock) -> None:
    with Prefetcher(Loader().epoch(), CPU) as feed:
        for _ in feed:
            clock.seconds += SECONDS
        assert feed.take_waited_seconds() == 0.0


@pytest.mark.parametrize("device", [CPU, ELSEWHERE])
def test_an_error_of_the_loader_is_raised_at_its_batch(device: torch.device) -> None:
    before, loader, seen = threading.active_count(), Loader(fails_at=2), 0
    with pytest.raises(CsktError, match=r"4\.jpg: no such image"), Prefetcher(loader.epoch(), device) as feed:
        for _ in feed:
            seen += 1
    assert seen == 2 and loader.closed and threading.active_count() == before


@pytest.mark.parametrize("device", [CPU, ELSEWHERE])
def test_an_early_exit_closes_the_loader_and_ends_the_thread(device: torch.device) -> None:
    before, loader = threading.active_count(), Loader()
    with Prefetcher(loader.epoch(), device) as feed:
        for _ in feed:
            break
    assert loader.closed and loader.num_started <= 2 and threading.active_count() == before


@pytest.mark.parametrize("device", [CPU, ELSEWHERE])
def test_a_failing_step_leaves_nothing_behind(device: torch.device) -> None:
    before, loader = threading.active_count(), Loader()
    with pytest.raises(RuntimeError, match="out of memory"), Prefetcher(loader.epoch(), device) as feed:
        for _ in feed:
            raise RuntimeError("out of memory")
    assert loader.closed and threading.active_count() == before


@pytest.mark.parametrize("device", [CPU, ELSEWHERE])
def test_an_epoch_without_batches(device: torch.device) -> None:
    with Prefetcher((batch for batch in list[Batch]()), device) as feed:
        assert list(feed) == []
