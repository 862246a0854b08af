"""CUDA played on a CPU: devices are accepted, every call is recorded, and what needs an initialised CUDA says so.

Tensors stay on the CPU, so programs run through and compute the right numbers. The functions below behave as those of
torch in the order of their calls: `reset_peak_memory_stats("cuda:0")`, for example, fails before `torch.cuda.init`,
and a copy from memory that is not pinned, or not contiguous, waits for the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cskt.data import prefetcher

CPU = torch.device("cpu")
NUM_DEVICES = 2


class Call(NamedTuple):
    """A call that matters for the order of work: its name, the device, and the stream and thread that made it."""

    name: str
    device: str = ""
    stream: str = "default"
    thread: str = "MainThread"


class FakeCuda:
    """Record of what a program did with CUDA; `installed` makes one."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.is_initialised = False
        self.stream = "default"
        self.pinned: set[int] = set()

    def names(self) -> list[str]:
        """Return the names of the calls in order."""
        return [call.name for call in self.calls]

    def record(self, name: str, device: object = "") -> None:
        """Record a call in the current stream."""
        self.calls.append(Call(name, str(device), self.stream, threading.current_thread().name))

    def init(self) -> None:
        """Initialise CUDA, as the first use of a device without a number does."""
        if not self.is_initialised:
            self.is_initialised = True
            self.record("init")

    def need(self, device: object) -> None:
        """Raise the error that the allocator's C++ code raises; a device without a number initialises CUDA."""
        if torch.device(str(device)).index is None:
            self.init()
        if not self.is_initialised:
            raise RuntimeError(f"Invalid device argument {device}: did you call init?")


class FakeStream:
    """Stream of `FakeCuda`."""

    def __init__(self, cuda: FakeCuda, device: object, name: str) -> None:
        self.cuda, self.device, self.name = cuda, device, name

    def wait_stream(self, other: FakeStream) -> None:
        """Let this stream wait for another one."""
        self.cuda.record(f"{self.name} waits for {other.name}", self.device)


class FakeEvent:
    """Event of `FakeCuda`, with a number for the record."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.number = cuda, 0

    def record(self, stream: FakeStream) -> None:
        """Record the event in a stream."""
        self.number = 1 + self.cuda.names().count("event")
        self.cuda.record("event", stream.device)

    def synchronize(self) -> None:
        """Let the host wait for the event."""
        self.cuda.record(f"wait for event {self.number}")


class _OnCpu(TorchFunctionMode):
    """Makes tensors on the CPU that are asked for on CUDA; in the thread that enters it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        return func(*_elsewhere(args), **dict(zip(kwargs or {}, _elsewhere((kwargs or {}).values()), strict=True)))


def _is_cuda(value: object) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


def _elsewhere(values: Any) -> tuple[Any, ...]:
    return tuple(CPU if _is_cuda(value) else value for value in values)


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Return a context in which two CUDA devices seem to be there."""
    cuda, to = FakeCuda(), Tensor.to

    def copy(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device = next((value for value in (*args, *kwargs.values()) if _is_cuda(value)), None)
        if device is not None:
            cuda.init()
            is_direct = tensor.data_ptr() in cuda.pinned and tensor.is_contiguous()
            waits = not is_direct or not kwargs.get("non_blocking")
            cuda.record("copy and wait" if waits else "copy", device)
        elif kwargs.get("non_blocking"):
            cuda.record("copy back")
        kwargs.pop("non_blocking", None)  # below the mode torch calls this function again, which records it once
        return to(tensor, *_elsewhere(args), **dict(zip(kwargs, _elsewhere(kwargs.values()), strict=True)))

    def copy_to_host(tensor: Tensor) -> Tensor:
        cuda.record("read")
        return to(tensor, CPU)

    def pin(tensor: Tensor) -> Tensor:
        cuda.init()
        pinned = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype).copy_(tensor)
        cuda.pinned.add(pinned.data_ptr())
        return pinned

    def stream(device: object = None) -> FakeStream:
        cuda.init()
        return FakeStream(cuda, device, "copies")

    @contextmanager
    def using(chosen: FakeStream | None) -> Iterator[None]:
        before, cuda.stream = cuda.stream, cuda.stream if chosen is None else chosen.name
        try:
            yield
        finally:
            cuda.stream = before

    def needing(value: Any) -> Callable[[object], Any]:
        def of_device(device: object = "cuda") -> Any:
            cuda.need(device)
            return value

        return of_device

    replaced = {
        "is_available": lambda: True, "device_count": lambda: NUM_DEVICES, "init": cuda.init,
        "is_initialized": lambda: cuda.is_initialised,
        "set_device": lambda device: (cuda.init(), cuda.record("set_device", device)), "current_device": lambda: 0,
        "is_current_stream_capturing": lambda: False,
        "reset_peak_memory_stats": needing(None), "max_memory_allocated": needing(1), "memory_allocated": needing(1),
        "memory_reserved": needing(1), "mem_get_info": needing((1 << 36, 1 << 36)), "Stream": stream, "stream": using,
        "current_stream": lambda device=None: FakeStream(cuda, device, "default"), "Event": lambda: FakeEvent(cuda),
    }  # fmt: skip
    for name, function in replaced.items():
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(prefetcher, "_copy_stream", lambda index: stream(torch.device("cuda", index)))
    for name, method in {"to": copy, "cpu": copy_to_host, "pin_memory": pin, "record_stream": lambda *_: None}.items():
        monkeypatch.setattr(Tensor, name, method)
    with _OnCpu():
        yield cuda
