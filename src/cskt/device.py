"""Which device computes, and in which arithmetic."""

from __future__ import annotations

import contextlib
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from cskt.config import nearest

MEMORY_OF_PROCESS = Path("/proc/self/status")
"""Where Linux tells how much memory a process holds and has held."""
KINDS = ("auto", "cpu", "cuda", "mps")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; `auto` or none takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ValueError: no such device here.
    """
    if isinstance(name, torch.device):
        return name
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in KINDS or (colon and not index.isdigit()):
        raise ValueError(f"unknown device '{name}': {nearest(kind, KINDS)}")
    available = {
        "cpu": not colon,
        "cuda": torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(kind, False):
        raise ValueError(f"device '{name}' is not available here; use --device auto or --device cpu")
    return torch.device(name)


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast to bf16 or fp16 on `device`; float32 needs no context.

    Raises:
        ValueError: no such precision.
    """
    if precision == "fp32":
        # cuDNN would round the patch convolution to TF32 by default.
        return torch.backends.cudnn.flags(allow_tf32=False) if device.type == "cuda" else nullcontext()
    if precision not in DTYPES:
        raise ValueError(f"unknown precision '{precision}': {nearest(precision, ['fp32', *DTYPES])}")
    return torch.autocast(device.type, dtype=DTYPES[precision])


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak be counted from now on, where that is possible: on CUDA, and on Linux for the whole process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif MEMORY_OF_PROCESS.is_file():
        with contextlib.suppress(OSError):  # a container may forbid it; the peak is then that of the process so far
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held since `reset_peak_memory`: CUDA's allocator's, else the process's; 0 where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if MEMORY_OF_PROCESS.is_file():
        lines = MEMORY_OF_PROCESS.read_text(encoding="ascii").splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), None)
        return int(peak.split()[1]) * 1024 if peak else 0
    if sys.platform == "darwin":
        import resource  # noqa: PLC0415  (absent on Windows)

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the process so far: macOS cannot forget it
    return 0
