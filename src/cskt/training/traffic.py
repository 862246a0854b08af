"""What passes between the processes of a training, counted: bytes, and the time that exchanging takes."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import torch


class Traffic:
    """What passed between the processes since this was last asked for."""

    def __init__(self) -> None:
        self.clear()

    @contextmanager
    def measured(self, kind: str, num_bytes: int, device: torch.device) -> Generator[None, None, None]:
        """Note an exchange; on CUDA by events in the stream, for which the host does not wait."""
        self._bytes[kind] += num_bytes
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
            return
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started

    def take(self, num_steps: int, seconds: float) -> dict[str, float]:
        """Bytes that a process got from others in a step, by kind, and the share of the time that exchanging took.

        Args:
            num_steps, seconds: since this was last asked for. The device is done with them.
        """
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1e3
        found = {f"{kind}_bytes": num_bytes / num_steps for kind, num_bytes in self._bytes.items()}
        found["exchange_share"] = self._seconds / seconds
        self.clear()
        return found

    def clear(self) -> None:
        """Forget what has passed so far."""
        self._bytes = dict.fromkeys(("gathered", "added_up"), 0)
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
