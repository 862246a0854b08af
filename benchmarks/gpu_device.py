"""Peak speed of a device, timing of work on it, and places where the host waits for it."""

from __future__ import annotations

import itertools
import platform
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


def facts(device: torch.device) -> dict[str, Any]:
    """Return the facts that the results depend on."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9}
    return found


def ceilings(device: torch.device, size: int) -> dict[str, float]:
    """Measure TFLOP/s of a bfloat16 matrix product and GB/s of a copy, counting read and written bytes."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    product = median_seconds(lambda: torch.mm(left, right, out=out), device, calls=10)
    source = torch.empty(64 * size * size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source), device, calls=10)
    return {"matrix_tflops": 2 * size**3 / product / 1e12, "copy_gb_per_second": 2 * source.numel() / copy / 1e9}


def waits_for_device(call: Callable[[], object], device: torch.device) -> list[str]:
    """Return the places where the host waits for the device, as PyTorch reports them; there should be none."""
    if device.type != "cuda":
        return []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    places = (f"{warning.filename}:{warning.lineno}" for warning in caught if "synchron" in str(warning.message))
    return sorted(set(places))


def kernels(call: Callable[[], object], device: torch.device, steps: int) -> dict[str, float]:
    """Return milliseconds per step of the slowest kernels and of all kernels; `call` runs a number of steps."""
    on_device = device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if on_device else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profile:
        call()
        wait(device)
    milliseconds: Counter[str] = Counter()
    for event in profile.key_averages():
        if (event.device_type.name == "CUDA") == on_device:  # the host's operations would count their kernels again
            microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
            milliseconds[event.key[:200]] += microseconds / 1e3 / steps
    shown = [("all", milliseconds.total()), *milliseconds.most_common(20)]
    return {name: round(value, 3) for name, value in shown}


class Clock:
    """Events in the stream of the device, read at the end; on a CPU, the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Record an event."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def intervals(self) -> list[float]:
        """Return the seconds between successive events."""
        wait(self._device)
        pairs = itertools.pairwise(self._marks)
        if self._device.type == "cuda":
            return [before.elapsed_time(after) / 1e3 for before, after in pairs]
        return [after - before for before, after in pairs]


def median_seconds(call: Callable[[], object], device: torch.device, *, calls: int) -> float:
    """Return seconds per call: the median of five groups of `calls`, after a warm-up group."""
    clock = Clock(device)
    for _ in range(6):
        clock.mark()
        for _ in range(calls):
            call()
    clock.mark()
    return statistics.median(clock.intervals()[1:]) / calls


def wait(device: torch.device) -> None:
    """Wait until all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
